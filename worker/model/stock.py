"""The stock forward pass, less the hidden states it keeps: what the fast one is measured by. Knows the network."""

from collections.abc import Sequence

import torch
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence

from worker.model.libraries import ColQwen2_5, Qwen2_5_VLModel
from worker.model.pixels import Patchifier
from worker.model.prepare import Features

__all__ = ["StockForward"]


class StockForward:
    """A `Forward` that runs `network` as transformers does: padded batches, pages apart from queries."""

    def __init__(self, network: ColQwen2_5, patchifier: Patchifier, pad_id: int) -> None:
        self._network = network
        self._patchifier = patchifier
        self._pad_id = pad_id

    @torch.inference_mode()
    def __call__(self, inputs: Sequence[Features]) -> list[Tensor]:
        """Return the rows of each input, (n_tokens x 128), on the device."""
        rows: dict[int, Tensor] = {}
        for is_page in (True, False):
            places = [i for i, one in enumerate(inputs) if (one.pixels is not None) == is_page]
            if places:
                rows.update(zip(places, self._forward([inputs[i] for i in places]), strict=True))
        return [rows[i] for i in range(len(inputs))]

    def _forward(self, inputs: list[Features]) -> list[Tensor]:
        """Embed pages only or queries only."""
        network, device = self._network, self._network.device
        ids = _padded([one.ids for one in inputs], self._pad_id)
        mask = _padded([torch.ones_like(one.ids) for one in inputs], 0)
        pages = [one.pixels for one in inputs if one.pixels is not None]
        grids = torch.tensor([(1, *self._patchifier.grid(page)) for page in pages]) if pages else None
        # M-RoPE, told apart by kind of token. Given for texts, too: they would else count their padding as positions.
        positions, _ = network.get_rope_index(
            ids, (ids == network.config.image_token_id).int(), image_grid_thw=grids, attention_mask=mask
        )
        patches = [self._patchifier.stock_values(page.to(device)) for page in pages]
        hidden = Qwen2_5_VLModel.forward(
            network,
            input_ids=ids.to(device),
            attention_mask=mask.to(device),
            position_ids=positions.to(device),
            pixel_values=torch.cat(patches) if patches else None,
            image_grid_thw=None if grids is None else grids.to(device),
            use_cache=False,
            return_dict=True,
        ).last_hidden_state
        projected = network.custom_text_proj(hidden)
        projected = projected / projected.norm(dim=-1, keepdim=True)
        return [row[-len(one.ids) :] for row, one in zip(projected, inputs, strict=True)]


def _padded(tensors: list[Tensor], value: int) -> Tensor:
    return pad_sequence(tensors, batch_first=True, padding_value=value, padding_side="left")
