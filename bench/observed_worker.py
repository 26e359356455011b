"""Our worker with clocks around its preparation and its forward pass, which stay as they are. Knows no load."""

import sys
import threading
import time
from collections.abc import Callable, Sequence
from contextlib import suppress
from functools import wraps
from pathlib import Path
from typing import Any, Final, TypeVar

from bench.trace import Pass, Trace
from worker.__main__ import main
from worker.model.colqwen import ColQwen
from worker.model.seam import Prepared, Rows

__all__ = ["observe"]

T = TypeVar("T")

# Linux, include/linux/posix-timers.h: the CPU clock of one thread, made from its id. Unlike pthread_getcpuclockid it
# may be asked about a thread that has ended.
_PER_THREAD, _SCHED = 4, 2

_trace: Final = Trace()
_lock: Final = threading.Lock()
_prepare_cpu_s = 0.0
_forward_cpu_s = 0.0


def observe(model: type[ColQwen]) -> None:
    """Time every preparation and forward pass of `model` from now on, and write a line of trace for each pass."""
    model.prepare_page = _preparing(model.prepare_page)  # type: ignore[method-assign]
    model.prepare_query = _preparing(model.prepare_query)  # type: ignore[method-assign]
    start = model.start

    def traced(self: ColQwen, batch: Sequence[Prepared]) -> Callable[[], list[Rows]]:
        begun = time.monotonic()
        finish = _forwarding(start)(self, batch)
        # A CPU has done it all by now, and its rows may be fetched much later; a GPU has only been told.
        done = time.monotonic() if self.device.type == "cpu" else None

        def finished() -> list[Rows]:
            rows: list[Rows] = _forwarding(finish)()
            end = done or time.monotonic()
            _trace.add(Pass(begun, end, len(batch), _forward_cpu_s + helpers_cpu_s(), _prepare_cpu_s))
            return rows

        return finished

    model.start = traced  # type: ignore[method-assign]


def helpers_cpu_s() -> float:
    """Return the CPU seconds of the threads that Python did not start: those of torch, which share the forward pass."""
    ours = {thread.native_id for thread in threading.enumerate()}
    total = 0.0
    for entry in Path("/proc/self/task").iterdir():
        thread = int(entry.name)
        if thread not in ours:
            with suppress(OSError):  # ended meanwhile
                total += time.clock_gettime(~thread << 3 | _PER_THREAD | _SCHED)
    return total


def _preparing(step: Callable[..., T]) -> Callable[..., T]:
    @wraps(step)
    def timed(*arguments: Any) -> T:
        global _prepare_cpu_s  # noqa: PLW0603 - one worker a process
        cpu = time.thread_time()
        try:
            return step(*arguments)
        finally:
            with _lock:
                _prepare_cpu_s += time.thread_time() - cpu

    return timed


def _forwarding(step: Callable[..., T]) -> Callable[..., T]:
    def timed(*arguments: Any) -> T:
        global _forward_cpu_s  # noqa: PLW0603 - likewise
        cpu = time.thread_time()
        try:
            return step(*arguments)
        finally:
            with _lock:
                _forward_cpu_s += time.thread_time() - cpu

    return timed


if __name__ == "__main__":
    observe(ColQwen)
    sys.exit(main())
