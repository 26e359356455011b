"""Keeps the helper threads and tasks of a process running whatever happens in them."""

import asyncio
import threading
from collections.abc import Awaitable, Callable
from typing import Final

import structlog

__all__ = ["Periodic", "keep_running"]

_log = structlog.get_logger(__name__)

_PAUSE_S: Final = 1.0


class Periodic:
    """A daemon thread that calls `step` every `every_s` until `stop`. An error in one step does not prevent the next.

    A helper thread that ended unseen would leave a process that looks healthy and does only half of its work.
    """

    def __init__(self, name: str, step: Callable[[], object], every_s: float) -> None:
        self._name = name
        self._step = step
        self._every_s = every_s
        self._stopping = threading.Event()
        self._thread = threading.Thread(target=self._run, name=name, daemon=True)

    def start(self) -> None:
        """Begin; the first step follows after `every_s`."""
        self._thread.start()

    def stop(self) -> None:
        """End, after the step that is under way."""
        self._stopping.set()
        if self._thread.is_alive():
            self._thread.join()

    def _run(self) -> None:
        while not self._stopping.wait(self._every_s):
            try:
                self._step()
            except Exception:  # noqa: BLE001 the outermost frame of a thread that must survive
                _log.exception("thread.step_failed", thread=self._name)


async def keep_running(name: str, run: Callable[[], Awaitable[None]]) -> None:
    """Await `run()` for as long as the process lives: begin anew whenever it ends or fails."""
    while True:
        try:
            await run()
        except Exception:  # noqa: BLE001 the outermost frame of a task that must survive
            _log.exception("task.failed", task=name)
        else:
            _log.error("task.ended", task=name)
        await asyncio.sleep(_PAUSE_S)
