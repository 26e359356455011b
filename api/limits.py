"""Bounds bodies while they are read: how large, how slow, how much of all of them at once. Knows bytes and no form."""

import asyncio
from typing import Final

from starlette.datastructures import Headers
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from api.errors import error_response
from shared.errors import BodyTooSlowError, BusyError, TooLargeError

__all__ = ["BodyLimits", "Incoming"]

# Slower than this a body need not come from anybody: a modem's share of what a page takes.
_SLOWEST_BYTES_A_S: Final = 16 * 1024


class BodyLimits:
    """ASGI middleware. What is held of a request's body counts until `request.state.body.let_go()`, or its answer.

    A body that says it is too large is refused before a byte is read; the other refusals are raised where it is read.
    """

    def __init__(self, app: ASGIApp, *, max_body_bytes: int, max_bodies_bytes: int, grace_s: float) -> None:
        self._app = app
        self.max_body_bytes = max_body_bytes
        self.max_bodies_bytes = max_bodies_bytes
        self.grace_s = grace_s
        self.held = 0

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Pass the request on or refuse it."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        declared = Headers(scope=scope).get("content-length", "0")
        if declared.isdecimal() and int(declared) > self.max_body_bytes:
            await error_response(_too_large(self.max_body_bytes))(scope, receive, send)
            return
        body = scope.setdefault("state", {})["body"] = Incoming(self, receive)
        try:
            await self._app(scope, body.receive, send)
        finally:
            body.let_go()


class Incoming:
    """The body of one request."""

    def __init__(self, limits: BodyLimits, receive: Receive) -> None:
        self._limits = limits
        self._receive = receive
        self._patience_s = limits.grace_s
        self._complete = False
        self._n_bytes = 0
        self._held = 0

    async def receive(self) -> Message:
        """Return the next part of the body, or what comes after it."""
        if self._complete:
            return await self._receive()
        clock = asyncio.get_running_loop().time
        asked = clock()
        try:
            async with asyncio.timeout(self._patience_s):
                message = await self._receive()
        except TimeoutError:
            raise BodyTooSlowError("The body came too slowly.") from None
        if message["type"] == "http.request":
            self._complete = not message.get("more_body", False)
            n_bytes = len(message.get("body", b""))
            # Bytes buy back the time they took, and no more than that: who began fast may not stop for long either.
            left_s = self._patience_s - (clock() - asked) + n_bytes / _SLOWEST_BYTES_A_S
            self._patience_s = min(left_s, self._limits.grace_s)
            self._take(n_bytes)
        return message

    def let_go(self) -> None:
        """Count the body no longer: nothing holds it any more."""
        self._limits.held -= self._held
        self._held = 0

    def _take(self, n_bytes: int) -> None:
        self._n_bytes += n_bytes
        self._held += n_bytes
        self._limits.held += n_bytes
        if self._n_bytes > self._limits.max_body_bytes:
            raise _too_large(self._limits.max_body_bytes)
        if self._limits.held > self._limits.max_bodies_bytes:
            raise BusyError("Too much is being received at once. Please try again later.")


def _too_large(limit: int) -> TooLargeError:
    return TooLargeError(f"The body is larger than {limit} bytes.")
