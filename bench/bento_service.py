"""The stock calls behind BentoML, with its own adaptive batching. Runs in the peers' environment only.

Settings as its documentation advises (docs.bentoml.com, "Adaptive batching" and "Workers"): one worker for one copy
of the model, an endpoint each for pages and queries, no limit on time that could answer 503.
"""

import base64
import os

import bentoml
import numpy as np
from numpy.typing import NDArray

from bench.stock import Stock

_NO_LIMIT_MS = 3_600_000
_PAGES = int(os.environ["BENCH_PAGE_BATCH"])


@bentoml.service(workers=1, threads=1, traffic={"timeout": 3600}, logging={"access": {"enabled": False}})
class Colqwen:
    """Two batched endpoints over one model."""

    def __init__(self) -> None:
        self.stock = Stock.from_environment(page_batch=_PAGES)

    # BentoML takes no batch of one: where one page at a time is fastest, it hands over two and the stock loop takes
    # them one by one.
    @bentoml.api(batchable=True, max_batch_size=max(2, _PAGES), max_latency_ms=_NO_LIMIT_MS)  # type: ignore[untyped-decorator]  # not in our environment
    def pages(self, images: list[str]) -> list[str]:
        """Base64 image files to base64 float32 rows."""
        return _answers(self.stock.pages([base64.b64decode(image) for image in images]))

    @bentoml.api(batchable=True, max_batch_size=8, max_latency_ms=_NO_LIMIT_MS)  # type: ignore[untyped-decorator]  # likewise
    def queries(self, texts: list[str]) -> list[str]:
        """Texts to base64 float32 rows."""
        return _answers(self.stock.queries(texts))


def _answers(embedded: list[NDArray[np.float32]]) -> list[str]:
    return [base64.b64encode(rows.tobytes()).decode() for rows in embedded]
