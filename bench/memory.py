"""`python -m bench.memory`: what our processes hold while pages never run out. Knows a curve; judges no speed."""

import argparse
import shutil
import sys
import tempfile
import threading
import time
from collections.abc import Iterator, Sequence
from contextlib import chdir, contextmanager
from pathlib import Path
from typing import Any, Final

import orjson

from bench.callers import queried_under_load
from bench.contestants import Running, Setting, running
from bench.machine import machine_facts
from bench.pages import pages, query
from bench.terminal import say
from bench.usage import tree
from worker.model.tiny import SHAPES, random_checkpoint

__all__ = ["GROWTH", "main"]

GROWTH = 1.1
"""The worker's memory is bounded where the second half's peak is at most so many times the first half's."""

_ROOT: Final = Path(__file__).parents[1]
_SAMPLE_S: Final = 0.5


def main(arguments: Sequence[str] | None = None) -> int:
    """Load, sample, write. Returns 1 where the worker's memory grew."""
    parser = argparse.ArgumentParser(prog="python -m bench.memory")
    parser.add_argument("--seconds", type=int, default=120)
    parser.add_argument("--callers", type=int, default=16, help="of 16 pages each, again and again")
    parser.add_argument("--shape", choices=SHAPES, default="tiny", help="a fast model turns over the most pages")
    parser.add_argument("--json", type=Path, default=_ROOT / "bench" / "results" / "memory.json")
    options = parser.parse_args(arguments)
    target, var = options.json.absolute(), _ROOT / "var" / "bench"
    model = random_checkpoint(var / "models", options.shape)
    scratch = Path(tempfile.mkdtemp(prefix="memory-", dir=var))
    with chdir(scratch), running("service", Setting(model, scratch, threads=2, page_batch=1)) as service:
        say(f"{options.callers} callers for {options.seconds} s ...")
        told = _curve(service, options.seconds, options.callers)
    shutil.rmtree(scratch)
    target.parent.mkdir(parents=True, exist_ok=True)
    target.write_bytes(orjson.dumps(told | {"machine": machine_facts()}, option=orjson.OPT_INDENT_2) + b"\n")
    summary = {name: value for name, value in told.items() if name != "curve"}
    sys.stdout.write(f"{orjson.dumps(summary).decode()}\n{target}\n")
    return 0 if told["bounded"] else 1


def _curve(service: Running, seconds: int, callers: int) -> dict[str, Any]:
    ask, sent = service.dialect, service.dialect.page_calls(pages(16))
    ticks = [ask.query_call(query(number)) for number in range(seconds)]
    with _sampled(service.pids) as curve:
        load = queried_under_load(service.url, sent, ticks, callers=callers, pages_each=16, every_s=1.0)
    # Not while pages run out at the end.
    full = [sample for sample in curve if sample["s"] <= seconds]
    early, late = (
        max(sample["worker"] for sample in half) for half in (full[: len(full) // 2], full[len(full) // 2 :])
    )
    return {"pages": load.pages, "growth": late / early, "bounded": late <= GROWTH * early, "curve": curve}


@contextmanager
def _sampled(pids: dict[str, int]) -> Iterator[list[dict[str, float]]]:
    """Fill a list with the seconds since the start and each part's resident MiB."""
    samples: list[dict[str, float]] = []
    over, started = threading.Event(), time.monotonic()

    def sample() -> None:
        while not over.wait(_SAMPLE_S):
            rss = {name: sum(one.memory_info().rss for one in tree([pid])) / 2**20 for name, pid in pids.items()}
            samples.append({"s": round(time.monotonic() - started, 2)} | rss)

    thread = threading.Thread(target=sample)
    thread.start()
    try:
        yield samples
    finally:
        over.set()
        thread.join()


if __name__ == "__main__":
    sys.exit(main())
