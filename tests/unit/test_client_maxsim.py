import numpy as np

from colqueue_client.maxsim import as_float32, maxsim


def test_maxsim_sums_each_query_rows_best_page_row():
    query = np.array([[1, 0], [0, 1]], np.float32)
    page = np.array([[0.5, 0.1], [0.2, 0.9], [0.4, 0.3]], np.float32)

    assert maxsim(query, page) == np.float32(0.5) + np.float32(0.9)


def test_maxsim_equals_its_definition_on_random_unit_rows():
    random = np.random.default_rng(7)
    query, page = (random.normal(size=(rows, 128)).astype(np.float32) for rows in (17, 700))
    expected = sum(max(float(np.dot(q, p)) for p in page) for q in query)

    assert abs(maxsim(query, page) - expected) < 1e-3
    assert maxsim(query, page) != maxsim(page, query)


def test_every_precision_of_a_job_can_be_scored():
    """The forms are those of docs/storage.md."""
    rows = np.random.default_rng(1).normal(size=(5, 128)).astype(np.float32)
    rows /= np.linalg.norm(rows, axis=1, keepdims=True)

    np.testing.assert_allclose(as_float32(rows.astype(np.float16)), rows, atol=1e-3)
    int8 = np.round(rows * 127 / np.abs(rows).max(axis=1, keepdims=True)).astype(np.int8)
    np.testing.assert_allclose(as_float32(int8), rows, atol=2e-3)
    np.testing.assert_allclose(as_float32(np.packbits(rows > 0, axis=1)), np.sign(rows) / 128**0.5, atol=1e-6)
