"""A line for each forward pass, in a file: written inside a contestant, read beside it. Knows no model."""

import json
import os
import time
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path

__all__ = ["TRACE_VARIABLE", "Pass", "Trace", "batch_sizes", "busy_s", "read_trace"]

TRACE_VARIABLE = "BENCH_TRACE"
"""The environment variable that tells a contestant which file to write."""


@dataclass(frozen=True, slots=True)
class Pass:
    """One forward pass. Times are CLOCK_MONOTONIC, one clock for all processes of a machine."""

    start: float
    end: float
    inputs: int
    forward_cpu_s: float | None = None
    """CPU seconds of all forward passes of this process so far, where somebody counts them; `prepare_cpu_s` alike."""
    prepare_cpu_s: float | None = None


class Trace:
    """Appends to the file that the environment names; to none where it names none."""

    def __init__(self) -> None:
        self._path = os.environ.get(TRACE_VARIABLE, os.devnull)

    def add(self, one: Pass) -> None:
        """Append one line. Any thread or process may."""
        with Path(self._path).open("a", encoding="ascii") as file:
            file.write(json.dumps(asdict(one)) + "\n")

    @contextmanager
    def passing(self, inputs: int) -> Iterator[None]:
        """Add a pass for what runs inside."""
        start = time.monotonic()
        yield
        self.add(Pass(start, time.monotonic(), inputs))


def read_trace(path: Path) -> list[Pass]:
    """Return the passes so far, oldest first."""
    if not path.exists():
        return []
    return [Pass(**json.loads(line)) for line in path.read_text("ascii").splitlines()]


def busy_s(passes: Sequence[Pass]) -> float:
    """Return the seconds during which at least one pass ran."""
    busy, until = 0.0, 0.0
    for one in sorted(passes, key=lambda one: one.start):
        busy += max(0.0, one.end - max(one.start, until))
        until = max(until, one.end)
    return busy


def batch_sizes(passes: Sequence[Pass]) -> dict[str, int]:
    """Return how many passes had each size, as JSON wants its keys."""
    sizes = Counter(one.inputs for one in passes)
    return {str(size): sizes[size] for size in sorted(sizes)}
