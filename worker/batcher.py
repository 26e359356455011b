"""Forms batches across tasks, by lane and cost, and keeps the model busy with them."""

import math
import queue
import threading
import time
from collections import deque
from collections.abc import Callable
from concurrent.futures import Future
from dataclasses import dataclass
from functools import partial
from typing import TypeVar

import structlog

from shared.codecs import Rows
from shared.errors import DeadlineError, DeviceMemoryError, ModelError
from shared.jobs import Lane
from worker.lanes import Batch, Entry, Waiting
from worker.model.seam import ModelLostError, Prepared, Start

__all__ = ["Batcher", "BatcherClosedError", "Counts"]

T = TypeVar("T")

_log = structlog.get_logger(__name__)

# So long before the running batch is expected to end, the next is formed and started behind it: time for the host to
# hand it over, so that the device finds work when it is done. A query that comes later waits for that one, too.
_LEAD_S = 0.03
_IN_FLIGHT = 2

# Weight of the latest batch in the seconds that a token is expected to take.
_LATEST = 0.3


class BatcherClosedError(Exception):
    """The worker is stopping: this input was not embedded and another worker should have it."""


@dataclass(slots=True)
class Counts:
    """What the batcher has done since it started, for operators."""

    batches: int = 0
    inputs: int = 0
    tokens: int = 0
    busy_s: float = 0.0


_Started = Callable[[], list[Rows]] | ModelError | ModelLostError
"""What waits for a batch's rows, or how the batch failed before."""


class Batcher:
    """Gathers prepared inputs of all tasks into batches for one model.

    Inputs wait in their lane: bulk in the order in which it came, interactive by cost as well. A batch comes from one
    lane, interactive first, and takes what fits `max_tokens`, always at least one input. An idle model starts at once;
    what arrives during a batch meets in the next, which is started behind it just before it is expected to end.

    `start` runs on the thread that calls `run`, what it returns on a second one, each never concurrently with itself.
    A batch that fails is halved until the input at fault stands alone; only that input's future gets the error.

    `unfinished` says which of some jobs still want their inputs; the others' are dropped just before the forward
    pass, and their futures cancelled. It must not raise.

    `on_idle` is called on the thread of `run` each time nothing has come for `idle_s`.
    """

    def __init__(
        self,
        start: Start,
        *,
        max_tokens: int,
        unfinished: Callable[[set[str]], set[str]],
        idle_s: float = math.inf,
        on_idle: Callable[[], None] = lambda: None,
    ) -> None:
        self.counts = Counts()
        self._start = start
        self._max_tokens = max_tokens
        self._unfinished = unfinished
        self._idle_s, self._on_idle = idle_s, on_idle
        self._waiting = Waiting()
        self._again: deque[Batch] = deque()  # halves of batches that failed
        self._in_flight: deque[Batch] = deque()  # started and not settled; the device is at the first
        self._running_since = 0.0
        self._started: queue.SimpleQueue[_Started | None] = queue.SimpleQueue()
        self._token_s: dict[Lane, float] = {}  # batches of queries take longer per token than batches of pages
        self._lost: ModelLostError | None = None
        self._closed = False
        self._changed = threading.Condition()

    def submit(self, job_id: str, prepared: Prepared, lane: Lane, deadline_at: float | None = None) -> Future[Rows]:
        """Queue one input; thread-safe. `deadline_at` is by `time.monotonic()`.

        The future holds the rows, a `ModelError`, a `DeadlineError` or a `BatcherClosedError`, or is cancelled.
        """
        entry = Entry(job_id, prepared, deadline_at)
        with self._changed:
            if self._closed:
                entry.future.set_exception(BatcherClosedError())
            else:
                self._waiting.push(entry, lane)
                self._changed.notify()
        return entry.future

    @property
    def waiting(self) -> int:
        """Inputs prepared and not yet in a batch."""
        return len(self._waiting)

    @property
    def busy_for_s(self) -> float:
        """How long the running batch has taken so far; 0 where none runs."""
        return time.perf_counter() - self._running_since if self._in_flight else 0.0

    def run(self) -> None:
        """Form and start batches until `close`. The model's thread calls this.

        Raises `ModelLostError` where the model cannot go on in this process; then futures stay pending.
        """
        settling = threading.Thread(target=self._settle, name="settle", daemon=True)
        settling.start()
        try:
            while (batch := self._next_batch()) is not None:
                if (wanted := self._still_wanted(batch)).entries:
                    self._begin(wanted)
        finally:
            self._started.put(None)
        settling.join()

    def close(self) -> None:
        """Take nothing more, hand back what waits, let the running batches end. Thread-safe, may be repeated."""
        with self._changed:
            self._closed = True
            for entry in self._waiting.pop_all():
                entry.future.set_exception(BatcherClosedError())
            self._changed.notify_all()

    def _next_batch(self) -> Batch | None:
        """Return what to start next, once it is time; None where the batcher is closed and all is settled."""
        with self._changed:
            while not (self._lost or self._its_turn() or self._over()):
                wait_s = self._wait_s()
                if not self._changed.wait(None if wait_s == math.inf else wait_s) and self._idle():
                    self._on_idle()
            if self._lost:
                raise self._lost
            if self._again:
                return self._again.popleft()
            if not self.waiting:
                return None
            return self._waiting.pop_batch(self._max_tokens)

    def _its_turn(self) -> bool:
        if not (self._again or self.waiting) or len(self._in_flight) >= _IN_FLIGHT:
            return False
        return not self._in_flight or self._left_s() <= _LEAD_S

    def _left_s(self) -> float:
        """Return how long the running batch is expected to take from now on; infinity where nothing is known."""
        running = self._in_flight[0]
        return self._running_since + self._token_s.get(running.lane, math.inf) * running.tokens - time.perf_counter()

    def _idle(self) -> bool:
        return not (self._in_flight or self._again or self.waiting or self._closed)

    def _over(self) -> bool:
        return self._closed and not (self._in_flight or self._again or self.waiting)

    def _wait_s(self) -> float:
        """Return when to look again although nothing was heard."""
        if self._idle():
            return self._idle_s
        soon = len(self._in_flight) < _IN_FLIGHT and (self._again or self.waiting)
        return max(0.0, self._left_s() - _LEAD_S) if soon else math.inf

    def _still_wanted(self, batch: Batch) -> Batch:
        unfinished, now = self._unfinished({entry.job_id for entry in batch.entries}), time.monotonic()
        wanted = []
        for entry in batch.entries:
            if entry.job_id not in unfinished:
                entry.future.cancel()
            elif entry.deadline_at is not None and entry.deadline_at < now:
                entry.future.set_exception(DeadlineError("The job's deadline passed before this input was embedded."))
            else:
                wanted.append(entry)
        return Batch(wanted, batch.lane)

    def _begin(self, batch: Batch) -> None:
        """Start a batch; what comes of it is settled by the other thread."""
        with self._changed:
            if not self._in_flight:
                self._running_since = time.perf_counter()
            self._in_flight.append(batch)
        self._started.put(_tried(lambda: self._start([entry.prepared for entry in batch.entries])))

    def _settle(self) -> None:
        """Be the thread that settles batches; were it to end unseen, every task would wait for ever."""
        try:
            self._settle_started()
        except Exception as error:  # noqa: BLE001 the outermost frame of this thread; `run` raises what it was
            _log.exception("batches.not_settled")
            with self._changed:
                self._lost = ModelLostError(f"The results of a batch could not be handed out: {error!r}")
                self._changed.notify_all()

    def _settle_started(self) -> None:
        """Give every entry of each batch its rows or its error, in the order in which the batches were started."""
        while (started := self._started.get()) is not None:
            batch = self._in_flight[0]
            outcome = _tried(partial(_rows, started, len(batch.entries))) if callable(started) else started
            match outcome:
                case ModelError():
                    self._failed(batch, outcome)
                case ModelLostError():
                    with self._changed:
                        self._lost = outcome
                        self._changed.notify_all()
                    return
                case rows:
                    self._succeeded(batch, rows)

    def _succeeded(self, batch: Batch, rows: list[Rows]) -> None:
        with self._changed:
            seconds = self._ended()
            latest = seconds / max(1, batch.tokens)
            before = self._token_s.get(batch.lane, latest)
            self._token_s[batch.lane] = _LATEST * latest + (1 - _LATEST) * before
            self.counts.batches += 1
            self.counts.inputs += len(batch.entries)
            self.counts.tokens += batch.tokens
        jobs = sorted({entry.job_id for entry in batch.entries})
        _log.info("batch.embedded", inputs=len(rows), tokens=batch.tokens, s=round(seconds, 3), jobs=jobs)
        for entry, result in zip(batch.entries, rows, strict=True):
            entry.future.set_result(result)

    def _failed(self, batch: Batch, error: ModelError) -> None:
        """Fail a single input; halve several, and have the halves started before anything else."""
        entries, middle = batch.entries, len(batch.entries) // 2
        with self._changed:
            if middle:
                if isinstance(error, DeviceMemoryError):
                    self._max_tokens = max(1, min(self._max_tokens, batch.tokens // 2))
                self._again.extendleft([Batch(entries[middle:], batch.lane), Batch(entries[:middle], batch.lane)])
                _log.warning("batch.halved", inputs=len(entries), code=error.code, max_tokens=self._max_tokens)
            self._ended()
        if not middle:
            entries[0].future.set_exception(error)

    def _ended(self) -> float:
        """Note that the running batch is done; return the seconds it took. The lock is held."""
        now = time.perf_counter()
        seconds = now - self._running_since
        self.counts.busy_s += seconds
        self._in_flight.popleft()
        self._running_since = now
        self._changed.notify_all()
        return seconds


def _rows(finish: Callable[[], list[Rows]], wanted: int) -> list[Rows]:
    rows = finish()
    if len(rows) != wanted:
        raise ModelError(f"The model answered {len(rows)} inputs for a batch of {wanted}.")
    return rows


def _tried(step: Callable[[], T]) -> T | ModelError | ModelLostError:
    """Return what a step of the model returns or how it failed."""
    try:
        return step()
    except (ModelError, ModelLostError) as error:
        return error
    except Exception:  # noqa: BLE001 the outermost step of the model's threads: were one to end, every task would hang
        _log.exception("batch.failed")
        return ModelError("The model failed unexpectedly.")
