import numpy as np

from colqueue_client.maxsim import maxsim


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
