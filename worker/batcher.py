"""Forms batches across tasks, runs them one at a time. Knows lanes and costs; knows no Celery, Redis or torch."""

import threading
import time
from collections import deque
from collections.abc import Callable, Sequence
from concurrent.futures import Future
from dataclasses import dataclass, field

import structlog

from shared.codecs import Rows
from shared.errors import DeadlineError, DeviceMemoryError, ModelError
from shared.jobs import Lane
from worker.model.seam import Prepared

__all__ = ["Batcher", "BatcherClosedError", "Counts"]

_log = structlog.get_logger(__name__)

# While both lanes have work, one batch in this many is bulk, so that a flood of queries cannot stop a backfill.
_BULK_TURN = 8


class BatcherClosedError(Exception):
    """The worker is stopping: this input was not embedded and another worker should have it."""


@dataclass(slots=True)
class Counts:
    """What the batcher has done since it started, for operators."""

    batches: int = 0
    inputs: int = 0
    tokens: int = 0
    busy_s: float = 0.0


@dataclass(frozen=True, slots=True)
class _Entry:
    job_id: str
    prepared: Prepared
    deadline_at: float | None
    future: Future[Rows] = field(default_factory=Future)


class Batcher:
    """Gathers prepared inputs of all tasks into batches for one model.

    Inputs wait in their lane, first in, first out. A batch comes from one lane, interactive first, and takes what
    fits `max_tokens`, always at least one input. An idle model starts at once; what arrives during a batch meets in
    the next.

    `embed` runs on the thread that calls `run`, never concurrently. A batch that fails is halved until the input at
    fault stands alone; only that input's future gets the error.

    `unfinished` says which of some jobs still want their inputs; the others' are dropped just before the forward
    pass, and their futures cancelled. It must not raise.
    """

    def __init__(
        self,
        embed: Callable[[Sequence[Prepared]], list[Rows]],
        *,
        max_tokens: int,
        unfinished: Callable[[set[str]], set[str]],
    ) -> None:
        self.counts = Counts()
        self._embed = embed
        self._max_tokens = max_tokens
        self._unfinished = unfinished
        self._lanes: dict[Lane, deque[_Entry]] = {lane: deque() for lane in Lane}
        self._passed_over = 0  # batches that went before waiting bulk
        self._closed = False
        self._embedding_since: float | None = None
        self._changed = threading.Condition()

    def submit(self, job_id: str, prepared: Prepared, lane: Lane, deadline_at: float | None = None) -> Future[Rows]:
        """Queue one input; thread-safe. `deadline_at` is Unix time.

        The future holds the rows, a `ModelError`, a `DeadlineError` or a `BatcherClosedError`, or is cancelled.
        """
        entry = _Entry(job_id, prepared, deadline_at)
        with self._changed:
            if self._closed:
                entry.future.set_exception(BatcherClosedError())
            else:
                self._lanes[lane].append(entry)
                self._changed.notify()
        return entry.future

    @property
    def waiting(self) -> int:
        """Inputs prepared and not yet in a batch."""
        return sum(len(lane) for lane in self._lanes.values())

    @property
    def busy_for_s(self) -> float:
        """How long the running forward pass has taken so far; 0 where none runs."""
        since = self._embedding_since
        return 0.0 if since is None else time.perf_counter() - since

    def run(self) -> None:
        """Form and embed batches until `close`. The model's thread calls this."""
        while (batch := self._next_batch()) is not None:
            self._settle(self._still_wanted(batch))

    def close(self) -> None:
        """Take nothing more, hand back what waits, let the running batch end. Thread-safe, may be repeated."""
        with self._changed:
            self._closed = True
            for lane in self._lanes.values():
                while lane:
                    lane.popleft().future.set_exception(BatcherClosedError())
            self._changed.notify_all()

    def _next_batch(self) -> list[_Entry] | None:
        with self._changed:
            self._changed.wait_for(lambda: self._closed or self.waiting)
            if not self.waiting:
                return None
            lane = self._lanes[self._next_lane()]
            batch = [lane.popleft()]
            tokens = batch[0].prepared.tokens
            while lane and tokens + lane[0].prepared.tokens <= self._max_tokens:
                batch.append(lane.popleft())
                tokens += batch[-1].prepared.tokens
            return batch

    def _next_lane(self) -> Lane:
        interactive, bulk = self._lanes[Lane.INTERACTIVE], self._lanes[Lane.BULK]
        if not bulk:
            self._passed_over = 0
            return Lane.INTERACTIVE
        if not interactive or self._passed_over >= _BULK_TURN - 1:
            self._passed_over = 0
            return Lane.BULK
        self._passed_over += 1
        return Lane.INTERACTIVE

    def _still_wanted(self, batch: list[_Entry]) -> list[_Entry]:
        unfinished, now = self._unfinished({entry.job_id for entry in batch}), time.time()
        wanted = []
        for entry in batch:
            if entry.job_id not in unfinished:
                entry.future.cancel()
            elif entry.deadline_at is not None and entry.deadline_at < now:
                entry.future.set_exception(DeadlineError("The job's deadline passed before this input was embedded."))
            else:
                wanted.append(entry)
        return wanted

    def _settle(self, batch: list[_Entry]) -> None:
        """Embed `batch` and give every entry's future its rows or its error."""
        if not batch:
            return
        try:
            rows = self._forward(batch)
        except ModelError as error:
            self._settle_failed(batch, error)
            return
        except Exception:  # noqa: BLE001 the outermost loop of the model's thread: were it to end, every task would hang
            _log.exception("batch.failed", inputs=len(batch))
            self._settle_failed(batch, ModelError("The model failed unexpectedly."))
            return
        tokens = sum(entry.prepared.tokens for entry in batch)
        self.counts.batches += 1
        self.counts.inputs += len(batch)
        self.counts.tokens += tokens
        _log.debug("batch.embedded", inputs=len(batch), tokens=tokens, jobs=sorted({entry.job_id for entry in batch}))
        for entry, result in zip(batch, rows, strict=True):
            entry.future.set_result(result)

    def _forward(self, batch: list[_Entry]) -> list[Rows]:
        self._embedding_since = time.perf_counter()
        try:
            rows = self._embed([entry.prepared for entry in batch])
        finally:
            self.counts.busy_s += self.busy_for_s
            self._embedding_since = None
        if len(rows) != len(batch):
            raise ModelError(f"The model answered {len(rows)} inputs for a batch of {len(batch)}.")
        return rows

    def _settle_failed(self, batch: list[_Entry], error: ModelError) -> None:
        if len(batch) == 1:
            batch[0].future.set_exception(error)
            return
        if isinstance(error, DeviceMemoryError):
            half = sum(entry.prepared.tokens for entry in batch) // 2
            self._max_tokens = max(1, min(self._max_tokens, half))
        _log.warning("batch.halved", inputs=len(batch), code=error.code, max_tokens=self._max_tokens)
        middle = len(batch) // 2
        self._settle(batch[:middle])
        self._settle(batch[middle:])
