"""The late-interaction score of ColBERT and ColPali. Knows arrays only."""

import numpy as np
from numpy.typing import NDArray

__all__ = ["maxsim"]


def maxsim(query: NDArray[np.float32], page: NDArray[np.float32]) -> float:
    """Return the sum over the query's rows of their largest dot product with any of the page's rows.

    Both are n_rows x dim, the page with one row at least. The formula of ColPali (arXiv 2407.01449, section 4.1).
    """
    return float((query @ page.T).max(axis=1).sum())
