"""The stock calls behind LitServe, with its own dynamic batching. Runs in the peers' environment only.

Settings as its documentation advises (lightning.ai/docs/litserve, "Batching" and "LitServer"): one worker for one copy
of the model, the fast queue between processes, no request timeout.
"""

import base64
import os
from typing import Any

import litserve
import numpy as np
from numpy.typing import NDArray

from bench.stock import Stock

_PAGES = int(os.environ["BENCH_PAGE_BATCH"])
_Input = tuple[str, str]


class Colqwen(litserve.LitAPI):  # type: ignore[misc]  # LitServe is not in our environment
    """One endpoint for both kinds of input, since a second would be a second copy of the model."""

    def setup(self, device: str) -> None:
        """Load the model, once, in the worker."""
        del device
        self.stock = Stock.from_environment(page_batch=_PAGES)

    def decode_request(self, request: dict[str, str]) -> _Input:
        """Return (kind, payload)."""
        return request["input_type"], request["input"]

    def batch(self, inputs: list[_Input]) -> list[_Input]:
        """Leave them a list: pages differ in size."""
        return inputs

    def predict(self, inputs: list[_Input]) -> list[NDArray[np.float32]]:
        """Embed the pages among them, then the queries."""
        pages = iter(self.stock.pages([base64.b64decode(data) for kind, data in inputs if kind == "image"]))
        queries = iter(self.stock.queries([data for kind, data in inputs if kind == "text"]))
        return [next(pages if kind == "image" else queries) for kind, _ in inputs]

    def unbatch(self, output: list[NDArray[np.float32]]) -> list[NDArray[np.float32]]:
        """Likewise."""
        return output

    def encode_response(self, output: NDArray[np.float32]) -> dict[str, Any]:
        """Base64 of float32 rows, which is far cheaper than numbers."""
        return {"rows": base64.b64encode(output.tobytes()).decode()}


if __name__ == "__main__":
    # Two at the least, as for BentoML; 5 ms to gather a batch, as its documentation's examples have it or less.
    server = litserve.LitServer(
        Colqwen(max_batch_size=max(2, _PAGES), batch_timeout=0.005),
        accelerator=os.environ["BENCH_DEVICE"].partition(":")[0],
        workers_per_device=1,
        timeout=False,
        fast_queue=True,
    )
    server.run(host="127.0.0.1", port=int(os.environ["BENCH_PORT"]), generate_client_file=False, log_level="warning")
