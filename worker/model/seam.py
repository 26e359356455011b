"""The seam between batching and the neural network: what a model must do. Knows no torch, no queue and no job."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Protocol

from shared.codecs import DIM, Rows

__all__ = ["DIM", "Model", "Prepared", "Rows"]


@dataclass(frozen=True, slots=True)
class Prepared:
    """One input after the CPU step, ready for a batch.

    `tokens` is its cost in the language model, known before the batch is formed; `features` is the model's own
    business.
    """

    tokens: int
    features: Any


class Model(Protocol):
    """What the worker needs of a neural network."""

    @property
    def name(self) -> str:
        """Return what operators know the model by (a hub id, a folder, `tiny`)."""

    def prepare_page(self, data: bytes) -> Prepared:
        """Decode, resize and tokenise one page image. Thread-safe. Raises an `InputError`."""

    def prepare_query(self, text: str) -> Prepared:
        """Tokenise one query. Thread-safe. Raises an `InputError`."""

    def embed(self, batch: Sequence[Prepared]) -> list[Rows]:
        """Run the forward pass: same length, same order as `batch`. Called from one thread only.

        Rows are n_rows x 128, C-contiguous, at the model's precision, without padding; they do not depend on the
        neighbours. Raises `DeviceMemoryError` where the device ran out of memory and `ModelError` where the forward
        pass failed; either means the whole batch failed.
        """
