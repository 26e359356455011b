"""What one run of the benchmark does, from its command line. Knows options and defaults; does nothing."""

import argparse
import os
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Final

from bench.contestants import SERVERS
from bench.full_size import SIZES

__all__ = ["SOLO", "Plan", "read_plan"]

SOLO: Final[tuple[str, ...]] = ("stock", "engine")
_LATEST: Final = Path(__file__).parent / "results" / "latest.json"


@dataclass(frozen=True, slots=True)
class Plan:
    """How much of everything."""

    only: tuple[str, ...] = (*SOLO, *SERVERS)
    rounds: int = 3
    pages: int = 16
    """A caller, as morphik-core sends them."""

    callers: tuple[int, ...] = (1, 8)
    """In each round."""

    callers_once: tuple[int, ...] = (32,)
    """In the first round only: minutes a contestant."""

    solo_pages: int = 24
    batches: tuple[int, ...] = (1, 2, 4)
    """Pages a forward pass, for the sweep of the stock loop and of our engine."""

    queries: int = 40
    queries_under_load: int = 100
    query_every_s: float = 0.4
    loading_callers: int = 8
    warm_pages: int = 12
    """BentoML learns from its first dozen batches."""

    idle_s: float = 10
    """Without any load, for what a contestant costs by merely being there."""

    shape: str = "midsize"
    count_shape: str = "real_depth"
    threads: int = 1
    device: str = "cpu"
    dtype: str = "float32"
    json: Path = _LATEST


def read_plan(arguments: Sequence[str]) -> Plan:
    """Read the command line; exits where it cannot be read."""
    parser = argparse.ArgumentParser(
        prog="python -m bench", description="colqueue beside its alternatives, in one run on this machine"
    )
    everything = Plan()
    parser.add_argument(
        "--quick", action="store_true", help="smallest loads, tiny checkpoint, no peers: proves it runs"
    )
    parser.add_argument("--only", help=f"some of {','.join(everything.only)}")
    parser.add_argument("--rounds", type=int, help=f"default {everything.rounds}")
    parser.add_argument("--pages", type=int, help=f"a caller's pages, default {everything.pages}")
    parser.add_argument("--callers", help="every round's numbers of callers, default 1,8")
    parser.add_argument("--callers-once", help="those of the first round only, default 32; '' for none")
    parser.add_argument("--shape", choices=SIZES, help="of the checkpoint's weights")
    parser.add_argument("--device", help="of every contestant's model, default cpu")
    parser.add_argument("--dtype", choices=["float32", "bfloat16", "float16"], help="likewise, default float32")
    parser.add_argument("--json", type=Path, help=f"default {_LATEST}")
    read = parser.parse_args(arguments)
    plan = _quick() if read.quick else everything
    named = ("rounds", "pages", "shape", "device", "dtype", "json")
    changes = {name: value for name in named if (value := getattr(read, name)) is not None}
    for name in ("callers", "callers_once"):
        if (told := getattr(read, name)) is not None:
            changes[name] = tuple(int(number) for number in told.split(",") if number)
    if read.only:
        changes["only"] = tuple(read.only.split(","))
        if unknown := set(changes["only"]) - set(everything.only):
            parser.error(f"no contestant is called {', '.join(sorted(unknown))}")
    return replace(plan, threads=len(os.sched_getaffinity(0)), **changes)


def _quick() -> Plan:
    return Plan(
        only=("stock", "engine", "seed", "service"),
        rounds=1,
        pages=2,
        callers=(2,),
        callers_once=(),
        solo_pages=3,
        batches=(1,),
        queries=3,
        queries_under_load=4,
        query_every_s=0.05,
        loading_callers=1,
        warm_pages=1,
        idle_s=1,
        shape="tiny",
        count_shape="tiny",
    )
