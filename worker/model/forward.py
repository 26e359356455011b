"""What a forward pass is, and whether two of them agree. Knows neither of the two."""

from collections.abc import Sequence
from typing import Protocol

import torch
from torch import Tensor
from torch.nn import functional

from worker.model.prepare import Features

__all__ = ["Forward", "agree", "worst_cosine"]

# What two correct passes may differ by: rounding, where a wrong mask, position or window costs far more.
_LEAST_COSINE = {torch.float32: 0.9999, torch.float16: 0.99, torch.bfloat16: 0.97}


class Forward(Protocol):
    """From inputs to rows. Called from one thread only; rows do not depend on the neighbours, save by rounding."""

    def __call__(self, inputs: Sequence[Features]) -> list[Tensor]:
        """Return the rows of each input, unit vectors (n_tokens x 128), on the device."""


def worst_cosine(rows: Sequence[Tensor], others: Sequence[Tensor]) -> float:
    """Return the least cosine of a row with its counterpart; NaN where a row is no number."""
    pairs = ((one.float(), other.float()) for one, other in zip(rows, others, strict=True))
    return float(torch.cat([functional.cosine_similarity(*pair, dim=-1) for pair in pairs]).min())


def agree(rows: Sequence[Tensor], stock: Sequence[Tensor]) -> bool:
    """Return whether `rows` are the rows of `stock`, up to rounding in their type.

    Where stock has no numbers itself (float16 can overflow in it), it says nothing against finite rows.
    """
    if not all(one.isfinite().all() for one in stock):
        return all(one.isfinite().all() for one in rows)
    return worst_cosine(rows, stock) >= _LEAST_COSINE[stock[0].dtype]
