"""Bounds how many log lines of one kind a client can cause."""

import logging
import time
from collections import OrderedDict
from collections.abc import Callable
from threading import Lock
from typing import Final

__all__ = ["Repeats"]

_PERIOD_S: Final = 60.0
_FROM_ONE: Final = 200
_FROM_ALL: Final = 1000
_KINDS_KEPT: Final = 10_000
# One line a job, by which it is followed through the logs; the queue bounds how many there are.
_ALWAYS: Final = frozenset({"job.queued"})


class Repeats(logging.Filter):
    """A filter for a log handler: of each kind of line it lets the first ones of a minute pass, and counts the others.

    A kind is a logger's event with its `code`. From one client, which is the line's `owner` or else its `client`, 200
    lines of a kind pass, and from all clients together 1000. Of those that follow, each line whose number has doubled
    passes, and says in `repeats` how many there were.
    """

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        super().__init__()
        self._clock = clock
        self._counts: OrderedDict[object, tuple[float, int]] = OrderedDict()
        self._lock = Lock()

    def filter(self, record: logging.LogRecord) -> bool:
        """Return whether the line is to be written."""
        said = record.msg if isinstance(record.msg, dict) else {"event": record.msg}
        if said.get("event") in _ALWAYS:
            return True
        kind = (record.name, str(said.get("event")), said.get("code"))
        with self._lock:
            from_all = self._count(kind)
            from_one = self._count((*kind, said.get("owner") or said.get("client")))
        if from_all > _FROM_ALL:
            return _is_doubling(from_all, _FROM_ALL) and self._tell(record, from_all)
        if from_one > _FROM_ONE:
            return _is_doubling(from_one, _FROM_ONE) and self._tell(record, from_one)
        return True

    def _count(self, kind: object) -> int:
        """Return how many lines of this kind there were in this minute, with this one."""
        now = self._clock()
        began, number = self._counts.get(kind, (now, 0))
        if now - began >= _PERIOD_S:
            began, number = now, 0
        self._counts[kind] = (began, number + 1)
        self._counts.move_to_end(kind)
        if len(self._counts) > _KINDS_KEPT:
            self._counts.popitem(last=False)
        return number + 1

    @staticmethod
    def _tell(record: logging.LogRecord, number: int) -> bool:
        if isinstance(record.msg, dict):
            record.msg["repeats"] = number
        else:
            record.msg, record.args = f"{record.getMessage()} (number {number} within a minute)", ()
        return True


def _is_doubling(number: int, first: int) -> bool:
    times, rest = divmod(number, first)
    return rest == 0 and times & (times - 1) == 0
