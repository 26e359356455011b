"""A page's pixels: resized as bytes on the CPU, made numbers where the network runs. Knows one image processor.

Equal to the bit to what the stock image processor makes of the same image, at an eighth of the bytes to carry.
"""

from typing import TYPE_CHECKING, cast

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from worker.model.libraries import Qwen2VLImageProcessor

if TYPE_CHECKING:
    from transformers.image_utils import SizeDict

__all__ = ["Patchifier", "resized"]


def resized(image: Image.Image, processor: Qwen2VLImageProcessor) -> Tensor:
    """Return the RGB `image` at the size the network reads it, uint8 (height x width x 3). Thread-safe.

    The view that is resized keeps a pixel's channels together, as Pillow does: torchvision is faster on it than on
    planes, to the same values.
    """
    planes = torch.from_numpy(np.array(image)).permute(2, 0, 1)[None]
    smaller: Tensor = processor.resize(
        planes,
        size=cast("SizeDict", processor.size),  # annotated as the dictionary it is made from
        resample=processor.resample,
        factor=processor.patch_size * processor.merge_size,
    )
    return smaller[0].permute(1, 2, 0).contiguous()


class Patchifier:
    """Cuts pages into patches and normalises them, on one device, without waiting for it."""

    def __init__(self, processor: Qwen2VLImageProcessor, device: torch.device) -> None:
        self.patch_size: int = processor.patch_size
        self.merge_size: int = processor.merge_size
        self._frames: int = processor.temporal_patch_size
        scale = 1.0 / processor.rescale_factor
        # Computed on the CPU, whatever the device: one rounding.
        self._mean = (torch.tensor(processor.image_mean) * scale)[:, None].to(device)
        self._std = (torch.tensor(processor.image_std) * scale)[:, None].to(device)

    def grid(self, pixels: Tensor) -> tuple[int, int]:
        """Return how many patches high and wide the page is."""
        return pixels.shape[0] // self.patch_size, pixels.shape[1] // self.patch_size

    def blocks(self, pixels: Tensor) -> Tensor:
        """Return uint8 (visual tokens x 4 patches x 588): the patches of each visual token, channel by channel."""
        patch, merge = self.patch_size, self.merge_size
        height, width = self.grid(pixels)
        cut = pixels.view(height // merge, merge, patch, width // merge, merge, patch, -1)
        return cut.permute(0, 3, 1, 4, 6, 2, 5).reshape(-1, merge**2, pixels.shape[2] * patch**2)

    def values(self, blocks: Tensor) -> Tensor:
        """Return the normalised patches of `blocks`, float32 (patches x 588)."""
        channels = blocks.view(-1, len(self._mean), self.patch_size**2).float()
        return channels.sub_(self._mean).div_(self._std).flatten(1)

    def stock_values(self, pixels: Tensor) -> Tensor:
        """Return what the stock image processor makes of the page, float32 (patches x 1176): every frame the same."""
        values = self.values(self.blocks(pixels)).view(-1, len(self._mean), 1, self.patch_size**2)
        return values.expand(-1, -1, self._frames, -1).flatten(1)
