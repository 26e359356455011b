import numpy as np
import pytest

from shared.jobs import OutputDtype
from worker.precision import at_precision


def unit_rows(number, dtype=np.float32, seed=0):
    rows = np.random.default_rng(seed).standard_normal((number, 128))
    return (rows / np.linalg.norm(rows, axis=1, keepdims=True)).astype(dtype)


@pytest.mark.parametrize("asked", [None, OutputDtype.FLOAT32])
@pytest.mark.parametrize("dtype", [np.float32, np.float16])
def test_a_models_rows_are_left_alone_where_nothing_narrower_is_asked_for(asked, dtype):
    rows = unit_rows(3, dtype)
    assert at_precision(rows, asked) is rows


def test_float16_errs_by_less_than_its_last_place():
    rows = unit_rows(500)
    narrow = at_precision(rows, OutputDtype.FLOAT16)
    assert narrow.dtype == np.float16
    assert np.abs(narrow - rows).max() <= 2**-12  # half of the last place of what is below 1


@pytest.mark.parametrize("dtype", [np.float32, np.float16])
def test_int8_over_its_length_is_the_row_again(dtype):
    rows = unit_rows(500, dtype)
    whole = at_precision(rows, OutputDtype.INT8)
    assert whole.dtype == np.int8
    np.testing.assert_array_equal(np.abs(whole).max(axis=1), 127)
    back = whole / np.linalg.norm(whole.astype(np.float32), axis=1, keepdims=True)
    largest = np.abs(rows).max(axis=1, keepdims=True)
    # Half a step of rounding, and what that changes of the length.
    assert (np.abs(back - rows) <= 0.75 * largest / 127).all()


def test_int8_is_symmetric():
    rows = unit_rows(20)
    np.testing.assert_array_equal(at_precision(-rows, OutputDtype.INT8), -at_precision(rows, OutputDtype.INT8))


def test_int8_of_rows_without_length_is_zero():
    """No model of ours makes one."""
    np.testing.assert_array_equal(at_precision(np.zeros((2, 128), np.float32), OutputDtype.INT8), 0)


@pytest.mark.parametrize("dtype", [np.float32, np.float16])
def test_binary_is_a_one_for_each_value_above_zero_the_first_in_the_highest_bit(dtype):
    row = np.full((1, 128), -0.1, dtype)
    row[0, [0, 9, 127]] = 0.1
    row[0, 64] = 0
    (signs,) = at_precision(row, OutputDtype.BINARY)
    assert signs.dtype == np.uint8
    assert signs.tolist() == [0b1000_0000, 0b0100_0000, *[0] * 13, 0b0000_0001]


def test_binary_are_the_bits_that_pgvector_makes_of_a_row_above_zero():
    """Which are, in text, a 0 or a 1 for each value in its order."""
    rows = unit_rows(5)
    for bits, row in zip(at_precision(rows, OutputDtype.BINARY), rows, strict=True):
        assert "".join(f"{byte:08b}" for byte in bits) == "".join("1" if value > 0 else "0" for value in row)


@pytest.mark.parametrize("asked", OutputDtype)
def test_no_rows_are_no_rows_in_every_form(asked):
    assert len(at_precision(np.empty((0, 128), np.float32), asked)) == 0
