"""Runs `bench.solo` and `bench.counts` in processes of their own and reads what they print. Knows no server."""

import os
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import orjson

from bench.contestants import Setting
from bench.errors import BenchError

__all__ = ["CALIBRATED", "Solo", "counted", "solo"]

_ROOT: Final = Path(__file__).parents[1]


CALIBRATED: Final = "calibrated"
"""Our engine with the batch that the worker's calibration finds."""


@dataclass(frozen=True, slots=True)
class Solo:
    """What one model did alone."""

    contestant: str
    batch: int
    round: int
    pages: int
    seconds: float
    cpu_s: float
    peak_rss_mb: float

    @property
    def pages_per_s(self) -> float:
        """Pages embedded a second."""
        return self.pages / self.seconds


def solo(  # noqa: PLR0913 - all of what decides the figure
    contestant: str,
    setting: Setting,
    *,
    batch: int,
    pages: int,
    round_: int = 0,
    rows: Path | None = None,
    calibrated: bool = False,
) -> Solo:
    """Run one contestant; keep its rows in `rows` for the comparison."""
    options = ["--batch", str(0 if calibrated else batch), "--pages", str(pages), "--threads", str(setting.threads)]
    options += ["--device", setting.device, "--dtype", setting.dtype]
    kept = [] if rows is None else ["--rows", str(rows)]
    told = _run(["-m", "bench.solo", contestant, str(setting.model), *options, *kept], setting.threads)
    return Solo(CALIBRATED if calibrated else contestant, round=round_, **told)


def counted(model: Path, threads: int) -> dict[str, Any]:
    """Return `bench.counts` of a checkpoint."""
    return _run(["-m", "bench.counts", str(model)], threads)


def _run(arguments: list[str], threads: int) -> dict[str, Any]:
    environment = os.environ | {"PYTHONPATH": str(_ROOT), "OMP_NUM_THREADS": str(threads)}
    done = subprocess.run(  # noqa: S603 - our own command line
        [sys.executable, *arguments], env=environment, capture_output=True, text=True, check=False
    )
    if done.returncode != 0:
        raise BenchError(f"{' '.join(arguments[1:3])} failed: {done.stderr.strip()[-800:]}")
    told: dict[str, Any] = orjson.loads(done.stdout.splitlines()[-1])
    return told
