"""Who is asking: bearer keys. Knows the configured keys; hands on an opaque owner id, never a key."""

import hashlib
import hmac
from collections.abc import Iterable
from typing import Annotated

from fastapi import Depends, Request
from fastapi.security import HTTPBearer

from shared.errors import ForbiddenError, UnauthorizedError

__all__ = ["Keys", "Owner"]


class Keys:
    """The configured keys. Without any, nobody is let in."""

    def __init__(self, keys: Iterable[str]) -> None:
        self._owners = {key.encode(): hashlib.sha256(key.encode()).hexdigest()[:16] for key in keys if key}

    def __repr__(self) -> str:
        return f"<Keys: {len(self._owners)}>"

    @classmethod
    def parse(cls, configured: str) -> "Keys":
        """Read one key, or several separated by commas."""
        return cls(key.strip() for key in configured.split(","))

    def owner(self, authorization: str | None) -> str:
        """Return the owner behind an Authorization header.

        Every key is compared, each in constant time, so the answer's timing tells nothing.
        """
        if not authorization or not self._owners:
            raise UnauthorizedError("Unauthorized")
        scheme, _, token = authorization.partition(" ")
        given = token.strip().encode()
        matches = [owner for key, owner in self._owners.items() if hmac.compare_digest(key, given)]
        if scheme.lower() != "bearer" or not matches:
            raise ForbiddenError("Forbidden")
        return matches[0]


# HTTPBearer is here for the OpenAPI document only: its own refusals are not the contract's.
async def _owner(request: Request, _: Annotated[object, Depends(HTTPBearer(auto_error=False))]) -> str:
    keys: Keys = request.app.state.keys
    return keys.owner(request.headers.get("authorization"))


Owner = Annotated[str, Depends(_owner)]
"""A route parameter: the id of the key that asks. The route answers 401 or 403 before anything else is read."""
