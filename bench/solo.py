"""`python -m bench.solo`: one model alone in one process, without HTTP or Redis; prints what it measured as JSON.

`stock` is the colpali-engine loop; `engine` is ours (`bench.engine`).
"""

import argparse
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import orjson
import psutil
from numpy.typing import NDArray

from bench.pages import pages, query
from bench.usage import peak_rss_mb

__all__ = ["REFERENCE_PAGES", "main"]

REFERENCE_PAGES = 2
"""So many pages, and one query, are compared before anything is timed."""

Embed = Callable[[Sequence[bytes]], list[NDArray[np.float32]]]
Contestant = tuple[Embed, Callable[[str], NDArray[np.float32]], int]
"""What embeds pages, what embeds a query, pages a forward pass."""


def main() -> int:
    """Load, warm up, embed, tell."""
    options = _options()
    embed, embed_query, options.batch = (_stock if options.contestant == "stock" else _engine)(options)
    warm = embed(pages(max(REFERENCE_PAGES, options.batch)))
    if options.rows:
        rows = {f"page_{number}": one for number, one in enumerate(warm[:REFERENCE_PAGES])}
        np.savez(options.rows, query=embed_query(query(0)), **rows)  # type: ignore[arg-type]  # its stub forgets names
    images = pages(options.pages)
    started, cpu = time.monotonic(), time.process_time()
    embed(images)
    seconds, cpu = time.monotonic() - started, time.process_time() - cpu
    told = {
        "batch": options.batch,
        "pages": len(images),
        "seconds": seconds,
        "cpu_s": cpu,
        "peak_rss_mb": peak_rss_mb([psutil.Process()]),
    }
    sys.stdout.write(orjson.dumps(told).decode() + "\n")
    return 0


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m bench.solo")
    parser.add_argument("contestant", choices=["stock", "engine"])
    parser.add_argument("model", help="a checkpoint's folder")
    parser.add_argument("--batch", type=int, default=1, help="pages a forward pass; 0: what our calibration finds")
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--dtype", default="float32")
    parser.add_argument("--pages", type=int, default=16)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--rows", type=Path, help="keep the rows of two pages and a query here")
    return parser.parse_args()


def _stock(options: argparse.Namespace) -> Contestant:
    from bench.stock import Stock  # noqa: PLC0415 - only one of the two is to be in this process

    where = {"device": options.device, "dtype": options.dtype}
    stock = Stock(options.model, threads=options.threads, page_batch=options.batch, **where)
    return stock.pages, lambda text: stock.queries([text])[0], options.batch


def _engine(options: argparse.Namespace) -> Contestant:
    from bench.engine import embedded  # noqa: PLC0415 - likewise
    from worker.model.calibrate import chosen, measured  # noqa: PLC0415 - likewise
    from worker.model.colqwen import load  # noqa: PLC0415 - likewise
    from worker.model.options import ModelOptions  # noqa: PLC0415 - likewise

    model = load(
        ModelOptions(name=options.model, device=options.device, dtype=options.dtype, torch_threads=options.threads)
    )
    model.warm_up()  # as the worker does: the fast pass is held against stock, and left where they differ
    batch = options.batch or chosen(measured(model)) // model.prepare_page(pages(1)[0]).tokens

    def embed(images: Sequence[bytes]) -> list[NDArray[np.float32]]:
        return embedded(model, images, batch=batch, threads=options.threads)

    return embed, lambda text: model.embed([model.prepare_query(text)])[0].astype(np.float32, copy=False), batch


if __name__ == "__main__":
    sys.exit(main())
