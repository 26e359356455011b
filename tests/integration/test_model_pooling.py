"""Pooling behind our seam, held against colpali-engine's own pooler on rows of the tiny checkpoint."""

from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
import torch

from worker.model.libraries import HierarchicalTokenPooler


@pytest.fixture(scope="module")
def rows(tiny_model, page_bytes):
    (rows,) = tiny_model.embed([tiny_model.prepare_page(page_bytes(640, 480))])
    return rows


def upstream(rows, factor):
    (pooled,) = HierarchicalTokenPooler().pool_embeddings([torch.tensor(rows)], pool_factor=factor)
    return pooled.numpy()


@pytest.mark.parametrize("factor", [2, 3, 7, 1000])
def test_a_pooled_page_is_what_colpali_engine_makes_of_it(tiny_model, rows, factor):
    pooled = tiny_model.pool(rows, factor)
    np.testing.assert_array_equal(pooled, upstream(rows, factor))
    assert 1 <= len(pooled) <= max(len(rows) // factor, 1)
    np.testing.assert_allclose(np.linalg.norm(pooled, axis=1), 1, atol=1e-6)


def test_rows_of_half_precision_stay_so(tiny_model, rows):
    pooled = tiny_model.pool(rows.astype(np.float16), 2)
    assert pooled.dtype == np.float16
    np.testing.assert_array_equal(pooled, upstream(rows.astype(np.float16), 2))


def test_a_single_row_has_no_neighbour_to_merge_with(tiny_model, rows):
    """colpali-engine refuses it."""
    np.testing.assert_array_equal(tiny_model.pool(rows[:1], 3), rows[:1])


def test_pages_may_be_pooled_side_by_side(tiny_model, rows):
    factors = [2, 3, 4, 5] * 4
    with ThreadPoolExecutor(4) as threads:
        pooled = list(threads.map(lambda factor: tiny_model.pool(rows, factor), factors))
    for mine, factor in zip(pooled, factors, strict=True):
        np.testing.assert_array_equal(mine, upstream(rows, factor))
