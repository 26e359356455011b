"""Ends a worker whose model hangs or is lost, so that whoever started it can start it again."""

import os
import threading
from collections.abc import Callable
from typing import Final

import structlog

from shared.keep_running import Periodic

__all__ = ["EXIT_STATUS", "Watchdog"]

_log = structlog.get_logger(__name__)

EXIT_STATUS: Final = 75
"""EX_TEMPFAIL of sysexits.h: start it again."""

_CHECKS_A_TIMEOUT: Final = 10
_GOODBYE_S: Final = 2


class Watchdog:
    """Ends the process where one batch takes longer than `timeout_s` or the model's thread fails.

    It calls `say_goodbye` first, which may hang, too.

    Nothing else would: a thread stuck in a driver cannot be stopped, and Celery's time limits do nothing on threads.
    The work in hand goes to other workers once its lease runs out.
    """

    def __init__(self, busy_for_s: Callable[[], float], timeout_s: float, say_goodbye: Callable[[], None]) -> None:
        self._busy_for_s = busy_for_s
        self._timeout_s = timeout_s
        self._say_goodbye = say_goodbye
        self._thread = Periodic("watchdog", self._look, min(5.0, timeout_s / _CHECKS_A_TIMEOUT))

    def start(self) -> None:
        """Begin; it ends with the process."""
        self._thread.start()

    def guard(self, run: Callable[[], None]) -> None:
        """Be the model's thread: `run`, and end the process where that raises, for its tasks would wait for ever."""
        try:
            run()
        except Exception as error:  # noqa: BLE001 the outermost frame of the model's thread: nobody would miss it in time
            self._thread.stop()  # what was running when it failed does not hang
            _log.critical("model.lost", reason=str(error), exc_info=True)
            self._end()

    def _look(self) -> None:
        if (busy_for_s := self._busy_for_s()) > self._timeout_s:
            _log.critical("model.hangs", s=round(busy_for_s, 1), timeout_s=self._timeout_s)
            self._end()

    def _end(self) -> None:
        goodbye = threading.Thread(target=self._say_goodbye, name="goodbye", daemon=True)
        goodbye.start()
        goodbye.join(_GOODBYE_S)
        os._exit(EXIT_STATUS)
