"""Runs a coroutine on an event loop whose clock jumps: no test waits, and none depends on the speed of the machine."""

import asyncio
import selectors
from collections.abc import Coroutine
from typing import Any, TypeVar

__all__ = ["run_in_virtual_time"]

T = TypeVar("T")


class _Selector(selectors.DefaultSelector):
    """Moves its clock forward where a real one would wait."""

    now = 0.0

    def select(self, timeout: float | None = None) -> Any:
        events = super().select(0 if timeout is not None else None)
        if timeout is not None and not events:
            self.now += max(timeout, 0)
        return events


class _Loop(asyncio.SelectorEventLoop):
    def __init__(self) -> None:
        self._clock = _Selector()
        super().__init__(self._clock)

    def time(self) -> float:
        return self._clock.now


def run_in_virtual_time(coroutine: Coroutine[Any, Any, T]) -> T:
    """Return what `coroutine` returns; `asyncio.sleep(s)` and time-outs take `s` on the loop's clock and no real time.

    Only for code that waits for the loop's own timers: what happens on threads and sockets takes no virtual time.
    """
    with asyncio.Runner(loop_factory=_Loop) as runner:
        return runner.run(coroutine)
