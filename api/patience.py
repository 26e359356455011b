"""Repeats what a full queue, a rate limit or an absent Redis refused, while a synchronous caller waits."""

import asyncio
import itertools
import random
from collections.abc import Awaitable, Callable
from typing import Final, TypeVar

import structlog

from shared.errors import StoreRefusedError, UnavailableError

__all__ = ["Patience"]

T = TypeVar("T")

_log = structlog.get_logger(__name__)

_FIRST_PAUSE_S: Final = 0.1
_LONGEST_PAUSE_S: Final = 2.0

# All requests that wait in this process together repeat at most about as often as this.
_TRIES_PER_S: Final = 50


class Patience:
    """Counts the requests of this process that wait, so that all of them together ask Redis at a bounded rate."""

    def __init__(self) -> None:
        self._waiting = 0

    async def until_passed(
        self, attempt: Callable[[], Awaitable[T]], *, wait_s: float, gone: asyncio.Future[None]
    ) -> T | None:
        """Return what `attempt` returns, or None where the caller was `gone` first.

        Repeats after an `UnavailableError`, and raises it once `wait_s` are over. An attempt is never cut short.
        """
        loop = asyncio.get_running_loop()
        ends_at = loop.time() + wait_s
        try:
            return await attempt()
        except UnavailableError as error:
            if isinstance(error, StoreRefusedError) or wait_s <= 0:
                raise
            _log.info("request.waits", code=error.code, reason=error.message, up_to_s=wait_s)
        self._waiting += 1
        try:
            for tries in itertools.count():
                await asyncio.wait({gone}, timeout=min(self._pause_s(tries), ends_at - loop.time()))
                if gone.done():
                    return None
                try:
                    return await attempt()
                except UnavailableError as error:
                    if isinstance(error, StoreRefusedError) or loop.time() >= ends_at:
                        raise
        finally:
            self._waiting -= 1
        raise AssertionError  # the loop above has no other end

    def _pause_s(self, tries: int) -> float:
        pause_s = max(min(_FIRST_PAUSE_S * 2.0 ** min(tries, 10), _LONGEST_PAUSE_S), self._waiting / _TRIES_PER_S)
        return pause_s * random.uniform(0.5, 1)  # noqa: S311 - spreads the repeats; nothing secret
