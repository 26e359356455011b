"""Answer requests that still wait when the api has to stop: 503, so that their callers try again elsewhere."""

import asyncio

from starlette.types import ASGIApp, Message, Receive, Scope, Send

from api.errors import error_response
from shared.errors import StoppingError

__all__ = ["AnswerWhenStopped"]


class AnswerWhenStopped:
    """ASGI middleware. The server cancels what it still serves at the end of its grace time, and would answer 500."""

    def __init__(self, app: ASGIApp) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Pass the request on; where it is cancelled before its answer begins, answer it."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        has_started = False

        async def noting_start(message: Message) -> None:
            nonlocal has_started
            has_started = True
            await send(message)

        try:
            await self._app(scope, receive, noting_start)
        except asyncio.CancelledError:
            if has_started:
                raise
            await error_response(StoppingError("This service is being stopped. Please try again."))(
                scope, receive, send
            )
