"""Says what every output of a backfill promises, and makes the output of a given name."""

from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Final, Protocol

from colqueue_client.backfill.records import Collected
from colqueue_client.errors import BackfillError

__all__ = ["FORMATS", "Output", "StoreAwayError", "output_for"]

PARQUET: Final = "parquet"
FORMATS: Final = (PARQUET, "npz", "lancedb", "qdrant")


class StoreAwayError(BackfillError):
    """A store gave no answer, or one that says nothing about the call: the same call may succeed later."""

    code = "store_away"


class Output(Protocol):
    """A place for pages. Whoever reads it sees each page once, and no half of one, also after a crash at any moment."""

    batch_bytes: int | None
    """So much is gathered before it is written; None: each document is written once it is whole."""

    def tidy(self, known: set[str]) -> Iterable[str]:
        """Drop what a crash has left, which is whatever is not `known`, and return what of that is missing."""

    def write(self, pages: Iterable[Collected]) -> str:
        """Keep these pages, for good once this returns, and return the name to know them by."""

    def forget(self, documents: Sequence[str]) -> None:
        """Drop every page of these documents, for good once this returns; those that are not there do no harm."""

    def close(self) -> None:
        """Let go of it."""


def output_for(name: str, folder: Path, model: str, shard_bytes: int, store: str | None) -> Output:
    """Return the output `name`; ImportError where what it needs is not installed."""
    # Each needs a library of its own: import only the one that is asked for.
    match name:
        case "npz":
            from colqueue_client.backfill.npz import NpzFiles  # noqa: PLC0415

            return NpzFiles(folder, model)
        case "lancedb":
            from colqueue_client.backfill.lancedb import LanceTable  # noqa: PLC0415

            return LanceTable(store or str(folder / "lancedb"), model)
        case "qdrant":
            from colqueue_client.backfill.qdrant import QdrantCollection  # noqa: PLC0415

            return QdrantCollection(store or str(folder / "qdrant"), model)
        case _:
            from colqueue_client.backfill.parquet import ParquetShards  # noqa: PLC0415

            return ParquetShards(folder, model, shard_bytes)
