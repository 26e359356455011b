"""Rounds to medians, ratios and a table. Knows arithmetic; knows no clock and no process."""

from collections.abc import Callable, Iterable, Mapping, Sequence
from statistics import median
from typing import Any, TypeVar

from bench.measure import IDLE, UNDER_LOAD, Measured
from bench.solos import CALIBRATED, Solo

__all__ = ["figures", "percentile", "table"]

One = TypeVar("One")
Key = TypeVar("Key")

_AT = 8
"""Callers at which services are compared; the most there were where nobody ran so many."""


def percentile(values: Sequence[float], part: float) -> float | None:
    """Return the smallest value that at least `part` of all do not exceed; None of nothing."""
    if not values:
        return None
    ordered = sorted(values)
    return ordered[max(0, -(-int(part * 1000) * len(ordered) // 1000) - 1)]


def figures(solos: Sequence[Solo], servers: Iterable[Measured], counts: Mapping[str, Any]) -> dict[str, Any]:
    """Return the named figures; None where what they compare did not run.

    A ratio of two contestants is the median, over the rounds, of the ratio within a round.
    """
    alone = [one for one in solos if one.round > 0]
    waves = [one for one in servers if one.page_s and not one.query_s]
    at = _compared_at(waves)
    stock = {one.round: one.pages_per_s for one in alone if one.contestant == "stock"}
    engine = {one.round: one.pages_per_s for one in alone if one.contestant == "engine"}
    rates = {
        name: {one.round: one.pages_per_s for one in waves if one.contestant == name and one.load == at}
        for name in ("service", "seed", "bentoml", "litserve")
    }
    ours = [one for one in waves if one.contestant == "service" and one.load == at]
    idle = [one for one in servers if one.load == IDLE]
    loaded = [one for one in servers if one.load == UNDER_LOAD]
    calibrated = [one.pages_per_s for one in solos if one.contestant == CALIBRATED]
    swept = [one.pages_per_s for one in solos if one.contestant == "engine" and one.round == 0]
    told: dict[str, Any] = {
        "engine_over_stock": _ratio(engine, stock),
        "service_over_engine": _ratio(rates["service"], engine),
        "calibrated_over_best_of_sweep": max(calibrated) / max(swept) if calibrated and swept else None,
        "compared_at": at,
    }
    for name in ("seed", "bentoml", "litserve"):
        told[f"service_over_{name}"] = _ratio(rates["service"], rates[name])
    told |= {
        "overhead_cpu_ms_per_page": _median(one.overhead_cpu_ms_per_page for one in ours),
        "standing_cpu_ms_per_s": {one.contestant: 1000 * one.cpu_s / one.seconds for one in idle},
        "model_idle_fraction": _median(one.idle_fraction for one in ours),
        "dispatch_ratio": counts.get("dispatch_ratio"),
        "device_bytes_ratio": counts.get("device_bytes_ratio"),
    }
    p99 = {one.contestant: percentile(one.query_s, 0.99) for one in loaded}
    told["query_p99_ms"] = None if (ours_p99 := p99.get("service")) is None else 1000 * ours_p99
    told["query_p99_ms_of_all"] = {name: None if value is None else 1000 * value for name, value in p99.items()}
    told["service_over_others_at_every_load"] = {
        load: {name: _ratio(_rates(waves, "service", load), _rates(waves, name, load)) for name in list(rates)[1:]}
        for load in dict.fromkeys(one.load for one in waves)
    }
    return told


def table(solos: Sequence[Solo], servers: Sequence[Measured]) -> str:
    """Return all contestants under all loads, a line each, as text."""
    names = (
        f"{'pages/s':>8} {'p50 s':>8} {'p95 s':>8} {'p99 s':>8} {'cpu s/page':>10} {'peak MiB':>8} {'idle':>6}  batches"
    )
    lines = [f"{'contestant':<11} {'load':<20} {names}"]
    for (contestant, batch), runs in _grouped(solos, lambda one: (one.contestant, one.batch)).items():
        cpu = median(one.cpu_s / one.pages for one in runs)
        load = f"alone, batches of {batch}"
        lines.append(
            f"{contestant:<11} {load:<20} {median(one.pages_per_s for one in runs):>8.2f} {'':>26} {cpu:>10.3f} "
            f"{max(one.peak_rss_mb for one in runs):>8.0f}"
        )
    for (contestant, load), some in _grouped(servers, lambda one: (one.contestant, one.load)).items():
        seconds = [second for one in some for second in (one.query_s or one.page_s)]
        has_pages = bool(some[0].pages)
        idle = _median(one.idle_fraction for one in some)
        lines.append(
            f"{contestant:<11} {load:<20} "
            f"{_cell(median(one.pages_per_s for one in some) if has_pages else None, 8, 2)} "
            + " ".join(_cell(percentile(seconds, part), 8, 3) for part in (0.5, 0.95, 0.99))
            + f" {_cell(median(one.cpu_s / one.pages for one in some) if has_pages else None, 10, 3)} "
            f"{max(one.peak_rss_mb for one in some):>8.0f} {'' if idle is None else f'{idle:6.1%}':>6}  "
            + " ".join(f"{size}x{count}" for size, count in _added(one.batches for one in some).items())
        )
    return "\n".join(lines)


def _compared_at(waves: Sequence[Measured]) -> str | None:
    loads = {one.load: int(one.load.split()[0]) for one in waves}
    return max(loads, key=lambda load: (loads[load] <= _AT, loads[load] if loads[load] <= _AT else 0), default=None)


def _rates(waves: Sequence[Measured], contestant: str, load: str) -> dict[int, float]:
    return {one.round: one.pages_per_s for one in waves if (one.contestant, one.load) == (contestant, load)}


def _ratio(ours: Mapping[int, float], theirs: Mapping[int, float]) -> float | None:
    return _median(ours[round_] / theirs[round_] for round_ in ours.keys() & theirs.keys())


def _median(values: Iterable[float | None]) -> float | None:
    known = [value for value in values if value is not None]
    return median(known) if known else None


def _grouped(some: Iterable[One], key: Callable[[One], Key]) -> dict[Key, list[One]]:
    groups: dict[Key, list[One]] = {}
    for one in some:
        groups.setdefault(key(one), []).append(one)
    return groups


def _added(batches: Iterable[Mapping[str, int]]) -> dict[str, int]:
    total: dict[str, int] = {}
    for one in batches:
        for size, count in one.items():
            total[size] = total.get(size, 0) + count
    return dict(sorted(total.items(), key=lambda pair: int(pair[0])))


def _cell(value: float | None, width: int, digits: int) -> str:
    return f"{'' if value is None else f'{value:.{digits}f}':>{width}}"
