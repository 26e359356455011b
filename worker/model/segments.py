"""Attention within the segments of a packed row: windows, pages, texts. Knows their lengths; knows no network."""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache
from itertools import groupby
from typing import cast

import torch
from torch import Tensor
from torch.nn import functional
from torch.nn.attention.varlen import varlen_attn

from worker.model.device import has_flash_attention

__all__ = ["Segments", "attend", "carried", "on_device"]


@dataclass(frozen=True, slots=True)
class Segments:
    """Where a packed row's segments lie: one after the other, `gather` first bringing them there where they do not."""

    runs: tuple[tuple[int, int], ...]
    """Neighbours of the same length, as (how many, length)."""

    starts: Tensor
    """Where each segment starts, and the end, int32 (n_segments + 1), on the device."""

    gather: Tensor | None = None
    """The places of the segments' tokens in the row, int64 (n_tokens)."""

    scatter: Tensor | None = None
    """The way back from `gather`."""

    @property
    def longest(self) -> int:
        """Return the length of the longest segment."""
        return max(length for _, length in self.runs)


def on_device(lengths: Sequence[int], device: torch.device, gather: Tensor | None = None) -> Segments:
    """Return segments of these lengths, in this order, for tensors on `device`; `gather` is on the CPU."""
    runs = tuple((len(list(run)), length) for length, run in groupby(lengths))
    starts = torch.tensor([0, *lengths]).cumsum(0).int()
    if gather is None:
        return Segments(runs, carried(starts, device))
    return Segments(runs, carried(starts, device), carried(gather, device), carried(gather.argsort(), device))


def carried(tensor: Tensor, device: torch.device) -> Tensor:
    """Return `tensor` on `device`; a GPU fetches it while it computes what came before, and nobody waits."""
    if device.type != "cuda":
        return tensor.to(device)
    # never run: no GPU was at hand
    copying, computing = _copy_stream(device), torch.cuda.current_stream(device)
    with torch.cuda.stream(copying):
        there = tensor.pin_memory().to(device, non_blocking=True)
    computing.wait_stream(copying)
    there.record_stream(computing)  # or its memory would be given away while it is still read
    return there


@cache
def _copy_stream(device: torch.device) -> torch.cuda.Stream:  # never run: no GPU was at hand
    return torch.cuda.Stream(device)  # type: ignore[no-untyped-call]  # torch.cuda is half typed


def attend(query: Tensor, key: Tensor, value: Tensor, segments: Segments, *, causal: bool) -> Tensor:
    """Return (n_tokens x heads * width): every token's attention to its own segment, only backwards where `causal`.

    `query` is (n_tokens x heads x width), `key` and `value` the same with as many heads or a divisor of it.
    """
    grouped = query.shape[1] != key.shape[1]
    if has_flash_attention(query.device, query.dtype):  # never run: no GPU was at hand
        attended = varlen_attn(
            query,
            key,
            value,
            segments.starts,
            segments.starts,
            segments.longest,
            segments.longest,
            window_size=(-1, 0) if causal else (-1, -1),
            enable_gqa=grouped,
            num_splits=1,  # else the longest neighbour decides in which order an input's sums are taken
        )
        return torch.flatten(cast("Tensor", attended), 1)
    if segments.gather is not None:
        query, key, value = (states[segments.gather] for states in (query, key, value))
    parts, start = [], 0
    for count, length in segments.runs:
        end = start + count * length
        # segments x heads x tokens x width
        queries, keys, values = (
            states[start:end].view(count, length, *states.shape[1:]).transpose(1, 2) for states in (query, key, value)
        )
        part = functional.scaled_dot_product_attention(queries, keys, values, is_causal=causal, enable_gqa=grouped)
        parts.append(part.transpose(1, 2).reshape(end - start, -1))
        start = end
    row = parts[0] if len(parts) == 1 else torch.cat(parts)
    return row if segments.scatter is None else row[segments.scatter]
