"""Fewer rows a page: colpali-engine's hierarchical token pooling. Knows rows; knows no page and no job."""

import torch

from worker.model.libraries import HierarchicalTokenPooler
from worker.model.seam import Rows

__all__ = ["pool"]

_POOLER = HierarchicalTokenPooler()


def pool(rows: Rows, factor: int) -> Rows:
    """Return `max(n_rows // factor, 1)` rows, fewer where rows are alike: the means of clusters, of length 1.

    All rows take part, those of the prompt among them, as in `HierarchicalTokenPooler.pool_embeddings`. Thread-safe.
    """
    if len(rows) == 1:  # which the pooler refuses
        return rows
    (pooled,) = _POOLER.pool_embeddings([torch.from_numpy(rows)], pool_factor=factor)
    fewer: Rows = pooled.numpy()
    return fewer
