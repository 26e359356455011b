"""ColQwen2.5 behind the model seam: prepares on any thread, embeds on one. Knows no queue and no job."""

from collections.abc import Sequence
from io import BytesIO

import numpy as np
import torch
from PIL import Image
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence

from shared.errors import DeviceMemoryError, ModelError
from worker.model.libraries import ColQwen2_5, ColQwen2_5_Processor, Qwen2_5_VLModel
from worker.model.load import load_checkpoint
from worker.model.options import ModelOptions
from worker.model.prepare import Features, Preparer
from worker.model.seam import Prepared, Rows

__all__ = ["ColQwen", "load"]


def load(options: ModelOptions) -> "ColQwen":
    """Load the checkpoint onto its device. Takes seconds to minutes; raises `CheckpointError`."""
    return ColQwen(options, *load_checkpoint(options))


class ColQwen:
    """A `Model`. Its rows equal colpali-engine's in float32; padding rows are gone and neighbours do not matter."""

    def __init__(self, options: ModelOptions, network: ColQwen2_5, processor: ColQwen2_5_Processor) -> None:
        self._name = options.name
        self._network = network
        self._preparer = Preparer(processor, options)
        self._pad_id = processor.tokenizer.pad_token_id
        self._image_id = network.config.image_token_id
        self._threads = options.torch_threads or torch.get_num_threads()

    @property
    def name(self) -> str:
        """The name it was asked for by."""
        return self._name

    @property
    def device(self) -> torch.device:
        """Where its weights are."""
        device: torch.device = self._network.device
        return device

    @property
    def dtype(self) -> torch.dtype:
        """What it computes in."""
        dtype: torch.dtype = self._network.dtype
        return dtype

    def prepare_page(self, data: bytes) -> Prepared:
        """Decode, resize and tokenise one page image. Thread-safe.

        Raises `ImageInvalidError`, `ImageTooLargeError` or `ImageAspectError`.
        """
        return self._preparer.page(data)

    def prepare_query(self, text: str) -> Prepared:
        """Tokenise one query. Thread-safe. Raises `TextInvalidError` or `TextTooLongError`."""
        return self._preparer.query(text)

    def warm_up(self) -> None:
        """Embed a small page and a query, so that the first caller does not pay for what a device sets up once."""
        page = BytesIO()
        Image.new("RGB", (280, 280), "white").save(page, "PNG")
        self.embed([self.prepare_page(page.getvalue()), self.prepare_query("")])

    def embed(self, batch: Sequence[Prepared]) -> list[Rows]:
        """Run pages and queries, in one forward pass each. Same length and order as `batch`; from one thread only.

        Rows are float32 from a float32 model, else float16. `DeviceMemoryError` or `ModelError` fail the whole batch.
        A `torch.AcceleratorError` escapes as it is: after one the process cannot use its device again.
        """
        # Preparing threads lower the setting; parts of torch share it between threads.
        torch.set_num_threads(self._threads)
        rows: dict[int, Rows] = {}
        for is_page in (True, False):
            places = [i for i, prepared in enumerate(batch) if (prepared.features.patches is not None) == is_page]
            if places:
                rows.update(zip(places, self._guarded([batch[i].features for i in places]), strict=True))
        return [rows[i] for i in range(len(batch))]

    def _guarded(self, inputs: list[Features]) -> list[Rows]:
        try:
            rows = self._forward(inputs)
        except torch.OutOfMemoryError:
            rows = None
        except torch.AcceleratorError:
            raise
        except RuntimeError as error:
            # Without its traceback, which would keep the pass's activations alive on the device.
            raise ModelError("the model's forward pass failed") from error.with_traceback(None)
        if rows is None:
            # Not in the except block: until it ends, the exception keeps the activations alive.
            torch.cuda.empty_cache()
            raise DeviceMemoryError("the input does not fit the device's memory")
        if not all(np.isfinite(one).all() for one in rows):
            raise ModelError("the model's rows are not finite numbers")
        return rows

    @torch.inference_mode()
    def _forward(self, inputs: list[Features]) -> list[Rows]:
        """Embed pages only or queries only. What the stock forward pass computes, less the hidden states it keeps."""
        ids = _padded([one.ids for one in inputs], self._pad_id)
        mask = _padded([torch.ones_like(one.ids) for one in inputs], 0)
        patches = [one.patches for one in inputs if one.patches is not None]
        grids = torch.stack([one.grid for one in inputs if one.grid is not None]) if patches else None
        # M-RoPE, told apart by kind of token. Given for texts, too: they would else count their padding as positions.
        positions, _ = self._network.get_rope_index(
            ids, (ids == self._image_id).int(), image_grid_thw=grids, attention_mask=mask
        )
        device = self.device
        hidden = Qwen2_5_VLModel.forward(
            self._network,
            input_ids=ids.to(device),
            attention_mask=mask.to(device),
            position_ids=positions.to(device),
            pixel_values=torch.cat(patches).to(device) if patches else None,
            image_grid_thw=None if grids is None else grids.to(device),
            use_cache=False,
            return_dict=True,
        ).last_hidden_state
        projected = self._network.custom_text_proj(hidden)
        projected = projected / projected.norm(dim=-1, keepdim=True)
        lengths = [len(one.ids) for one in inputs]
        kept = torch.cat([row[-length:] for row, length in zip(projected, lengths, strict=True)])
        half = kept.dtype != torch.float32
        array = (kept.half() if half else kept).cpu().numpy()
        return list(np.split(array, np.cumsum(lengths[:-1])))


def _padded(tensors: list[Tensor], value: int) -> Tensor:
    return pad_sequence(tensors, batch_first=True, padding_value=value, padding_side="left")
