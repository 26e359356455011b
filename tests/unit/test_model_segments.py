"""Attention within segments, held against attention to each segment by itself."""

import pytest
import torch
from torch.nn.functional import scaled_dot_product_attention

from worker.model.segments import attend, on_device

CPU = torch.device("cpu")


def states(n_tokens, heads):
    return torch.randn(n_tokens, heads, 8, generator=torch.Generator().manual_seed(n_tokens * heads))


def alone(query, key, value, *, causal):
    grouped = [part.transpose(0, 1) for part in (query, key, value)]
    rows = scaled_dot_product_attention(*grouped, is_causal=causal, enable_gqa=True)
    return rows.transpose(0, 1).flatten(1)


@pytest.mark.parametrize("causal", [True, False])
@pytest.mark.parametrize("lengths", [[5], [3, 3, 3], [1, 2, 2, 7, 2]])
@pytest.mark.parametrize("key_heads", [1, 2, 4])
def test_a_token_sees_its_own_segment_only(lengths, key_heads, causal):
    query, key, value = (
        states(sum(lengths), 4),
        states(sum(lengths), key_heads),
        states(sum(lengths) + 1, key_heads)[1:],
    )
    attended = attend(query, key, value, on_device(lengths, CPU), causal=causal)
    parts = zip(*(part.split(lengths) for part in (query, key, value)), strict=True)
    assert torch.allclose(attended, torch.cat([alone(*part, causal=causal) for part in parts]), atol=1e-6)


def test_segments_that_lie_scattered_are_brought_together_and_back():
    gather = torch.tensor([1, 3, 5, 0, 2, 4, 6])
    query, key, value = states(7, 2), states(7, 2) * 2, states(7, 2) * 3
    attended = attend(query, key, value, on_device([3, 4], CPU, gather), causal=False)
    for places in (gather[:3], gather[3:]):
        expected = alone(query[places], key[places], value[places], causal=False)
        assert torch.allclose(attended[places], expected, atol=1e-6)


def test_neighbours_of_the_same_length_are_one_run():
    segments = on_device([4, 4, 2, 4, 4, 4], CPU)
    assert segments.runs == ((2, 4), (1, 2), (3, 4))
    assert segments.starts.tolist() == [0, 4, 8, 10, 14, 18, 22]
    assert segments.longest == 4
