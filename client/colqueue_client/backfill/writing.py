"""Calls an output in a thread: tries again while its store is away, and stops early when the run ends."""

import asyncio
import threading
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Final, TypeVar

from colqueue_client.backfill.manifest import collected_rows
from colqueue_client.backfill.output import Output, StoreAwayError
from colqueue_client.backfill.progress import Progress
from colqueue_client.backfill.records import Collected, PageKey

__all__ = ["Writing"]

T = TypeVar("T")

_FIRST_PAUSE_S: Final = 1.0
_LONGEST_PAUSE_S: Final = 60.0


class Writing:
    """The calls of `output` that take long, each in a thread so that the event loop goes on. Make one at a time."""

    def __init__(self, output: Output, manifest: Path, progress: Progress) -> None:
        self.batch_bytes = output.batch_bytes
        self._output = output
        self._manifest = manifest
        self._progress = progress
        self._ended = threading.Event()

    async def write(self, keys: Sequence[PageKey]) -> str:
        """Write these collected pages and return the name of what they are in."""
        return await self._call(lambda: self._output.write(self._until_ended(keys)))

    async def forget(self, documents: Sequence[str]) -> None:
        """Drop every page of these documents."""
        await self._call(lambda: self._output.forget(documents))

    def _until_ended(self, keys: Sequence[PageKey]) -> Iterator[Collected]:
        for page in collected_rows(self._manifest, keys):
            if self._ended.is_set():
                raise _EndedError
            yield page

    async def _call(self, call: Callable[[], T]) -> T:
        pause_s = _FIRST_PAUSE_S
        while True:
            try:
                return await self._in_thread(call)
            except StoreAwayError as error:
                self._progress.say(f"{error}; trying again in {pause_s:.0f} s.")
            await asyncio.sleep(pause_s)
            pause_s = min(2 * pause_s, _LONGEST_PAUSE_S)

    async def _in_thread(self, call: Callable[[], T]) -> T:
        """Return what `call` returns. When cancelled, wait for the thread: it must not write once the run has ended."""
        thread = asyncio.ensure_future(asyncio.to_thread(call))
        try:
            return await asyncio.shield(thread)
        except asyncio.CancelledError:
            self._ended.set()
            await asyncio.wait([thread])
            if not thread.cancelled():
                thread.exception()  # it is of no interest any more, and asyncio would complain that nobody read it
            raise


class _EndedError(Exception):
    """The run has ended: stop writing."""
