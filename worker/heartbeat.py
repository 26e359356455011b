"""Tells the store and a file every few seconds that this worker lives and what it does."""

import os
import socket
from collections.abc import Callable
from pathlib import Path

import structlog

from shared.errors import UnavailableError
from shared.keep_running import Periodic
from worker.store import Store

__all__ = ["Heartbeat"]

_log = structlog.get_logger(__name__)

EVERY_S = 2.0
_KEPT_FOR_S = 15


class Heartbeat:
    """A thread that publishes `facts()` to the store and touches `alive_file`.

    The api's `/ready` and `/metrics` show it; a container's health check reads the file.
    """

    def __init__(self, store: Store, alive_file: Path, facts: Callable[[], dict[str, str]]) -> None:
        self.name = f"{socket.gethostname()}-{os.getpid()}"
        self._store = store
        self._alive_file = alive_file
        self._facts = facts
        self._thread = Periodic("heartbeat", self._beat, EVERY_S)

    def start(self) -> None:
        """Begin, with a first beat at once."""
        self._alive_file.parent.mkdir(parents=True, exist_ok=True)
        self._beat()
        self._thread.start()

    def stop(self, *, leave: bool) -> None:
        """End, and be forgotten at once if told to `leave`; else the last facts stay a while, for `/ready` to tell."""
        self._thread.stop()
        if leave:
            try:
                self._store.leave(self.name, self._facts().get("model_id", ""))
            except UnavailableError as error:
                _log.info("heartbeat.not_left", reason=error.message)
        else:
            self._beat()
        self._alive_file.unlink(missing_ok=True)

    def _beat(self) -> None:
        try:
            self._alive_file.touch()
        except OSError as error:  # a full disk is no reason to be silent
            _log.warning("heartbeat.file_not_touched", file=str(self._alive_file), reason=str(error))
        try:
            self._store.beat(self.name, self._facts(), _KEPT_FOR_S)
        except UnavailableError as error:
            _log.warning("heartbeat.missed", reason=error.message)
