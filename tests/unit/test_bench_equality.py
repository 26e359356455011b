"""What the benchmark takes for a wrong answer."""

import numpy as np
import pytest

from bench.equality import Reference, largest_difference
from bench.errors import BenchError

ROWS = np.full((3, 128), 0.1, np.float32)


def test_rounding_is_no_difference():
    assert largest_difference(ROWS + np.float32(2e-6), ROWS, "a page") == pytest.approx(2e-6, rel=0.1)


@pytest.mark.parametrize(
    "rows",
    [ROWS + np.float32(2e-5), ROWS[:2], np.full_like(ROWS, np.nan)],
    ids=["another value", "a missing row", "not a number"],
)
def test_anything_more_stops_the_run(rows):
    with pytest.raises(BenchError, match="page_0"):
        Reference({"page_0": ROWS}).check({"page_0": rows}, "engine")
