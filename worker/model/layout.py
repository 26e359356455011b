"""The order in which the vision tower reads a batch's patches: window by window. Knows grids; knows no pixels.

Depends on the pages' grids alone, so it is worked out once for pages of the same sizes.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise

import torch
from torch import Tensor

from worker.model.segments import Segments, carried, on_device

__all__ = ["VisionLayout", "vision_layout"]


@dataclass(frozen=True, slots=True)
class VisionLayout:
    """All tensors are on the device; a token is a visual token, a square of patches."""

    order: Tensor
    """The place in the pages of each token read, int64 (n_tokens)."""

    back: Tensor
    """The way back from `order`."""

    positions: Tensor
    """Row and column of each patch, in the order read, int64 (n_patches x 2)."""

    windows: Segments
    """Of patches."""

    pages: Segments
    """Of patches."""


def vision_layout(
    grids: Sequence[tuple[int, int]], *, merge: int, window: int, device: torch.device, by_length: bool
) -> VisionLayout:
    """Lay out pages of `grids` patches (height, width).

    A token is `merge` patches wide, a window `window` tokens. `by_length` brings windows of equal size together,
    across pages, for attention that takes only such at once.
    """
    windows, positions, base = [], [], 0
    for page, (height, width) in enumerate(grids):
        rows, columns = height // merge, width // merge
        tokens = torch.arange(base, base + rows * columns).view(rows, columns)
        base += rows * columns
        windows += [
            (page, tokens[top : top + window, left : left + window].flatten())
            for top in range(0, rows, window)
            for left in range(0, columns, window)
        ]
        patches = torch.cartesian_prod(torch.arange(height), torch.arange(width))
        patches = patches.view(rows, merge, columns, merge, 2).transpose(1, 2)
        positions.append(patches.reshape(rows * columns, merge**2, 2))
    if by_length:
        windows.sort(key=lambda one: len(one[1]))
    order = torch.cat([tokens for _, tokens in windows])
    pages_read = torch.cat([torch.full((len(tokens) * merge**2,), page) for page, tokens in windows])
    mixed = any(page > following for page, following in pairwise(page for page, _ in windows))
    return VisionLayout(
        order=carried(order, device),
        back=carried(order.argsort(), device),
        positions=carried(torch.cat(positions)[order].flatten(0, 1), device),
        windows=on_device([len(tokens) * merge**2 for _, tokens in windows], device),
        pages=on_device(
            [height * width for height, width in grids],
            device,
            pages_read.argsort(stable=True) if mixed else None,
        ),
    )
