"""Tells refused callers when to come back, so that many of them do not come back at once."""

import random
import time
from collections import deque
from collections.abc import Callable
from typing import Final

__all__ = ["Refusals"]

# The refusals of so many seconds are remembered, and callers are spread so that about so many come back per second.
_REMEMBERED_S: Final = 10.0
_RETURNS_PER_S: Final = 20
_LONGEST_S: Final = 60
_MOST_REMEMBERED: Final = 20_000


class Refusals:
    """Counts the recent refusals of this process. The more there are, the more widely it spreads `Retry-After`."""

    def __init__(
        self,
        clock: Callable[[], float] = time.monotonic,
        draw: Callable[[float, float], float] = random.uniform,
    ) -> None:
        self._clock = clock
        self._draw = draw
        self._times: deque[float] = deque(maxlen=_MOST_REMEMBERED)

    def retry_after_s(self, at_least_s: int) -> int:
        """Count one refusal, and return after how many seconds its caller should come back: `at_least_s` or more."""
        now = self._clock()
        self._times.append(now)
        while self._times[0] < now - _REMEMBERED_S:
            self._times.popleft()
        later_s = self._draw(0, len(self._times) / _RETURNS_PER_S)
        return max(at_least_s, min(round(at_least_s + later_s), _LONGEST_S))
