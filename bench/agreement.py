"""`python -m bench.agreement`: how well the smaller forms of a page keep its MaxSim scores. Knows arrays; no service.

The model's weights are random: this proves the arithmetic and compares the forms with one another on real rows of the
real network in small. What a form costs a search can only be told with trained weights.
"""

import argparse
import sys
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from statistics import median
from typing import Any, Final

import numpy as np
import orjson
from numpy.typing import NDArray

from bench.machine import machine_facts
from bench.pages import DISTINCT, page, query
from bench.terminal import say
from colqueue_client.maxsim import maxsim
from shared.codecs import DIM, StoredRows
from shared.jobs import OutputDtype
from worker.model.colqwen import ColQwen, load
from worker.model.options import ModelOptions
from worker.model.seam import Rows
from worker.model.tiny import SHAPES, random_checkpoint
from worker.precision import at_precision

__all__ = ["Agreement", "agreement", "hamming_maxsim", "main", "restored", "table"]

_ROOT: Final = Path(__file__).parents[1]

Floats = NDArray[np.float32]


@dataclass(frozen=True, slots=True)
class Agreement:
    """How the scores of one form of the pages stand to those of float32, over all queries and pages.

    `error_mean` and `error_max` are relative, and None where a form's scores are on a scale of their own.
    """

    error_mean: float | None
    error_max: float | None
    top_1: float
    rank_correlation: float


def main(arguments: Sequence[str] | None = None) -> int:
    """Embed, score, print, write."""
    parser = argparse.ArgumentParser(prog="python -m bench.agreement")
    parser.add_argument("--shape", choices=SHAPES, default="midsize")
    parser.add_argument("--pages", type=int, default=DISTINCT)
    parser.add_argument("--queries", type=int, default=64)
    parser.add_argument("--json", type=Path, default=_ROOT / "bench" / "results" / "agreement.json")
    options = parser.parse_args(arguments)
    model = load(ModelOptions(name=str(random_checkpoint(_ROOT / "var" / "bench" / "models", options.shape))))
    say(f"{options.pages} pages and {options.queries} queries ...")
    pages = [_rows(model, model.prepare_page(page(number))) for number in range(options.pages)]
    queries = [_rows(model, model.prepare_query(query(number))) for number in range(options.queries)]
    say("scores ...")
    exact = _scores(maxsim, queries, pages)
    second, best = np.sort(exact, axis=1)[:, -2:].T
    told = {
        "shape": options.shape,
        "pages": len(pages),
        "queries": len(queries),
        "median_lead_of_the_best_page": float(np.median(best / second - 1)),
        "forms": _forms(model, pages, queries, exact),
        "pooling": {str(factor): _pooling(model, pages, factor) for factor in (2, 3)},
        "machine": machine_facts(),
    }
    options.json.parent.mkdir(parents=True, exist_ok=True)
    options.json.write_bytes(orjson.dumps(told, option=orjson.OPT_INDENT_2) + b"\n")
    sys.stdout.write(f"{table(told['forms'])}\n{orjson.dumps(told['pooling']).decode()}\n{options.json}\n")
    return 0


def agreement(scores: Floats, exact: Floats, *, same_scale: bool = True) -> Agreement:
    """Compare scores, queries x pages, with those of float32."""
    errors = np.abs(scores / exact - 1)
    return Agreement(
        float(errors.mean()) if same_scale else None,
        float(errors.max()) if same_scale else None,
        float((scores.argmax(axis=1) == exact.argmax(axis=1)).mean()),
        float(np.mean([_spearman(some, others) for some, others in zip(scores, exact, strict=True)])),
    )


def restored(rows: StoredRows) -> Floats:
    """Return rows of length 1 from any form; from sign bits, as near as signs come."""
    if rows.dtype == np.uint8:
        return (np.unpackbits(rows.view(np.uint8), axis=1).astype(np.float32) * 2 - 1) / np.float32(DIM**0.5)
    wide = rows.astype(np.float32)
    return wide / np.linalg.norm(wide, axis=1, keepdims=True) if rows.dtype == np.int8 else wide


def hamming_maxsim(query_bits: NDArray[np.uint8], page_bits: NDArray[np.uint8]) -> float:
    """Return MaxSim where both are sign bits, by the share of equal bits, as morphik-core's database function."""
    equal = DIM - np.bitwise_count(query_bits[:, None] ^ page_bits[None]).sum(axis=2, dtype=np.int64)
    return float(equal.max(axis=1).sum() / DIM)


def _rows(model: ColQwen, prepared: Any) -> Floats:
    (rows,) = model.embed([prepared])
    return rows.astype(np.float32, copy=False)


def _forms(model: ColQwen, pages: list[Floats], queries: list[Floats], exact: Floats) -> list[dict[str, Any]]:
    def form(name: str, kept: Sequence[StoredRows], *, same_scale: bool = True) -> dict[str, Any]:
        scores = _scores(maxsim, queries, [restored(rows) for rows in kept])
        return _line(name, kept, agreement(scores, exact, same_scale=same_scale))

    def pooled(factor: int) -> list[Rows]:
        return [model.pool(rows, factor) for rows in pages]

    signs = _all_at(pages, OutputDtype.BINARY)
    both = _scores(hamming_maxsim, _all_at(queries, OutputDtype.BINARY), signs)
    # Of a fixed scale the rows need no division by their length, and err more: why int8 has a scale for each row.
    fixed = [np.rint(rows * 127).astype(np.int8) for rows in pages]
    fixed_scores = _scores(maxsim, queries, [rows.astype(np.float32) / 127 for rows in fixed])
    return [
        form("float32", pages),
        form("float16", _all_at(pages, OutputDtype.FLOAT16)),
        form("int8", _all_at(pages, OutputDtype.INT8)),
        _line("int8, one scale for all (not offered)", fixed, agreement(fixed_scores, exact)),
        form("binary, query in float32", signs, same_scale=False),
        _line("binary, query too", signs, agreement(both, exact, same_scale=False)),
        form("pool_factor 2, float16", _all_at(pooled(2), OutputDtype.FLOAT16)),
        form("pool_factor 3, float16", _all_at(pooled(3), OutputDtype.FLOAT16)),
        form("pool_factor 3, int8", _all_at(pooled(3), OutputDtype.INT8)),
    ]


def _all_at(some: Sequence[Rows], output_dtype: OutputDtype) -> list[Any]:
    return [at_precision(rows, output_dtype) for rows in some]


def _line(name: str, kept: Sequence[StoredRows], agreed: Agreement) -> dict[str, Any]:
    return {"form": name, "bytes_a_page": round(np.mean([rows.nbytes for rows in kept]))} | asdict(agreed)


def _scores(score: Callable[[Any, Any], float], queries: Sequence[Any], pages: Sequence[Any]) -> Floats:
    return np.array([[score(one, other) for other in pages] for one in queries], dtype=np.float32)


def _spearman(some: Floats, others: Floats) -> float:
    return float(np.corrcoef(_ranks(some), _ranks(others))[0, 1])


def _ranks(values: Floats) -> NDArray[np.float64]:
    """Equal values share their mean rank."""
    below, equal = values[:, None] > values, values[:, None] == values
    return np.asarray(below.sum(axis=1) + equal.sum(axis=1) / 2)


def _pooling(model: ColQwen, pages: list[Floats], factor: int) -> dict[str, float]:
    """Return what pooling costs a page, and how long it keeps the model's thread from the interpreter at once."""
    took, kept_away = [], []
    for rows in pages:
        started = time.perf_counter()
        model.pool(rows, factor)
        took.append(time.perf_counter() - started)
        with _longest_pause() as pauses:
            model.pool(rows, factor)
        kept_away += pauses
    return {"median_ms": 1000 * median(took), "longest_pause_ms": 1000 * median(kept_away)}


@contextmanager
def _longest_pause() -> Iterator[list[float]]:
    """Fill a list with the longest time for which another thread, that wants the interpreter, did not have it."""
    longest: list[float] = []
    over = threading.Event()

    def want() -> None:
        last, most = time.perf_counter(), 0.0
        while not over.is_set():
            now = time.perf_counter()
            last, most = now, max(most, now - last)
        longest.append(most)

    thread = threading.Thread(target=want)
    thread.start()
    try:
        yield longest
    finally:
        over.set()
        thread.join()


def table(forms: Sequence[Mapping[str, Any]]) -> str:
    """Return the forms, the first of them float32, a line each, as Markdown."""
    lines = [
        "| form | bytes a page | of float32 | score error, mean | max | same best page | rank correlation |",
        "|---|---|---|---|---|---|---|",
    ]
    for form in forms:
        errors = ["own scale" if form[it] is None else f"{form[it]:.2%}" for it in ("error_mean", "error_max")]
        share = form["bytes_a_page"] / forms[0]["bytes_a_page"]
        lines.append(
            f"| {form['form']} | {form['bytes_a_page']:,} | {share:.1%} | {' | '.join(errors)} "
            f"| {form['top_1']:.0%} | {form['rank_correlation']:.3f} |"
        )
    return "\n".join(lines)


if __name__ == "__main__":
    sys.exit(main())
