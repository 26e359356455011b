"""`python -m bench`: colqueue beside its alternatives. Reads a plan, has it run, writes a table and JSON."""

import os
import shutil
import sys
import tempfile
from collections.abc import Sequence
from contextlib import chdir
from dataclasses import asdict
from pathlib import Path
from typing import Any, Final

import orjson

from bench.machine import machine_facts
from bench.plan import Plan, read_plan
from bench.report import figures, table
from bench.run import Results, run

__all__ = ["main"]

_VAR: Final = Path(__file__).parents[1] / "var" / "bench"


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the plan of the command line. Returns 1 where one of the contestants could not run."""
    plan = read_plan(sys.argv[1:] if arguments is None else arguments)
    target, before = plan.json.absolute(), machine_facts()
    _VAR.mkdir(parents=True, exist_ok=True)
    # In a folder of its own, so that no developer's .env is read; its logs stay where something went wrong.
    scratch = Path(tempfile.mkdtemp(prefix="run-", dir=_VAR))
    with chdir(scratch):
        results = run(plan, _VAR / "models", scratch)
    told = figures(results.solos, results.servers, results.counts)
    _write(target, plan, results, told, before | {"load_average_after": os.getloadavg()})
    sys.stdout.write(f"\n{table(results.solos, results.servers)}\n\n")
    for name, value in told.items():
        sys.stdout.write(f"{name:<34} {value:.3f}\n" if isinstance(value, float) else f"{name:<34} {value}\n")
    for name, reason in results.not_run.items():
        sys.stdout.write(f"NOT RUN: {name}: {reason}\n")
    sys.stdout.write(f"\nEvery round: {target}\n")
    if results.not_run:
        sys.stdout.write(f"Logs: {scratch}\n")
        return 1
    shutil.rmtree(scratch)
    return 0


def _write(target: Path, plan: Plan, results: Results, told: dict[str, Any], machine: dict[str, Any]) -> None:
    everything = told | {
        "machine": machine,
        "plan": {name: value for name, value in asdict(plan).items() if name != "json"},
        "alone": [asdict(one) | {"pages_per_s": one.pages_per_s} for one in results.solos],
        "services": [
            asdict(one)
            | {
                "pages_per_s": one.pages_per_s,
                "overhead_cpu_ms_per_page": one.overhead_cpu_ms_per_page,
                "idle_fraction": one.idle_fraction,
            }
            for one in results.servers
        ],
        "counts": results.counts,
        "largest_difference": results.largest_difference,
        "not_run": results.not_run,
    }
    target.parent.mkdir(parents=True, exist_ok=True)
    target.write_bytes(orjson.dumps(everything, option=orjson.OPT_INDENT_2, default=str) + b"\n")


if __name__ == "__main__":
    sys.exit(main())
