"""Define what every output of a backfill has to do, and make the output of a given format."""

from collections.abc import Collection, Iterable, Iterator, Sequence
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Final, Protocol

from colqueue_client.backfill.records import Collected, Document
from colqueue_client.backfill.store import Store
from colqueue_client.wire import Rows

__all__ = ["FORMATS", "STORES", "Output", "output_for"]

PARQUET: Final = "parquet"
STORES: Final = ("lancedb", "qdrant")
"""Formats that are a store, which may be elsewhere."""
FORMATS: Final = (PARQUET, "npz", *STORES)


class Output(Protocol):
    """A place for pages. Whoever reads it sees each page once, and no half of one, also after a crash at any moment.

    The caller notes the name of a file before it is written. No file that the caller does not name is ever removed,
    and none that it has not named is written over.
    """

    batch_bytes: int | None
    """So much is gathered before it is written; None: each document is written once it is whole."""

    def tidy(self, held: Collection[str], unwanted: Collection[str]) -> set[str]:
        """Remove the files `unwanted`, which a crash may have left; return what of `held` is missing.

        BackfillError where there are files of the output's kind that neither names: they are somebody else's.
        """

    def use_columns(self, columns: Sequence[str]) -> None:
        """Give every page that is there, and every page to come, these text columns of the caller's lists."""

    def new_name(self, document: str) -> str:
        """Return a name for the file that the next pages go to; `document` is that of the first of them."""

    def write(self, name: str, pages: Iterable[Collected]) -> None:
        """Keep these pages under that name, for good once this returns."""

    def read(self, document: Document, names: Collection[str]) -> Iterator[tuple[int, Rows]]:
        """Yield the number and the rows of each page of a document that is in the files `names`."""

    def forget(self, documents: Sequence[Document]) -> None:
        """Drop every page of these documents, for good once this returns; those that are not there do no harm."""

    def check(self, dtype: str) -> None:
        """Raise BackfillError where rows of `dtype` cannot be kept here, or what is here already is of another form."""

    def translate_errors(self) -> AbstractContextManager[None]:
        """Turn errors of a store, inside this context, into StoreAwayError or BackfillError."""

    def close(self) -> None:
        """Let go of it."""


def output_for(name: str, folder: Path, model: str, shard_bytes: int, store: Store) -> Output:
    """Return the output `name`; ImportError where what it needs is not installed."""
    # Each needs a library of its own: import only the one that is asked for.
    match name:
        case "npz":
            from colqueue_client.backfill.npz import NpzFiles  # noqa: PLC0415

            return NpzFiles(folder, model)
        case "lancedb":
            from colqueue_client.backfill.lancedb import LanceTable  # noqa: PLC0415

            return LanceTable(store.location(folder, name), store, model)
        case "qdrant":
            from colqueue_client.backfill.qdrant import QdrantCollection  # noqa: PLC0415

            return QdrantCollection(store.location(folder, name), store, model)
        case _:
            from colqueue_client.backfill.parquet import ParquetShards  # noqa: PLC0415

            return ParquetShards(folder, model, shard_bytes)
