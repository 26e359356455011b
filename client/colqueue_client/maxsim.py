"""The late-interaction score of ColBERT and ColPali, and rows of any precision made ready for it. Knows arrays only."""

import numpy as np
from numpy.typing import NDArray

from colqueue_client.wire import Rows

__all__ = ["as_float32", "maxsim"]


def maxsim(query: NDArray[np.float32], page: NDArray[np.float32]) -> float:
    """Return the sum over the query's rows of their largest dot product with any of the page's rows.

    Both are n_rows x dim, the page with one row at least. The formula of ColPali (arXiv 2407.01449, section 4.1).
    """
    return float((query @ page.T).max(axis=1).sum())


def as_float32(rows: Rows) -> NDArray[np.float32]:
    """Return rows of any precision that a job may ask for as float32; int8 and packed signs come back with length 1."""
    if rows.dtype == np.uint8:  # eight signs a byte, the first value in the highest bit
        signs = np.unpackbits(rows, axis=1).astype(np.float32) * 2 - 1
        return signs / np.float32(signs.shape[1] ** 0.5)
    numbers = rows.astype(np.float32)
    if rows.dtype == np.int8:  # each row has a scale of its own, which did not travel
        numbers /= np.linalg.norm(numbers, axis=1, keepdims=True)
    return numbers
