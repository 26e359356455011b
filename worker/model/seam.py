"""The seam between batching and the neural network: what a model must do. Knows no torch, no queue and no job."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

from shared.codecs import DIM, Rows
from shared.models import ServedModel

__all__ = ["DIM", "Model", "ModelLostError", "Prepared", "Rows", "Start"]


@dataclass(frozen=True, slots=True)
class Prepared:
    """One input after the CPU step, ready for a batch.

    `tokens` is its cost in the language model, known before the batch is formed; `features` is the model's own
    business.
    """

    tokens: int
    features: Any


class ModelLostError(Exception):
    """After this the process cannot run its model any more: it must end, and another has to take up its work."""


class Model(Protocol):
    """What the worker needs of a neural network."""

    @property
    def served(self) -> ServedModel:
        """Return what the model is known by and its checkpoint's identity."""

    def prepare_page(self, data: bytes) -> Prepared:
        """Decode, resize and tokenise one page image. Thread-safe. Raises an `InputError`."""

    def prepare_query(self, text: str) -> Prepared:
        """Tokenise one query. Thread-safe. Raises an `InputError`."""

    def start(self, batch: Sequence[Prepared]) -> Callable[[], list[Rows]]:
        """Start the forward pass and return a function that waits for its rows: same length, same order as `batch`.

        Called from one thread only; what it returns, from one other, in the order in which the batches were started.
        On a device of its own the model returns at once, so that the next batch can be handed over meanwhile.

        Rows are n_rows x 128, C-contiguous, at the model's precision, without padding; they do not depend on the
        neighbours. Either step raises `DeviceMemoryError` where the device ran out of memory and `ModelError` where the
        forward pass failed, which means the whole batch failed, or `ModelLostError`.
        """

    def pool(self, rows: Rows, factor: int) -> Rows:
        """Merge, on average, `factor` rows of a page into one of length 1. Thread-safe."""


Start = Callable[[Sequence[Prepared]], Callable[[], list[Rows]]]
"""`Model.start`."""
