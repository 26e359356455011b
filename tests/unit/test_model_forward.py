"""When two forward passes agree."""

import pytest
import torch

from worker.model.forward import agree, worst_cosine


def rows(n_tokens, seed=0):
    draw = torch.Generator().manual_seed(seed)
    return torch.nn.functional.normalize(torch.randn(n_tokens, 128, generator=draw), dim=-1)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_rows_that_differ_by_rounding_agree(dtype):
    mine = [rows(5), rows(70)]
    assert agree([one.to(dtype) for one in mine], [(one * (1 + 1e-3)).to(dtype) for one in mine])


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_one_row_of_another_page_is_a_mismatch(dtype):
    mine = [rows(5).to(dtype), rows(70).to(dtype)]
    other = [mine[0], mine[1].clone()]
    other[1][33] = rows(1, seed=9).to(dtype)
    assert not agree(mine, other)


def test_rows_that_are_no_numbers_agree_with_nothing():
    mine = [rows(5)]
    broken = [mine[0] * float("nan")]
    assert not agree(broken, mine)
    assert not agree(broken, broken)


def test_a_stock_pass_without_numbers_says_nothing_against_finite_rows():
    assert agree([rows(5).half()], [rows(5).half() * float("inf")])


def test_the_worst_row_counts():
    mine, other = rows(3), rows(3).clone()
    other[1] = -other[1]
    assert worst_cosine([mine], [other]) == pytest.approx(-1, abs=1e-5)
