"""Decides which of the prepared inputs that wait form the next batch: by lane and by cost."""

import heapq
import itertools
from collections.abc import Iterator
from concurrent.futures import Future
from dataclasses import dataclass, field

from shared.codecs import Rows
from shared.jobs import Lane
from worker.model.seam import Prepared

__all__ = ["Batch", "Entry", "Waiting"]

# While bulk waits, a bulk batch follows after interactive batches of so many times the token budget, so that a flood of
# queries cannot stop a backfill. A small batch counts as this fraction of the budget: reading the weights costs time.
_BULK_TURN = 7
_SMALLEST_BATCH = 1 / 32


@dataclass(frozen=True, slots=True)
class Entry:
    """One prepared input, and the future that its submitter waits for."""

    job_id: str
    prepared: Prepared
    deadline_at: float | None
    future: Future[Rows] = field(default_factory=Future)


@dataclass(frozen=True, slots=True)
class Batch:
    """Inputs of one lane for one forward pass."""

    entries: list[Entry]
    lane: Lane

    @property
    def tokens(self) -> int:
        """Return what all inputs cost together."""
        return sum(entry.prepared.tokens for entry in self.entries)


class Waiting:
    """All inputs that wait, by lane. Not thread-safe.

    A batch comes from one lane, interactive first.
    """

    def __init__(self) -> None:
        self._lines = {lane: _Line(lane) for lane in Lane}
        self._passed_over = 0.0  # tokens of interactive batches that went before waiting bulk

    def __len__(self) -> int:
        return sum(len(line) for line in self._lines.values())

    def push(self, entry: Entry, lane: Lane) -> None:
        """Add one input."""
        self._lines[lane].push(entry)

    def pop_batch(self, max_tokens: int) -> Batch:
        """Take the inputs next in turn that fit into `max_tokens`, and at least one. There must be one."""
        lane = self._next_lane(max_tokens)
        batch = Batch(self._lines[lane].pop_batch(max_tokens), lane)
        if lane is Lane.BULK or not self._lines[Lane.BULK]:
            self._passed_over = 0
        else:
            self._passed_over += max(batch.tokens, _SMALLEST_BATCH * max_tokens)
        return batch

    def pop_all(self) -> Iterator[Entry]:
        """Take every input."""
        for line in self._lines.values():
            while line:
                yield line.pop()

    def _next_lane(self, max_tokens: int) -> Lane:
        is_bulks_turn = self._passed_over >= _BULK_TURN * max_tokens
        if self._lines[Lane.BULK] and (is_bulks_turn or not self._lines[Lane.INTERACTIVE]):
            return Lane.BULK
        return Lane.INTERACTIVE


class _Line:
    """The inputs that wait in one lane.

    In the bulk lane they leave in the order in which they came. In the interactive lane a cheap input may go before a
    costly one: the lane has a position, which moves on by what it serves, and an input leaves in the order of the
    position at which it came plus its own cost. An input can therefore not be passed over for ever.
    """

    def __init__(self, lane: Lane) -> None:
        self._is_by_cost = lane is Lane.INTERACTIVE
        self._position = 0
        self._arrivals = itertools.count()
        self._heap: list[tuple[int, int, Entry]] = []

    def __len__(self) -> int:
        return len(self._heap)

    def push(self, entry: Entry) -> None:
        place = self._position + entry.prepared.tokens if self._is_by_cost else 0
        heapq.heappush(self._heap, (place, next(self._arrivals), entry))

    def pop(self) -> Entry:
        self._position, _, entry = heapq.heappop(self._heap)
        return entry

    def pop_batch(self, max_tokens: int) -> list[Entry]:
        """Take the inputs next in turn that fit into `max_tokens`, and at least one."""
        entries = [self.pop()]
        tokens = entries[0].prepared.tokens
        while self._heap and tokens + self._heap[0][2].prepared.tokens <= max_tokens:
            entries.append(self.pop())
            tokens += entries[-1].prepared.tokens
        return entries
