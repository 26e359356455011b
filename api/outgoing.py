"""Bounds what the answers of this process hold in memory at once, and what one caller keeps open at once."""

import asyncio
from collections import defaultdict, deque
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager, contextmanager

from shared.errors import RateLimitedError

__all__ = ["AnswerRoom", "OpenCalls"]


class AnswerRoom:
    """Grants bytes of memory to pieces of answers, in the order of the requests, as far as there is room.

    One owner may use at most the room that all other owners together leave free, so slow readers of one key leave room
    for the others. A piece that is larger than the room is granted when nothing else is.
    """

    def __init__(self, max_bytes: int) -> None:
        self._max_bytes = max_bytes
        self._granted: defaultdict[str, int] = defaultdict(int)
        self._total = 0
        self._waiting: deque[tuple[str, int, asyncio.Future[None]]] = deque()

    @property
    def granted(self) -> int:
        """Return how many bytes are granted at the moment."""
        return self._total

    @asynccontextmanager
    async def take(self, owner: str, n_bytes: int) -> AsyncIterator[None]:
        """Wait for room for `n_bytes`, and keep it within the block."""
        granted: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._waiting.append((owner, n_bytes, granted))
        self._grant()
        try:
            await granted
        except asyncio.CancelledError:
            if granted.cancelled():  # it never got the room
                raise
            self._give_back(owner, n_bytes)
            raise
        try:
            yield
        finally:
            self._give_back(owner, n_bytes)

    def _give_back(self, owner: str, n_bytes: int) -> None:
        self._total -= n_bytes
        self._granted[owner] -= n_bytes
        if not self._granted[owner]:
            del self._granted[owner]
        self._grant()

    def _grant(self) -> None:
        still_waiting: deque[tuple[str, int, asyncio.Future[None]]] = deque()
        for owner, n_bytes, granted in self._waiting:
            if granted.cancelled():
                continue
            own = self._granted.get(owner, 0)
            if self._total and own + self._total + n_bytes > self._max_bytes:
                still_waiting.append((owner, n_bytes, granted))
                continue
            self._total += n_bytes
            self._granted[owner] += n_bytes
            granted.set_result(None)
        self._waiting = still_waiting


class OpenCalls:
    """Counts the calls that each owner has open in this process, and refuses those above a limit."""

    def __init__(self, most: int, refusal: str) -> None:
        self._most = most
        self._refusal = refusal
        self._open: defaultdict[str, int] = defaultdict(int)

    @contextmanager
    def one_more(self, owner: str) -> Iterator[None]:
        """Count a call within the block; raises `RateLimitedError` where the owner has too many open already."""
        if self._open[owner] >= self._most:
            raise RateLimitedError(self._refusal)
        self._open[owner] += 1
        try:
            yield
        finally:
            self._open[owner] -= 1
            if not self._open[owner]:
                del self._open[owner]
