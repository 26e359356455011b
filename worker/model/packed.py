"""The fast forward pass: pages and queries end to end in one row, without padding. Knows the network's structure.

Computes what `StockForward` computes, to rounding. Waits for the device nowhere.
"""

from collections.abc import Sequence
from functools import lru_cache
from typing import Any

import torch
from torch import Tensor

from worker.model.blocks import EAGER, Block, Dense, Steps, joined, norm
from worker.model.device import has_flash_attention
from worker.model.layout import VisionLayout, vision_layout
from worker.model.libraries import ColQwen2_5
from worker.model.pixels import Patchifier
from worker.model.prepare import Features
from worker.model.segments import carried, on_device

__all__ = ["PackedForward"]

# Batches of the same sizes of pages in the same order; a layout holds 60 KB a page.
_LAYOUTS = 64


class PackedForward:
    """A `Forward` on the weights of `network`, which can still be run itself."""

    def __init__(
        self, network: ColQwen2_5, patchifier: Patchifier, *, wide_tail: int = 0, steps: Steps = EAGER
    ) -> None:
        """`wide_tail`: so many of the vision tower's last blocks, and what follows in it, compute in float32."""
        self._network = network
        self._patchifier = patchifier
        self._vision_blocks, self._blocks = _vision_blocks(network, steps), _language_blocks(network, steps)
        self._wide_from = len(self._vision_blocks) - wide_tail
        self._full = set(network.visual.fullatt_block_indexes)
        # A page's frames are all the same, so one multiplication by the sum of the frames' weights does. In float32:
        # this is little work, and every row depends on it.
        self._patch = Dense(network.visual.patch_embed.proj.weight.data.float().sum(2).flatten(1))
        self._projection = Dense.of(network.custom_text_proj)
        self._layout = lru_cache(_LAYOUTS)(self._new_layout)

    @torch.inference_mode()
    def __call__(self, inputs: Sequence[Features], dtype: torch.dtype | None = None) -> list[Tensor]:
        """Return the rows of each input, float32 (n_tokens x 128), on the device.

        Computed in `dtype`, else in the network's type.
        """
        network = self._network
        dtype = dtype or network.dtype
        # Equal lengths side by side, for attention that takes them at once.
        order = sorted(range(len(inputs)), key=lambda i: len(inputs[i].ids))
        packed = [inputs[i] for i in order]
        lengths = [len(one.ids) for one in packed]
        ids = carried(torch.cat([one.ids for one in packed]), network.device)
        positions = carried(torch.cat([one.positions for one in packed], dim=1), network.device)
        row = network.language_model.embed_tokens(ids).to(dtype)
        self._show_pages(packed, row)
        cos, sin = network.language_model.rotary_emb(row.new_empty(0, dtype=torch.float32), positions[:, None])
        segments = on_device(lengths, network.device)
        for block in self._blocks:
            block(row, cos[0, :, None], sin[0, :, None], segments)
        # Unit rows in float32: rounded to bfloat16, they would be up to 0.4 % too long or too short.
        projected = self._projection(norm(row, *_norm_of(network.language_model.norm))).float()
        parts = (projected / projected.norm(dim=-1, keepdim=True)).split(lengths)
        return [part for _, part in sorted(zip(order, parts, strict=True), key=lambda pair: pair[0])]

    def _show_pages(self, inputs: Sequence[Features], row: Tensor) -> None:
        """Put what the vision tower sees of each page in its place in `row`."""
        pages = [one.pixels for one in inputs if one.pixels is not None]
        if not pages:
            return
        seen, start, shown = self._see(pages, row.dtype), 0, 0
        for one in inputs:
            if one.pixels is not None:
                first = start + one.visual.start
                row[first : first + len(one.visual)] = seen[shown : shown + len(one.visual)]
                shown += len(one.visual)
            start += len(one.ids)

    def _see(self, pages: Sequence[Tensor], dtype: torch.dtype) -> Tensor:
        """Return the visual tokens of `pages`, uint8 (height x width x 3) each, one page after the other."""
        visual = self._network.visual
        layout = self._layout(tuple(self._patchifier.grid(page) for page in pages))
        blocks = torch.cat([self._patchifier.blocks(carried(page, self._network.device)) for page in pages])
        row = self._patch(self._patchifier.values(blocks[layout.order])).to(dtype)
        cos, sin = visual.rotary_pos_emb(row, layout.positions)
        for index, block in enumerate(self._vision_blocks):
            if index == self._wide_from:
                row = row.float()
            block(row, cos[:, None], sin[:, None], layout.pages if index in self._full else layout.windows)
        first, activation, last = visual.merger.mlp
        merged = norm(row, *_norm_of(visual.merger.ln_q)).view(len(layout.order), -1)
        return Dense.of(last)(activation(Dense.of(first)(merged)))[layout.back]

    def _new_layout(self, grids: tuple[tuple[int, int], ...]) -> VisionLayout:
        visual, merge = self._network.visual, self._patchifier.merge_size
        device = self._network.device
        return vision_layout(
            grids,
            merge=merge,
            window=visual.window_size // merge // self._patchifier.patch_size,
            device=device,
            by_length=not has_flash_attention(device, self._network.dtype),
        )


def _norm_of(module: Any) -> tuple[Tensor, float]:
    return module.weight.data, module.variance_epsilon


def _vision_blocks(network: ColQwen2_5, steps: Steps) -> list[Block]:
    return [
        Block(
            steps=steps,
            norms=(block.norm1, block.norm2),
            qkv=Dense.of(block.attn.qkv),
            out=Dense.of(block.attn.proj),
            heads=block.attn.num_heads,
            key_heads=block.attn.num_heads,
            mlp=block.mlp,
            causal=False,
        )
        for block in network.visual.blocks
    ]


def _language_blocks(network: ColQwen2_5, steps: Steps) -> list[Block]:
    return [
        Block(
            steps=steps,
            norms=(layer.input_layernorm, layer.post_attention_layernorm),
            qkv=joined(layer.self_attn.q_proj, layer.self_attn.k_proj, layer.self_attn.v_proj),
            out=Dense.of(layer.self_attn.o_proj),
            heads=layer.self_attn.num_heads,
            key_heads=layer.self_attn.num_key_value_heads,
            mlp=layer.mlp,
            causal=True,
        )
        for layer in network.language_model.layers
    ]
