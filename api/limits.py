"""Refuses a body by its declared length, in our own shape. What is read beyond a limit is Starlette's to refuse."""

from starlette.datastructures import Headers
from starlette.types import ASGIApp, Receive, Scope, Send

from api.errors import error_response
from shared.errors import TooLargeError

__all__ = ["DeclaredBodyLimit"]


class DeclaredBodyLimit:
    """ASGI middleware: 413 before a byte is read, where `Content-Length` is over the limit."""

    def __init__(self, app: ASGIApp, max_body_bytes: int) -> None:
        self._app = app
        self._max_body_bytes = max_body_bytes

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Pass the request on or refuse it."""
        declared = Headers(scope=scope).get("content-length", "0") if scope["type"] == "http" else "0"
        if declared.isdecimal() and int(declared) > self._max_body_bytes:
            refusal = error_response(TooLargeError(f"The body is larger than {self._max_body_bytes} bytes."))
            await refusal(scope, receive, send)
        else:
            await self._app(scope, receive, send)
