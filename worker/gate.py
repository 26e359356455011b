"""Lets many threads work together, or one thread alone."""

import threading
from collections.abc import Iterator
from contextlib import contextmanager

__all__ = ["Gate"]


class Gate:
    """A readers-writer lock: `together` for ordinary inputs, `alone` for one that a worker may have died of.

    Who wants to be alone waits for those inside to leave; meanwhile nobody else gets in.
    """

    def __init__(self) -> None:
        self._changed = threading.Condition()
        self._inside = 0
        self._alone = threading.Lock()

    @contextmanager
    def together(self) -> Iterator[None]:
        """Be inside with others."""
        with self._alone, self._changed:
            self._inside += 1
        try:
            yield
        finally:
            with self._changed:
                self._inside -= 1
                self._changed.notify_all()

    @contextmanager
    def alone(self) -> Iterator[None]:
        """Be inside with nobody else."""
        with self._alone:
            with self._changed:
                self._changed.wait_for(lambda: self._inside == 0)
            yield
