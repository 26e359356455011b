"""Ends a worker whose model hangs. Knows how long a batch has run; leaves the restart to the process's owner."""

import os
import threading
from collections.abc import Callable
from typing import Final

import structlog

__all__ = ["EXIT_STATUS", "Watchdog"]

_log = structlog.get_logger(__name__)

EXIT_STATUS: Final = 75
"""EX_TEMPFAIL of sysexits.h: start it again."""

_CHECKS_A_TIMEOUT: Final = 10
_GOODBYE_S: Final = 2


class Watchdog:
    """Ends the process where one batch takes longer than `timeout_s`, after a call of `say_goodbye` that may hang too.

    Nothing else would: a thread stuck in a driver cannot be stopped, and Celery's time limits do nothing on threads.
    The work in hand goes to other workers once its lease runs out.
    """

    def __init__(self, busy_for_s: Callable[[], float], timeout_s: float, say_goodbye: Callable[[], None]) -> None:
        self._busy_for_s = busy_for_s
        self._timeout_s = timeout_s
        self._say_goodbye = say_goodbye
        self._never = threading.Event()

    def start(self) -> None:
        """Begin; it ends with the process."""
        threading.Thread(target=self._run, name="watchdog", daemon=True).start()

    def _run(self) -> None:
        while not self._never.wait(min(5.0, self._timeout_s / _CHECKS_A_TIMEOUT)):
            if (busy_for_s := self._busy_for_s()) > self._timeout_s:
                _log.critical("model.hangs", s=round(busy_for_s, 1), timeout_s=self._timeout_s)
                goodbye = threading.Thread(target=self._say_goodbye, name="goodbye", daemon=True)
                goodbye.start()
                goodbye.join(_GOODBYE_S)
                os._exit(EXIT_STATUS)
