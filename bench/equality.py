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

__all__ = ["TOLERANCE", "Reference", "largest_difference"]

TOLERANCE = 1e-5
"""The most by which a float32 value may differ from the stock loop's at batch 1; rows have length 1."""


def largest_difference(ours: Rows, stock: Rows, what: str) -> float:
    """Return the largest difference of any value. Raises `BenchError` beyond `TOLERANCE`, or where shapes differ."""
    if ours.shape != stock.shape:
        raise BenchError(f"{what}: {ours.shape} rows, stock has {stock.shape}")
    difference = float(np.abs(ours - stock).max())
    if not difference <= TOLERANCE:
        raise BenchError(f"{what} differs from stock by {difference:.1e}, more than {TOLERANCE:.0e}")
    return difference


@dataclass(frozen=True, slots=True)
class Reference:
    """The stock loop's rows of the first pages and the first query."""

    rows: Mapping[str, Rows]

    @classmethod
    def read(cls, path: Path) -> "Reference":
        """Read what `bench.solo` wrote."""
        with np.load(path) as archive:
            return cls(dict(archive))

    def check(self, other: "Reference", what: str) -> float:
        """Compare all of them."""
        return max(largest_difference(other.rows[name], rows, f"{what}, {name}") for name, rows in self.rows.items())

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
        return self.check(Reference(answered), contestant.name)


def _call(contestant: Running, name: str) -> Call:
    if name == "query":
        return contestant.dialect.query_call(query(0))
    (call,) = contestant.dialect.page_calls([page(int(name.removeprefix("page_")))])
    return call
