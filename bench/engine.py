"""Our engine as a loop: pages prepared ahead in threads, batches started one ahead on one. Knows no HTTP or Redis."""

from collections import deque
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from itertools import islice

import numpy as np
from numpy.typing import NDArray

from worker.model.colqwen import ColQwen
from worker.model.seam import Prepared, Rows

__all__ = ["embedded"]


def embedded(model: ColQwen, images: Sequence[bytes], *, batch: int, threads: int) -> list[NDArray[np.float32]]:
    """Return one multi-vector an image file, `batch` pages a forward pass, prepared by `threads` threads."""
    rows: list[Rows] = []
    running: Callable[[], list[Rows]] = list
    with ThreadPoolExecutor(threads) as pool:
        ready = _prepared(model, images, pool, ahead=batch + threads)
        while some := list(islice(ready, batch)):
            started = model.start(some)
            rows += running()
            running = started
        rows += running()
    return [one.astype(np.float32, copy=False) for one in rows]


def _prepared(model: ColQwen, images: Sequence[bytes], pool: ThreadPoolExecutor, ahead: int) -> Iterator[Prepared]:
    """Yield the pages in order, with some more in preparation and never all of them."""
    waiting = iter(images)
    coming: deque[Future[Prepared]] = deque(pool.submit(model.prepare_page, image) for image in islice(waiting, ahead))
    while coming:
        first = coming.popleft().result()
        coming.extend(pool.submit(model.prepare_page, image) for image in islice(waiting, 1))
        yield first
