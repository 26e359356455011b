"""One load on one running contestant, measured. Knows clocks and counters; knows no other contestant."""

from collections.abc import Sequence
from dataclasses import dataclass

from bench.callers import Load
from bench.contestants import Running
from bench.trace import Pass, batch_sizes, busy_s, read_trace
from bench.usage import cpu_s, peak_rss_mb, tree

__all__ = ["IDLE", "UNDER_LOAD", "Measured", "Meter"]

IDLE = "idle"
UNDER_LOAD = "queries under load"
"""Two of the loads, which figures are made of by name."""


@dataclass(frozen=True, slots=True)
class Measured:
    """What one contestant did under one load in one round."""

    contestant: str
    load: str
    round: int
    pages: int
    seconds: float
    page_s: Sequence[float]
    """Seconds each caller waited for its pages; `query_s` for each query."""
    query_s: Sequence[float]
    cpu_s: float
    """Of all the contestant's processes, Redis included, the callers not."""
    peak_rss_mb: float
    batches: dict[str, int]
    """Forward passes by how many inputs they had."""
    idle_s: float | None
    """Seconds from the first request to the end of the last forward pass during which no pass ran. All the load's
    pages are sent at once, so there is work queued all that time. None where pages are not all sent at the start."""
    prepare_cpu_s: float | None = None
    """Our worker only: CPU of its preparation, and of its forward passes with torch's threads."""
    forward_cpu_s: float | None = None

    @property
    def pages_per_s(self) -> float:
        """Pages answered a second."""
        return self.pages / self.seconds

    @property
    def overhead_cpu_ms_per_page(self) -> float | None:
        """CPU outside preparation and forward pass: HTTP, Redis, Celery, encoding."""
        if self.prepare_cpu_s is None or self.forward_cpu_s is None or not self.pages:
            return None
        return 1000 * (self.cpu_s - self.prepare_cpu_s - self.forward_cpu_s) / self.pages

    @property
    def idle_fraction(self) -> float | None:
        """Idle seconds of those with work queued."""
        return None if self.idle_s is None else self.idle_s / self.seconds


class Meter:
    """Reads what a contestant has used before a load and after it."""

    def __init__(self, contestant: Running) -> None:
        self._contestant = contestant
        self._passes = read_trace(contestant.trace)
        self._cpu_s = cpu_s(tree(contestant.pids.values()))

    def measured(self, load: Load, name: str, round_: int) -> Measured:
        """Return what `load`, which has ended, took."""
        processes = tree(self._contestant.pids.values())
        used = cpu_s(processes) - self._cpu_s
        passes = read_trace(self._contestant.trace)[len(self._passes) :]
        wave = bool(load.page_s) and not load.query_s and bool(passes)
        return Measured(
            self._contestant.name,
            name,
            round_,
            load.pages,
            load.end - load.start,
            load.page_s,
            load.query_s,
            used,
            peak_rss_mb(processes),
            batch_sizes(passes),
            passes[-1].end - load.start - busy_s(passes) if wave else None,
            **self._split(passes),
        )

    def _split(self, passes: Sequence[Pass]) -> dict[str, float]:
        if not (self._passes and passes) or passes[-1].forward_cpu_s is None:
            return {}
        before, after = self._passes[-1], passes[-1]
        names = ("prepare_cpu_s", "forward_cpu_s")
        return {name: getattr(after, name) - getattr(before, name) for name in names}
