"""Shows how far a backfill is, on a terminal or in a log."""

import time
from collections import deque
from contextlib import AbstractContextManager, nullcontext
from dataclasses import replace
from typing import Any, Final, Protocol, TextIO

from colqueue_client.backfill.records import Counts
from colqueue_client.printable import printable

__all__ = ["Estimate", "Lines", "Progress", "Quiet", "progress_on", "sentence"]

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


class Estimate:
    """Pages per second over the last minute, and how many pages and seconds are left.

    Nobody has counted the pages of a document that is not opened yet. It is taken to have as many pages as the
    documents opened in this run have on average, and 1 before the first is opened.
    """

    def __init__(self) -> None:
        self._seen: deque[tuple[float, int]] = deque()
        self._first: Counts | None = None

    def note(self, now: float, counts: Counts) -> None:
        """Remember how things stand at a moment."""
        if self._first is None:
            self._first = replace(counts)
        self._seen.append((now, counts.embedded + counts.failed))
        while len(self._seen) > 2 and self._seen[1][0] < now - _WINDOW_S:  # noqa: PLR2004 - the ends of the window
            self._seen.popleft()

    @property
    def per_s(self) -> float:
        """0 before anything is known."""
        if not self._seen:
            return 0.0
        (start, before), (end, after) = self._seen[0], self._seen[-1]
        return (after - before) / (end - start) if end > start else 0.0

    def left(self, counts: Counts) -> int:
        """Return how many pages are left, an estimate where documents are not opened yet."""
        return counts.left + round(counts.unopened * self._pages_per_document(counts))

    def time_left(self, counts: Counts) -> str:
        """Return hours, minutes and seconds, or `-` while nothing is known."""
        if not self.per_s:
            return "-"
        seconds = int(self.left(counts) / self.per_s)
        return f"{seconds // 3600}:{seconds // 60 % 60:02}:{seconds % 60:02}"

    def _pages_per_document(self, counts: Counts) -> float:
        first = self._first or counts
        opened = first.unopened - counts.unopened
        return max(1.0, (counts.found - first.found) / opened) if opened > 0 else 1.0


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
    """Writes a line every quarter of a minute, for logs."""

    def __init__(self, stream: TextIO) -> None:
        self._stream = stream
        self._estimate = Estimate()
        self._told_at = -_LINE_EVERY_S

    def show(self, counts: Counts, service: str) -> None:
        """Write a line, if it is time for one."""
        now = time.monotonic()
        self._estimate.note(now, counts)
        if now - self._told_at >= _LINE_EVERY_S:
            self._told_at = now
            self.say(sentence(counts, self._estimate, service))

    def say(self, line: str) -> None:
        """Write the line."""
        print(printable(line), file=self._stream, flush=True)

    def shown(self) -> AbstractContextManager[Any]:
        """Nothing to clear away afterwards."""
        return nullcontext()


class _Terminal:
    """Two lines, redrawn in place with rich: a bar with the time left, and what else is known."""

    def __init__(self, stream: TextIO) -> None:
        from rich.console import Console  # noqa: PLC0415 - an extra, and only for terminals
        from rich.live import Live  # noqa: PLC0415 - likewise

        self._live = Live(console=Console(file=stream), transient=True, auto_refresh=False)
        self._estimate = Estimate()

    def show(self, counts: Counts, service: str) -> None:
        self._estimate.note(time.monotonic(), counts)
        self._live.update(_two_lines(counts, self._estimate, service), refresh=True)

    def say(self, line: str) -> None:
        self._live.console.print(printable(line), markup=False, highlight=False, soft_wrap=True)

    def shown(self) -> AbstractContextManager[Any]:
        return self._live


def _two_lines(counts: Counts, estimate: Estimate, service: str) -> Any:
    from rich.console import Group  # noqa: PLC0415 - an extra, and only for terminals
    from rich.progress_bar import ProgressBar  # noqa: PLC0415 - likewise
    from rich.table import Table  # noqa: PLC0415 - likewise
    from rich.text import Text  # noqa: PLC0415 - likewise

    done = counts.embedded + counts.failed
    total = done + estimate.left(counts)
    about = "about " if counts.unopened else ""
    first = Table.grid(padding=(0, 1), expand=True)
    first.add_column(ratio=1, min_width=10)
    first.add_column(no_wrap=True)
    first.add_row(
        ProgressBar(total=max(total, 1), completed=done),
        Text(f"{done} of {about}{total} pages, {estimate.per_s:.2f}/s, {estimate.time_left(counts)} left"),
    )
    unopened = f"{counts.unopened} documents not yet opened, " if counts.unopened else ""
    second = Text(printable(f"{counts.failed} failed, {unopened}{service}"), no_wrap=True, overflow="ellipsis")
    return Group(first, second)


def sentence(counts: Counts, estimate: Estimate, service: str) -> str:
    """Return one line with everything."""
    left = f"{estimate.left(counts)} left"
    if counts.unopened:
        left = f"about {left} ({counts.unopened} documents not yet opened)"
    return (
        f"{counts.embedded} done, {counts.failed} failed, {left}, {estimate.per_s:.2f} pages/s, "
        f"time left {estimate.time_left(counts)}, {service}"
    )


def progress_on(stream: TextIO) -> Progress:
    """Return the progress that suits a stream."""
    return _Terminal(stream) if stream.isatty() else Lines(stream)
