"""Bounds bodies while they are read and unpacked: how large, how slow, how much of all of them at once."""

import asyncio
from collections import defaultdict
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, Final

from fastapi.concurrency import run_in_threadpool
from starlette.datastructures import Headers
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from api.encodings import Decoding
from api.errors import error_response
from shared.errors import BodyTooSlowError, BusyError, TooLargeError

if TYPE_CHECKING:
    from collections.abc import Iterator

__all__ = ["BodyLimits", "Incoming"]

# The minimum upload rate: no caller needs to send a body more slowly.
_SLOWEST_BYTES_A_S: Final = 16 * 1024
# Of so much compressed data the first piece is unpacked at once; more is left to a thread.
_SMALL_BYTES: Final = 16 * 1024


class BodyLimits:
    """ASGI middleware. What is held of a request's body counts until `request.state.body.let_go()`, or its answer.

    A body that says it is too large is refused before a byte is read; the other refusals are raised where it is read.
    A compressed body is unpacked while it is read, and both what is sent and what it unpacks to are bounded.
    """

    def __init__(self, app: ASGIApp, *, max_body_bytes: int, max_bodies_bytes: int, grace_s: float) -> None:
        self._app = app
        self.max_body_bytes = max_body_bytes
        self.max_bodies_bytes = max_bodies_bytes
        self.grace_s = grace_s
        self.held = 0
        self.held_by: defaultdict[str, int] = defaultdict(int)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Pass the request on or refuse it."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        headers = Headers(scope=scope)
        declared = headers.get("content-length", "0")
        if declared.isdecimal() and int(declared) > self.max_body_bytes:
            await error_response(_too_large(self.max_body_bytes))(scope, receive, send)
            return
        state = scope.setdefault("state", {})
        state["body"] = body = Incoming(self, receive, ",".join(headers.getlist("content-encoding")), state)
        try:
            await self._app(scope, body.receive, send)
        finally:
            body.let_go()


class Incoming:
    """The body of one request."""

    def __init__(self, limits: BodyLimits, receive: Receive, content_encoding: str, state: Mapping[str, Any]) -> None:
        self._limits = limits
        self._receive = receive
        self._content_encoding = content_encoding
        self._decoding: Decoding | None = None
        self._pieces: Iterator[bytes] | None = None
        self._patience_s = limits.grace_s
        self._complete = False
        self._n_sent = 0
        self._n_bytes = 0
        self._held = 0
        self._state = state
        self._owner = ""

    async def receive(self) -> Message:
        """Return the next part of the body, unpacked, or what comes after it."""
        if self._content_encoding and self._decoding is None:
            self._decoding = Decoding(self._content_encoding, self._limits.max_body_bytes)
            self._content_encoding = ""
        if self._decoding:
            return await self._unpacked(self._decoding)
        if self._complete:
            return await self._receive()
        message = await self._sent()
        self._take(len(message.get("body", b"")))
        return message

    async def _unpacked(self, decoding: Decoding) -> Message:
        at_once = False
        while True:
            if self._pieces is not None:
                piece = next(self._pieces, None) if at_once else await run_in_threadpool(next, self._pieces, None)
                if piece is not None:
                    self._take(len(piece))
                    return {"type": "http.request", "body": piece, "more_body": True}
                self._pieces = None
            if self._complete:
                decoding.finish()
                self._decoding = None
                return {"type": "http.request", "body": b"", "more_body": False}
            message = await self._sent()
            if message["type"] != "http.request":
                return message
            data = message.get("body", b"")
            self._pieces, at_once = decoding.pieces(data), len(data) <= _SMALL_BYTES

    async def _sent(self) -> Message:
        """Return the next part of the body as it was sent."""
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
            # Each part extends the time limit at the minimum upload rate, and never beyond `grace_s`: a caller that
            # began fast may not stop for long either.
            left_s = self._patience_s - (clock() - asked) + n_bytes / _SLOWEST_BYTES_A_S
            self._patience_s = min(left_s, self._limits.grace_s)
            self._n_sent += n_bytes
            if self._n_sent > self._limits.max_body_bytes:
                raise _too_large(self._limits.max_body_bytes)
        return message

    def let_go(self) -> None:
        """Count the body no longer: nothing holds it any more."""
        self._count(-self._held)
        if not self._limits.held_by[self._owner]:
            del self._limits.held_by[self._owner]

    def _take(self, n_bytes: int) -> None:
        if not self._held:
            self._owner = self._state.get("owner", "")
        self._n_bytes += n_bytes
        self._count(n_bytes)
        if self._n_bytes > self._limits.max_body_bytes:
            raise _too_large(self._limits.max_body_bytes)
        held, most = self._limits.held, self._limits.max_bodies_bytes
        # One key may use at most the memory that all other keys together leave free; a single body, all of it.
        is_over_share = held > self._held and held + self._limits.held_by[self._owner] > most
        if held > most or is_over_share:
            raise BusyError("Too much is being received at once. Please try again later.")

    def _count(self, n_bytes: int) -> None:
        self._held += n_bytes
        self._limits.held += n_bytes
        self._limits.held_by[self._owner] += n_bytes


def _too_large(limit: int) -> TooLargeError:
    return TooLargeError(f"The body is larger than {limit} bytes.")
