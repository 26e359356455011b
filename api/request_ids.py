"""Gives every request an id, its caller's where that is fit for a log: in the answer, in each log line, on the job."""

import re
import uuid
from contextvars import ContextVar
from typing import Final

from starlette.datastructures import Headers, MutableHeaders
from starlette.types import ASGIApp, Message, Receive, Scope, Send
from structlog.contextvars import bind_contextvars

__all__ = ["REQUEST_ID_HEADER", "RequestIds", "current_request_id"]

REQUEST_ID_HEADER: Final = "X-Request-ID"

# Nothing that could break a log line or grow it.
_FIT: Final = re.compile(r"[A-Za-z0-9._:/+=-]{1,128}")

_current: ContextVar[str] = ContextVar("request_id", default="")


def current_request_id() -> str:
    """Return the id of the request that is being answered; empty outside of one."""
    return _current.get()


class RequestIds:
    """ASGI middleware. It leaves the id bound: a request has a context of its own, and errors are logged outside."""

    def __init__(self, app: ASGIApp) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Pass the request on under its id."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        given = Headers(scope=scope).get(REQUEST_ID_HEADER, "")
        request_id = given if _FIT.fullmatch(given) else uuid.uuid4().hex
        _current.set(request_id)
        bind_contextvars(request=request_id)

        async def with_id(message: Message) -> None:
            if message["type"] == "http.response.start":
                MutableHeaders(scope=message)[REQUEST_ID_HEADER] = request_id
            await send(message)

        await self._app(scope, receive, with_id)
