"""colpali-engine as its README shows it: process, forward, in turn on one thread. Knows nothing of our engine."""

import io
import os
from collections.abc import Sequence

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image

from bench.trace import Trace
from worker.model.libraries import ColQwen2_5, ColQwen2_5_Processor

__all__ = ["Stock"]

# The model card's own; uncapped, a page of A4 would be four times the work for everybody.
_MAX_VISUAL_TOKENS = 768


class Stock:
    """The stock model and processor. `page_batch` pages or `text_batch` texts go through the network at a time."""

    def __init__(  # noqa: PLR0913 - what a loop over a model can be told
        self,
        checkpoint: str,
        *,
        threads: int,
        page_batch: int = 4,
        text_batch: int = 8,
        device: str = "cpu",
        dtype: str = "float32",
        network: ColQwen2_5 | None = None,
    ) -> None:
        """Load `checkpoint`, or take its processor only where `network` is given."""
        self._threads = threads
        self._page_batch, self._text_batch = page_batch, text_batch
        self._processor = ColQwen2_5_Processor.from_pretrained(checkpoint, max_num_visual_tokens=_MAX_VISUAL_TOKENS)
        self._network = network or ColQwen2_5.from_pretrained(
            checkpoint, dtype=getattr(torch, dtype), attn_implementation="sdpa"
        ).to(device)
        self._network.eval()
        self._trace = Trace()

    def pages(self, images: Sequence[bytes]) -> list[NDArray[np.float32]]:
        """Return one multi-vector an image file, padding rows included where a batch had any."""
        rows = []
        for start in range(0, len(images), self._page_batch):
            opened = [Image.open(io.BytesIO(data)) for data in images[start : start + self._page_batch]]
            batch = self._processor.process_images(opened)
            with self._trace.passing(len(opened)):
                rows += self._embed(dict(batch))
        return rows

    def queries(self, texts: Sequence[str]) -> list[NDArray[np.float32]]:
        """Return one multi-vector a text, likewise."""
        rows = []
        for start in range(0, len(texts), self._text_batch):
            some = list(texts[start : start + self._text_batch])
            batch = self._processor.process_queries(some)
            with self._trace.passing(len(some)):
                rows += self._embed(dict(batch))
        return rows

    @classmethod
    def from_environment(cls, *, page_batch: int) -> "Stock":
        """Load what the benchmark tells a server by its environment."""
        told = os.environ
        return cls(
            told["BENCH_MODEL"],
            threads=int(told["BENCH_THREADS"]),
            page_batch=page_batch,
            device=told["BENCH_DEVICE"],
            dtype=told["BENCH_DTYPE"],
        )

    @torch.no_grad()
    def _embed(self, batch: dict[str, torch.Tensor]) -> list[NDArray[np.float32]]:
        torch.set_num_threads(self._threads)  # servers and their pools change it
        device = self._network.device
        embeddings = self._network(**{name: tensor.to(device) for name, tensor in batch.items()})
        return list(embeddings.float().cpu().numpy())
