"""Writes what `colqueue up` tells the person who started it."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from colqueue_client.maxsim import maxsim
from colqueue_client.printable import printable

if TYPE_CHECKING:  # settings need the extra `up`; other commands use `table` without it
    from colqueue_client.launch.settings import Secret

__all__ = ["Embedded", "FirstEmbed", "addresses", "table"]


@dataclass(frozen=True, slots=True)
class Embedded:
    """One multi-vector (n_rows x dim) and the wall time of its request."""

    rows: NDArray[np.float32]
    ms: float

    def columns(self) -> list[str]:
        """Return rows, dims and milliseconds as the table shows them."""
        n_rows, dim = self.rows.shape
        return [str(n_rows), str(dim), f"{self.ms:,.0f}"]


@dataclass(frozen=True, slots=True)
class FirstEmbed:
    """What came back for the sample: one `Embedded` a page, one request each, and one for the query."""

    query_text: str
    pages: Sequence[Embedded]
    query: Embedded
    model: str

    def __str__(self) -> str:
        scores = [maxsim(self.query.rows, page.rows) for page in self.pages]
        rows = [
            [f"page {number}", *page.columns(), f"{score:.3f}"]
            for number, (page, score) in enumerate(zip(self.pages, scores, strict=True), start=1)
        ]
        rows.append(["query", *self.query.columns(), ""])
        if self.model == "tiny":
            meaning = "`tiny` has random weights: these scores prove the plumbing and say nothing about the pages."
        else:
            meaning = f"Best match: page {int(np.argmax(scores)) + 1}."
        return "\n".join(
            [
                f'Query: "{self.query_text}"',
                "",
                table(["input", "rows", "dims", "ms", "MaxSim"], rows),
                "",
                meaning,
            ]
        )


def table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """Return aligned columns, the first flush left, the others flush right."""
    rows = [[printable(cell) for cell in row] for row in rows]
    widths = [max(map(len, column)) for column in zip(head, *rows, strict=True)]
    lines = [head, ["-" * width for width in widths], *rows]
    return "\n".join(
        "  ".join(
            cell.ljust(width) if column == 0 else cell.rjust(width)
            for column, (cell, width) in enumerate(zip(line, widths, strict=True))
        ).rstrip()
        for line in lines
    )


def addresses(*, url: str, flower_url: str, redis: str, key: "Secret", login: "Secret") -> str:
    """Return where everything listens, what it asks for, and a command to paste."""
    return f"""Serving.
  API     {url}   (documentation: {url}/docs)
  Flower  {flower_url}   (user and password: {login.shown}, {login.source})
  Redis   {redis}
  Key     {key.shown}   ({key.source})
  Logs    var/log

Try it:
  curl -s {url}/embeddings -H "Authorization: Bearer {key.shown}" -H "Content-Type: application/json" \\
    -d '{{"input_type": "text", "inputs": ["Who is supplied first in a drought?"]}}'

Ctrl-C to stop."""
