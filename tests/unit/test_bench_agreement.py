import numpy as np
import pytest

from bench.agreement import agreement, hamming_maxsim, restored, table
from colqueue_client.maxsim import maxsim
from shared.jobs import OutputDtype
from worker.precision import at_precision

EXACT = np.array([[1, 2, 3], [6, 5, 4]], np.float32)


def unit_rows(number, seed):
    rows = np.random.default_rng(seed).standard_normal((number, 128)).astype(np.float32)
    return rows / np.linalg.norm(rows, axis=1, keepdims=True)


def test_scores_agree_with_themselves():
    same = agreement(EXACT, EXACT)
    assert (same.error_mean, same.error_max, same.top_1) == (0, 0, 1)
    assert same.rank_correlation == pytest.approx(1)


def test_errors_are_relative_and_the_best_page_and_the_order_are_those_of_each_query():
    scores = np.array([[1.1, 2, 3], [4, 5, 6]], np.float32)
    told = agreement(scores, EXACT)
    assert told.error_max == pytest.approx(0.5)
    assert told.error_mean == pytest.approx((0.1 + 2 / 6 + 2 / 4) / 6)
    assert told.top_1 == 0.5
    assert told.rank_correlation == pytest.approx(0)


def test_a_scale_of_its_own_has_an_order_and_no_error():
    told = agreement(10 * EXACT, EXACT, same_scale=False)
    assert (told.error_mean, told.error_max, told.top_1) == (None, None, 1)


@pytest.mark.parametrize(("form", "within"), [(OutputDtype.FLOAT16, 1e-3), (OutputDtype.INT8, 0.01)])
def test_restored_rows_score_as_the_rows_do(form, within):
    query, page = unit_rows(5, 0), unit_rows(40, 1)
    assert maxsim(query, restored(at_precision(page, form))) == pytest.approx(maxsim(query, page), rel=within)


def test_sign_bits_are_restored_to_signs_of_length_1():
    rows = unit_rows(4, 0)
    signs = restored(at_precision(rows, OutputDtype.BINARY))
    np.testing.assert_array_equal(np.sign(signs), np.sign(rows))
    np.testing.assert_allclose(np.linalg.norm(signs, axis=1), 1, rtol=1e-6)


def test_hamming_maxsim_is_the_largest_share_of_equal_bits_summed():
    query = np.array([[0xFF] * 16, [0] * 16], np.uint8)
    page = np.array([[0xFF] * 8 + [0] * 8, [0xFF] * 15 + [0]], np.uint8)
    assert hamming_maxsim(query, page) == pytest.approx(120 / 128 + 64 / 128)


def test_the_table_has_a_line_a_form_and_says_where_a_scale_differs():
    exact = {"form": "float32", "bytes_a_page": 4000, "error_mean": 0.0, "error_max": 0.0}
    signs = {"form": "binary", "bytes_a_page": 125, "error_mean": None, "error_max": None}
    lines = table([one | {"top_1": 0.5, "rank_correlation": 0.75} for one in (exact, signs)]).splitlines()
    assert [line.count("|") for line in lines] == [8] * 4
    assert lines[2:] == [
        "| float32 | 4,000 | 100.0% | 0.00% | 0.00% | 50% | 0.750 |",
        "| binary | 125 | 3.1% | own scale | own scale | 50% | 0.750 |",
    ]
