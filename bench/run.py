"""Carries out a plan: every contestant in turn in every round, so that a busy minute hits all. Measures nothing."""

from collections.abc import Callable, Iterator
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import Any

from bench.callers import Load, idle, paged, queried, queried_under_load
from bench.contestants import SERVERS, Running, Setting, running
from bench.equality import HALF_TOLERANCE, TOLERANCE, Reference
from bench.errors import BenchError
from bench.full_size import checkpoint
from bench.measure import IDLE, UNDER_LOAD, Measured, Meter
from bench.pages import pages, query
from bench.plan import SOLO, Plan
from bench.solos import Solo, counted, solo
from bench.terminal import say
from colqueue_client.errors import LaunchError
from worker.model.tiny import random_checkpoint

__all__ = ["Results", "run"]


@dataclass(slots=True)
class Results:
    """All that was measured, raw."""

    solos: list[Solo] = field(default_factory=list)
    servers: list[Measured] = field(default_factory=list)
    counts: dict[str, Any] = field(default_factory=dict)
    largest_difference: dict[str, float] = field(default_factory=dict)
    """From the stock loop's rows, of each contestant."""
    not_run: dict[str, str] = field(default_factory=dict)
    """Why a contestant is missing."""


def run(plan: Plan, models: Path, scratch: Path) -> Results:
    """Return what the contestants of `plan` did; checkpoints are kept in `models`, logs in `scratch`."""
    results = Results()
    say(f"Building the {plan.shape} checkpoint where it is missing ...")
    model = checkpoint(plan.shape, models, plan.device, plan.dtype)
    setting = Setting(model, scratch, plan.threads, page_batch=1, device=plan.device, dtype=plan.dtype)
    reference = _sweep(plan, setting, results)
    best = _best_batch(results.solos)
    setting = replace(setting, page_batch=best["stock"])
    say(f"Best batches: {best}")
    for round_ in range(1, plan.rounds + 1):
        # With one batch size only, the sweep was the first round already.
        for name in (name for name in SOLO if name in plan.only and (round_ > 1 or len(plan.batches) > 1)):
            say(f"Round {round_}: {name} alone")
            results.solos.append(solo(name, setting, batch=best[name], pages=plan.solo_pages, round_=round_))
        for name in (name for name in SERVERS if name in plan.only and name not in results.not_run):
            try:
                say(f"Round {round_}: {name} starts")
                with running(name, setting) as contestant:
                    results.largest_difference[name] = reference.check_server(contestant)
                    results.servers += _loads(plan, contestant, round_)
            except (BenchError, LaunchError) as error:
                results.not_run[name] = error.message
                say(f"{name} did not run: {error.message}")
    if "engine" in plan.only:
        say(f"Counting operators on the {plan.count_shape} checkpoint ...")
        results.counts = counted(random_checkpoint(models, plan.count_shape), plan.threads)
    return results


def _sweep(plan: Plan, setting: Setting, results: Results) -> Reference:
    """Run the models alone at each batch size, and hold our engine's rows against the stock loop's at batch 1."""
    rows = {name: setting.directory / f"{name}.npz" for name in SOLO}
    for batch in plan.batches:
        for name in (name for name in SOLO if name in plan.only or name == "stock"):
            say(f"Sweep: {name} alone, batches of {batch}")
            kept = rows[name] if batch == plan.batches[0] else None
            round_, count = int(len(plan.batches) == 1), max(plan.solo_pages // 2, batch)
            results.solos.append(solo(name, setting, batch=batch, pages=count, round_=round_, rows=kept))
    if "engine" in plan.only:
        say("Sweep: engine alone, batches as the worker's calibration finds best")
        results.solos.append(solo("engine", setting, batch=0, pages=plan.solo_pages // 2, calibrated=True))
    reference = Reference.read(rows["stock"], tolerance=TOLERANCE if plan.dtype == "float32" else HALF_TOLERANCE)
    if "engine" in plan.only:
        results.largest_difference["engine"] = reference.check(Reference.read(rows["engine"]).rows, "engine")
    return reference


def _best_batch(solos: list[Solo]) -> dict[str, int]:
    return {
        name: max((one for one in solos if one.contestant == name), key=lambda one: one.pages_per_s).batch
        for name in {one.contestant for one in solos}
    }


def _loads(plan: Plan, contestant: Running, round_: int) -> Iterator[Measured]:
    ask, url = contestant.dialect, contestant.url
    sent, queries = ask.page_calls(pages(plan.pages)), [ask.query_call(query(n)) for n in range(plan.queries)]
    for warm in pages(plan.warm_pages):
        paged(url, ask.page_calls([warm]), callers=1, pages_each=1)
    queried(url, queries[: plan.warm_pages])

    def measured(name: str, load: Callable[[], Load]) -> Measured:
        say(f"Round {round_}: {contestant.name}, {name}")
        meter = Meter(contestant)
        return meter.measured(load(), name, round_)

    for callers in plan.callers + (plan.callers_once if round_ == 1 else ()):
        wave = partial(paged, url, sent, callers=callers, pages_each=plan.pages)
        yield measured(f"{callers} callers", wave)
    yield measured("queries", partial(queried, url, queries))
    if round_ == 1:
        yield measured(IDLE, partial(idle, plan.idle_s))
        many = [ask.query_call(query(n)) for n in range(plan.queries_under_load)]
        both = partial(queried_under_load, url, sent, many, callers=plan.loading_callers, pages_each=plan.pages)
        yield measured(UNDER_LOAD, partial(both, every_s=plan.query_every_s))
