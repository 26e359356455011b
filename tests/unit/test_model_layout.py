"""The vision tower's order of reading, held against transformers' own."""

import pytest
import torch
from transformers.vision_utils import get_vision_position_ids, get_vision_window_index

from worker.model.layout import vision_layout

CPU = torch.device("cpu")
GRIDS = [[(64, 46)], [(8, 8)], [(2, 2)], [(10, 6), (64, 46), (10, 6)], [(2, 128), (46, 64), (8, 16), (2, 2)]]


def laid_out(grids, *, by_length):
    return vision_layout(grids, merge=2, window=4, device=CPU, by_length=by_length)


def stock_of(grids):
    thw = torch.tensor([(1, *grid) for grid in grids])
    index, ends = get_vision_window_index(thw, 2, 112, 14)
    return index, ends.diff().tolist(), get_vision_position_ids(thw, 2)


def lengths_of(segments):
    return [length for count, length in segments.runs for _ in range(count)]


@pytest.mark.parametrize("grids", GRIDS)
def test_in_the_order_of_the_pages_the_windows_are_those_of_transformers(grids):
    layout, (index, lengths, positions) = laid_out(grids, by_length=False), stock_of(grids)
    assert torch.equal(layout.order, index)
    assert lengths_of(layout.windows) == lengths
    assert torch.equal(layout.positions, positions.view(-1, 4, 2)[index].flatten(0, 1))
    assert layout.pages.gather is None


@pytest.mark.parametrize("grids", GRIDS)
def test_by_length_the_same_windows_come_shortest_first(grids):
    layout, (index, lengths, positions) = laid_out(grids, by_length=True), stock_of(grids)
    windows = sorted(index.split([length // 4 for length in lengths]), key=len)
    assert torch.equal(layout.order, torch.cat(windows))
    assert lengths_of(layout.windows) == sorted(lengths)
    assert len(layout.windows.runs) == len(set(lengths))
    assert torch.equal(layout.positions, positions.view(-1, 4, 2)[layout.order].flatten(0, 1))


@pytest.mark.parametrize("by_length", [True, False])
@pytest.mark.parametrize("grids", GRIDS)
def test_the_way_back_is_the_way_back(grids, by_length):
    layout = laid_out(grids, by_length=by_length)
    assert torch.equal(layout.order[layout.back], torch.arange(len(layout.order)))


@pytest.mark.parametrize("grids", GRIDS)
def test_pages_mixed_by_length_are_gathered_for_attention_to_the_whole_page(grids):
    layout = laid_out(grids, by_length=True)
    sizes = [height * width for height, width in grids]
    assert lengths_of(layout.pages) == sizes
    page_of_token = torch.arange(len(grids)).repeat_interleave(torch.tensor(sizes) // 4)
    page_of_patch = page_of_token[layout.order].repeat_interleave(4)
    gathered = page_of_patch if layout.pages.gather is None else page_of_patch[layout.pages.gather]
    assert gathered.tolist() == sorted(gathered.tolist())
