"""The service that colqueue replaces, from its contract: one process, everything in turn inside the request.

Written anew from what its callers saw (no code of it is here): batches of 4 images or 8 texts, formed within one
request; JSON of plain numbers; padding rows not removed.
"""

import asyncio
import base64
import os
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numpy as np
import uvicorn
from fastapi import FastAPI
from numpy.typing import NDArray
from pydantic import BaseModel

from bench.stock import Stock

__all__ = ["main"]


class Body(BaseModel):
    """What callers send."""

    input_type: str
    inputs: list[str]


def main() -> None:
    """Serve the checkpoint BENCH_MODEL on port BENCH_PORT of loopback."""
    stock = Stock.from_environment(page_batch=4)
    one_thread = ThreadPoolExecutor(1)
    app = FastAPI()

    def embed(body: Body) -> list[NDArray[np.float32]]:
        if body.input_type == "text":
            return stock.queries(body.inputs)
        return stock.pages([base64.b64decode(data) for data in body.inputs])

    @app.post("/embeddings")
    async def embeddings(body: Body) -> dict[str, Any]:
        rows = await asyncio.get_running_loop().run_in_executor(one_thread, embed, body)
        return {"embeddings": [one.tolist() for one in rows]}

    uvicorn.run(app, host="127.0.0.1", port=int(os.environ["BENCH_PORT"]), log_level="warning")


if __name__ == "__main__":
    main()
