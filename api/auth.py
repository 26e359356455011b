"""Checks bearer keys and returns the owner of a key: an opaque id, never the key itself."""

import hashlib
import hmac
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Annotated

from fastapi import Depends, Request
from fastapi.security import HTTPBearer
from structlog.contextvars import bind_contextvars

from api.keys_file import KeysFile
from shared.errors import ForbiddenError, UnauthorizedError

__all__ = ["Keys", "Owner"]


class Keys:
    """The configured keys, whose owners are hashes, and those of a file. Without any, nobody is let in."""

    def __init__(self, keys: Iterable[str], file: KeysFile | None = None) -> None:
        self._owners = {key.encode(): hashlib.sha256(key.encode()).hexdigest()[:16] for key in keys if key}
        self._file = file

    def __repr__(self) -> str:
        return f"<Keys: {len(self._all())}>"

    @classmethod
    def parse(cls, configured: str, file: Path | None = None) -> "Keys":
        """Read one key, or several separated by commas; follow `file`."""
        return cls((key.strip() for key in configured.split(",")), KeysFile(file) if file else None)

    def _all(self) -> Mapping[bytes, str]:
        return self._owners if self._file is None else {**self._owners, **self._file.owners()}

    def owner(self, authorization: str | None) -> str:
        """Return the owner behind an Authorization header.

        Every key is compared, each in constant time, so the answer's timing tells nothing.
        """
        owners = self._all()
        if not authorization or not owners:
            raise UnauthorizedError("Unauthorized")
        scheme, _, token = authorization.partition(" ")
        given = token.strip().encode()
        matches = [owner for key, owner in owners.items() if hmac.compare_digest(key, given)]
        if scheme.lower() != "bearer" or not matches:
            raise ForbiddenError("Forbidden")
        return matches[0]


# HTTPBearer is here for the OpenAPI document only: its own refusals are not the contract's.
async def _owner(request: Request, _: Annotated[object, Depends(HTTPBearer(auto_error=False))]) -> str:
    keys: Keys = request.app.state.keys
    owner = keys.owner(request.headers.get("authorization"))
    bind_contextvars(owner=owner)
    request.state.owner = owner  # whose body it is that is read next (api.limits)
    return owner


Owner = Annotated[str, Depends(_owner)]
"""A route parameter: the id of the key that asks. The route answers 401 or 403 before anything else is read."""
