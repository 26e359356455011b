"""Whether a contestant computes what colpali-engine computes, asked before it is timed. Knows arrays and answers."""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import httpx2
import numpy as np

from bench.callers import Call
from bench.contestants import Running
from bench.dialects import Rows
from bench.errors import BenchError
from bench.pages import page, query

__all__ = ["HALF_TOLERANCE", "TOLERANCE", "Reference", "largest_difference"]

TOLERANCE = 1e-5
"""The most by which a float32 value may differ from the stock loop's at batch 1; rows have length 1."""

HALF_TOLERANCE = 0.05
"""Likewise for 16 bits, where two correct passes round differently through some 70 blocks; a wrong one is far off."""


def largest_difference(ours: Rows, stock: Rows, what: str, tolerance: float = TOLERANCE) -> float:
    """Return the largest difference of any value. Raises `BenchError` beyond `tolerance`, or where shapes differ."""
    if ours.shape != stock.shape:
        raise BenchError(f"{what}: {ours.shape} rows, stock has {stock.shape}")
    difference = float(np.abs(ours - stock).max())
    if not difference <= tolerance:
        raise BenchError(f"{what} differs from stock by {difference:.1e}, more than {tolerance:.0e}")
    return difference


@dataclass(frozen=True, slots=True)
class Reference:
    """The stock loop's rows of the first pages and the first query."""

    rows: Mapping[str, Rows]
    tolerance: float = TOLERANCE

    @classmethod
    def read(cls, path: Path, tolerance: float = TOLERANCE) -> "Reference":
        """Read what `bench.solo` wrote."""
        with np.load(path) as archive:
            return cls(dict(archive), tolerance)

    def check(self, other: Mapping[str, Rows], what: str) -> float:
        """Compare all of them."""
        return max(
            largest_difference(other[name], rows, f"{what}, {name}", self.tolerance) for name, rows in self.rows.items()
        )

    def check_server(self, contestant: Running) -> float:
        """Ask for each page and the query, and compare."""
        answered = {}
        with httpx2.Client(base_url=contestant.url, timeout=300, trust_env=False) as http:
            for name in self.rows:
                call = _call(contestant, name)
                answer = http.post(call.path, content=call.body, headers=call.headers)
                if answer.status_code != httpx2.codes.OK:
                    raise BenchError(f"{contestant.name} answered {answer.status_code}: {answer.text[:300]}")
                (answered[name],) = contestant.dialect.rows(answer.content)
        return self.check(answered, contestant.name)


def _call(contestant: Running, name: str) -> Call:
    if name == "query":
        return contestant.dialect.query_call(query(0))
    (call,) = contestant.dialect.page_calls([page(int(name.removeprefix("page_")))])
    return call
