"""Run a coroutine so that one Ctrl-C ends the process within a few seconds, whatever it is doing."""

import asyncio
import os
import signal
import sys
import threading
from collections.abc import Coroutine, Iterator
from contextlib import contextmanager
from types import FrameType
from typing import Any, Final, TypeVar

__all__ = ["INTERRUPTED", "interruptible", "run_interruptibly"]

T = TypeVar("T")

INTERRUPTED: Final = 130
"""The exit code of a command that Ctrl-C ended; shells use it too."""

# A thread may be inside a library that waits for a disk or a server, and no thread can be cancelled.
_END_WITHIN_S: Final = 4.0
_SHOW_CURSOR: Final = "\033[?25h"


def run_interruptibly(main: Coroutine[Any, Any, T], message: str) -> T:
    """Run `main` in an event loop and return its result. Call it from the main thread.

    The first Ctrl-C cancels `main`, and KeyboardInterrupt with `message` is raised. If cancelling takes longer than
    4 s, or with the second Ctrl-C, the process writes `message` and ends at once with INTERRUPTED.
    """
    interrupt = _Interrupt(message)
    before = signal.signal(signal.SIGINT, interrupt)
    try:
        return asyncio.run(interrupt.watch(main))
    except KeyboardInterrupt:
        raise KeyboardInterrupt(message) from None
    except BaseException:
        if interrupt.count:  # whatever came of the cancelling, Ctrl-C was the cause
            raise KeyboardInterrupt(message) from None
        raise
    finally:
        interrupt.disarm()
        signal.signal(signal.SIGINT, before)


@contextmanager
def interruptible() -> Iterator[None]:
    """Let Ctrl-C raise KeyboardInterrupt inside this block, which does not give the event loop a turn."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, before)


class _Interrupt:
    """The handler of SIGINT."""

    def __init__(self, message: str) -> None:
        self._message = message
        self._timer = threading.Timer(_END_WITHIN_S, self._end_process)
        self._timer.daemon = True
        self._loop: asyncio.AbstractEventLoop | None = None
        self._task: asyncio.Task[Any] | None = None
        self.count = 0

    async def watch(self, main: Coroutine[Any, Any, T]) -> T:
        self._loop, self._task = asyncio.get_running_loop(), asyncio.current_task()
        return await main

    def __call__(self, _number: int, _frame: FrameType | None) -> None:
        self.count += 1
        if self.count > 1 or self._loop is None or self._task is None:
            self._end_process()
            return
        self._timer.start()
        self._loop.call_soon_threadsafe(self._task.cancel)

    def disarm(self) -> None:
        self._timer.cancel()

    def _end_process(self) -> None:
        cursor = _SHOW_CURSOR if sys.stderr.isatty() else ""
        os.write(sys.stderr.fileno(), f"{cursor}\ncolqueue: {self._message}\n".encode())
        os._exit(INTERRUPTED)
