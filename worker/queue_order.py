"""Decides which Celery queues the worker's next read of Redis asks, and in which order."""

import time
from collections import defaultdict
from collections.abc import Iterable
from typing import Any, ClassVar, Final

from celery.worker import state

from shared.jobs import Lane

__all__ = ["QueueOrder", "tasks_in_hand"]

# While both lanes have work, bulk gets one token for so many of the interactive lane, so that a flood of queries cannot
# stop a backfill.
_INTERACTIVE_SHARE: Final = 7

# Raised: a worker looks less often into a queue that holds a job of a newer release, and what it could do there waits
# longer.
_LEFT_OUT_FOR_S: Final = 5.0


def tasks_in_hand() -> list[Any]:
    """Return the requests this worker has taken and not yet acknowledged.

    Pool threads discard from Celery's set while we look: a copy of the weak references underneath is one step for the
    interpreter, where iterating the set itself is not.
    """
    references = tuple(state.reserved_requests.data)
    return [request for reference in references if (request := reference()) is not None]


class QueueOrder:
    """Orders the queues by what they have given so far, in estimated tokens; kombu makes one per channel and calls it.

    Within a lane the queue that gave least is asked first, so that each owner gets the same share of the model. The
    interactive lane is asked first until it has given seven times what bulk has. A queue or lane that had nothing to
    give gets no credit for that time. Bulk is left out while enough of it is in hand: the threads that it may not take
    stay free for the interactive lane.
    """

    bulk_tasks: ClassVar[int]

    _left_out_until: ClassVar[dict[str, float]] = {}

    def __init__(self, queues: Iterable[str] | None = None) -> None:
        self._queues = list(queues or ())
        self._asked: list[str] = []
        self._last_used = ""
        self._given: dict[str, int] = defaultdict(int)
        self._given_by_lane = dict.fromkeys(Lane, 0)

    @classmethod
    def leave_out(cls, queue: str) -> None:
        """Do not ask this queue for some seconds: a task in it is one that this worker must hand back. Thread-safe."""
        cls._left_out_until[queue] = time.monotonic() + _LEFT_OUT_FOR_S

    def update(self, queues: Iterable[str]) -> None:
        """Take the queues now consumed."""
        self._queues = list(queues)

    def rotate(self, last_used: str) -> None:
        """Note which queue gave a task. The queues that were asked before it were empty and get no credit for that."""
        self._last_used = last_used
        if last_used not in self._asked:
            return
        empty = self._asked[: self._asked.index(last_used)]
        lane = Lane.of(last_used)
        for queue in empty:
            if Lane.of(queue) is lane:
                self._given[queue] = max(self._given[queue], self._given[last_used])
            else:
                other = Lane.of(queue)
                self._given_by_lane[other] = max(self._given_by_lane[other], self._given_by_lane[lane])

    def charge(self, tokens: int) -> None:
        """Note what the task cost that was taken last."""
        if self._last_used in self._queues:
            lane = Lane.of(self._last_used)
            self._given[self._last_used] += tokens
            self._given_by_lane[lane] += tokens * _INTERACTIVE_SHARE if lane is Lane.BULK else tokens

    def consume(self, n: int) -> list[str]:
        """Return the queues to ask, in order."""
        del n
        now, left_out = time.monotonic(), self._left_out_until
        asked = [queue for queue in self._queues if left_out.get(queue, now) <= now]
        by_given = sorted(asked, key=self._given.__getitem__)
        bulk = [queue for queue in by_given if Lane.of(queue) is Lane.BULK]
        rest = [queue for queue in by_given if Lane.of(queue) is not Lane.BULK]
        in_hand = sum(Lane.of(request.delivery_info["routing_key"]) is Lane.BULK for request in tasks_in_hand())
        given = self._given_by_lane
        if in_hand >= self.bulk_tasks:
            given[Lane.BULK] = max(given[Lane.BULK], given[Lane.INTERACTIVE])  # it has as many tasks as it may have
            self._asked = rest
        elif given[Lane.INTERACTIVE] > given[Lane.BULK]:
            self._asked = bulk + rest
        else:
            self._asked = rest + bulk
        return list(self._asked)
