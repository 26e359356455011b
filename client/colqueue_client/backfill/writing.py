"""Call an output in a thread, repeat the call while its store is away, and stop early when the run ends."""

import asyncio
import math
import threading
from collections.abc import Callable, Iterator, Sequence
from typing import Final, TypeVar

from colqueue_client.backfill.manifest import Manifest
from colqueue_client.backfill.output import Output
from colqueue_client.backfill.progress import Progress
from colqueue_client.backfill.records import Collected, Document, PageKey
from colqueue_client.backfill.spool import collected_rows
from colqueue_client.errors import StoreAwayError
from colqueue_client.wire import Rows

__all__ = ["Writing"]

T = TypeVar("T")

_FIRST_PAUSE_S: Final = 1.0
_LONGEST_PAUSE_S: Final = 60.0
# As long as a command waits for the service when it starts; later, a store that is away is waited for without end.
_FIRST_CALL_S: Final = 10.0
# Where the cause may as well be there for good.
_UNSURE_FOR_S: Final = 600.0


class Writing:
    """The calls of `output` that take long, each in a thread so that the event loop goes on. Make one at a time."""

    def __init__(self, output: Output, manifest: Manifest, progress: Progress) -> None:
        self.batch_bytes = output.batch_bytes
        self._output = output
        self._manifest = manifest
        self._progress = progress
        self._ended = threading.Event()

    async def check(self, dtype: str) -> None:
        """Raise BackfillError where rows of `dtype` cannot be kept, or the store does not answer for 10 s."""
        await self._call(lambda: self._output.check(dtype), _FIRST_CALL_S)

    async def tidy(self) -> None:
        """Bring manifest and output together again after a kill or a change from outside."""
        held, unwanted = self._manifest.spool.files(), self._manifest.spool.unwanted_files()
        missing = await self._call(lambda: self._output.tidy(held, unwanted))
        self._manifest.spool.record_removed(missing | unwanted)

    async def use_columns(self, columns: Sequence[str]) -> None:
        """Give every page that is there, and every page to come, these columns of the lists."""
        await self._call(lambda: self._output.use_columns(columns))

    async def write(self, keys: Sequence[PageKey]) -> str:
        """Write these collected pages and return the name of what they are in, which is noted before."""
        spool = self._manifest.spool
        name = self._output.new_name(spool.name_of(keys[0]))
        spool.begin_file(name)
        await self._call(lambda: self._output.write(name, self._until_ended(keys)))
        return name

    async def remove_leaving(self) -> None:
        """Drop the pages of documents that are to leave the output, also those that a killed run had begun with."""
        departures = self._manifest.departures
        while documents := departures.next_leaving():
            await self._forget(documents)
            departures.end_removal(documents)

    def read(self, document: Document) -> Iterator[tuple[int, Rows]]:
        """Yield the number and the rows of each page of a document that is in the output."""
        with self._output.translate_errors():
            yield from self._output.read(document, self._manifest.spool.files_of(document.id))

    async def _forget(self, documents: Sequence[Document]) -> None:
        await self._call(lambda: self._output.forget(documents))

    def _until_ended(self, keys: Sequence[PageKey]) -> Iterator[Collected]:
        for page in collected_rows(self._manifest.path, keys):
            if self._ended.is_set():
                raise _EndedError
            yield page

    async def _call(self, call: Callable[[], T], for_s: float = math.inf) -> T:
        """Return what `call` returns. While the store is away, repeat it until the pauses come to `for_s`."""
        pause_s, paused_s = _FIRST_PAUSE_S, 0.0
        while True:
            try:
                return await self._in_thread(call)
            except StoreAwayError as error:
                if paused_s + pause_s > (min(for_s, _UNSURE_FOR_S) if error.is_unsure else for_s):
                    raise
                self._progress.say(f"{error}; trying again in {pause_s:.0f} s.")
            await asyncio.sleep(pause_s)
            pause_s, paused_s = min(2 * pause_s, _LONGEST_PAUSE_S), paused_s + pause_s

    async def _in_thread(self, call: Callable[[], T]) -> T:
        """Return what `call` returns. When cancelled, wait for the thread: it must not write once the run has ended."""
        thread = asyncio.ensure_future(asyncio.to_thread(self._call_translated, call))
        try:
            return await asyncio.shield(thread)
        except asyncio.CancelledError:
            self._ended.set()
            await asyncio.wait([thread])
            if not thread.cancelled():
                thread.exception()  # it is of no interest any more, and asyncio would complain that nobody read it
            raise

    def _call_translated(self, call: Callable[[], T]) -> T:
        with self._output.translate_errors():
            return call()


class _EndedError(Exception):
    """The run has ended: stop writing."""
