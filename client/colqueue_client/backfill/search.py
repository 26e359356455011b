"""Score the pages of a backfill by exact MaxSim and return the best of them."""

import heapq
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from itertools import islice
from typing import Final

import numpy as np
from numpy.typing import NDArray

from colqueue_client.backfill.load import EmbeddedPage
from colqueue_client.maxsim import as_float32

__all__ = ["Match", "best_pages"]

# Scored in one matrix product.
_AT_ONCE: Final = 32


@dataclass(frozen=True, slots=True, order=True)
class Match:
    """A page and the sum, over the query's rows, of their largest dot product with any row of the page's."""

    score: float
    document: str
    page: int


def best_pages(query: NDArray[np.float32], pages: Iterable[EmbeddedPage], count: int) -> list[Match]:
    """Return the `count` pages of the highest score, best first. Reads every page, and holds a few dozen.

    Pages kept as int8 or as packed signs are scored as what they still say, the query as it is.
    """
    return heapq.nlargest(count, _score(query, pages))


def _score(query: NDArray[np.float32], pages: Iterable[EmbeddedPage]) -> Iterator[Match]:
    iterator = iter(pages)
    while group := list(islice(iterator, _AT_ONCE)):
        starts = np.cumsum([0, *(len(page.embedding) for page in group[:-1])])
        products = query @ np.concatenate([as_float32(page.embedding) for page in group]).T
        scores = np.maximum.reduceat(products, starts, axis=1).sum(axis=0)
        for page, score in zip(group, scores, strict=True):
            yield Match(float(score), page.document, page.page)
