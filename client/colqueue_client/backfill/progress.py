"""How far a backfill is, on a terminal or in a log. Knows numbers and a stream; asks nobody."""

import time
from collections import deque
from contextlib import AbstractContextManager, nullcontext
from typing import Any, Final, Protocol, TextIO

from colqueue_client.backfill.records import Counts

__all__ = ["Lines", "Progress", "Quiet", "Rate", "progress_on", "sentence"]

_WINDOW_S: Final = 60.0
_LINE_EVERY_S: Final = 15.0


class Progress(Protocol):
    """Is told how things stand about once a second."""

    def show(self, counts: Counts, service: str) -> None:
        """Take note of the counts, and of a few words on the service."""

    def say(self, line: str) -> None:
        """Tell something that happens once."""

    def shown(self) -> AbstractContextManager[Any]:
        """Show until left."""


class Rate:
    """Pages per second over the last minute, and what follows from it."""

    def __init__(self) -> None:
        self._seen: deque[tuple[float, int]] = deque()

    def note(self, now: float, done: int) -> None:
        """Remember how many were done at a moment."""
        self._seen.append((now, done))
        while len(self._seen) > 2 and self._seen[1][0] < now - _WINDOW_S:  # noqa: PLR2004 - the ends of the window
            self._seen.popleft()

    @property
    def per_s(self) -> float:
        """0 before anything is known."""
        if not self._seen:
            return 0.0
        (start, before), (end, after) = self._seen[0], self._seen[-1]
        return (after - before) / (end - start) if end > start else 0.0

    def time_left(self, counts: Counts) -> str:
        """Return hours, minutes and seconds, or `-` while there is no telling.

        Documents that nobody has opened yet come on top, hence the `+`.
        """
        if not self.per_s:
            return "-"
        seconds = int(counts.left / self.per_s)
        return f"{seconds // 3600}:{seconds // 60 % 60:02}:{seconds % 60:02}" + ("+" if counts.unopened else "")


class Quiet:
    """Shows nothing."""

    def show(self, counts: Counts, service: str) -> None:
        """Do nothing."""

    def say(self, line: str) -> None:
        """Do nothing."""

    def shown(self) -> AbstractContextManager[Any]:
        """Do nothing."""
        return nullcontext()


class Lines:
    """A line every quarter of a minute, for logs."""

    def __init__(self, stream: TextIO) -> None:
        self._stream = stream
        self._rate = Rate()
        self._told_at = -_LINE_EVERY_S

    def show(self, counts: Counts, service: str) -> None:
        """Write a line, if it is time for one."""
        now = time.monotonic()
        self._rate.note(now, counts.embedded + counts.failed)
        if now - self._told_at >= _LINE_EVERY_S:
            self._told_at = now
            self.say(sentence(counts, self._rate, service))

    def say(self, line: str) -> None:
        """Write the line."""
        print(line, file=self._stream, flush=True)

    def shown(self) -> AbstractContextManager[Any]:
        """Nothing to clear away afterwards."""
        return nullcontext()


class _Terminal:
    """A bar and one line, redrawn in place, with rich."""

    def __init__(self, stream: TextIO) -> None:
        from rich.console import Console  # noqa: PLC0415 - an extra, and only for terminals
        from rich.progress import BarColumn, TextColumn  # noqa: PLC0415 - likewise
        from rich.progress import Progress as Bars  # noqa: PLC0415 - likewise

        columns = (BarColumn(), TextColumn("{task.description}"))
        self._bars = Bars(*columns, console=Console(file=stream), transient=True)
        self._task = self._bars.add_task("starting", total=None)
        self._rate = Rate()

    def show(self, counts: Counts, service: str) -> None:
        self._rate.note(time.monotonic(), counts.embedded + counts.failed)
        done = counts.embedded + counts.failed
        self._bars.update(
            self._task,
            description=sentence(counts, self._rate, service),
            completed=done,
            total=done + counts.left or None,
        )

    def say(self, line: str) -> None:
        self._bars.console.print(line, markup=False, highlight=False)

    def shown(self) -> AbstractContextManager[Any]:
        return self._bars


def sentence(counts: Counts, rate: Rate, service: str) -> str:
    """Return one line with everything."""
    unopened = f" (and {counts.unopened} documents not yet opened)" if counts.unopened else ""
    return (
        f"{counts.embedded} done, {counts.failed} failed, {counts.left} left{unopened}, {rate.per_s:.2f} pages/s, "
        f"time left {rate.time_left(counts)}, {service}"
    )


def progress_on(stream: TextIO) -> Progress:
    """Return the progress that suits a stream."""
    return _Terminal(stream) if stream.isatty() else Lines(stream)
