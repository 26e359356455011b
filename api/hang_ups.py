"""Notices that a caller has hung up while it waits for its answer."""

import asyncio
from collections.abc import AsyncIterator, Coroutine
from contextlib import asynccontextmanager
from typing import Any, TypeVar

from starlette.types import Receive

__all__ = ["hung_up", "unless_gone", "watching"]

T = TypeVar("T")


async def hung_up(receive: Receive) -> None:
    """Return once the caller has closed its connection. The request's body must have been read."""
    while (await receive())["type"] != "http.disconnect":
        pass


@asynccontextmanager
async def watching(receive: Receive) -> AsyncIterator[asyncio.Future[None]]:
    """Give a future that is done once the caller has hung up, within the block."""
    gone = asyncio.ensure_future(hung_up(receive))
    try:
        yield gone
    finally:
        gone.cancel()


async def unless_gone(receive: Receive, call: Coroutine[Any, Any, T]) -> T | None:
    """Return what `call` returns; where the caller hangs up first, cancel `call` and return None."""
    waiting, gone = asyncio.ensure_future(call), asyncio.ensure_future(hung_up(receive))
    try:
        await asyncio.wait({waiting, gone}, return_when=asyncio.FIRST_COMPLETED)
        return waiting.result() if waiting.done() else None
    finally:
        waiting.cancel()
        gone.cancel()
