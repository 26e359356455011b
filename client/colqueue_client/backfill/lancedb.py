"""Writes pages into a LanceDB table with a multi-vector column."""

from collections.abc import Iterable, Sequence
from contextlib import AbstractContextManager
from itertools import islice
from typing import Final

import numpy as np
import pyarrow as pa

from colqueue_client.backfill.lancedb_database import connect, require_dtype, require_fit, translated
from colqueue_client.backfill.records import Collected
from colqueue_client.backfill.store import Store

__all__ = ["LanceTable"]

_AT_ONCE: Final = 64
_DIM: Final = 128


class LanceTable:
    """A table in the database at `where`; its column `embedding` is LanceDB's multi-vector."""

    batch_bytes: int | None = 64 * 2**20

    def __init__(self, where: str, store: Store, model: str) -> None:
        self._database = connect(where, store)
        self._name = store.collection
        self._model = model
        self._where = where

    def check(self, dtype: str) -> None:
        """Raise BackfillError for a dtype without MaxSim, and where the table is there and of another form."""
        require_dtype(dtype)
        if self._exists():
            wanted = _schema(pa.from_numpy_dtype(np.dtype(dtype)), _DIM)
            require_fit(self._database.open_table(self._name).schema, wanted, self._name, self._where)

    def translated(self) -> AbstractContextManager[None]:
        """Turn LanceDB's errors into ours."""
        return translated(self._where)

    def tidy(self, known: set[str]) -> Iterable[str]:
        """Nothing is ever half there: a commit of Lance's is whole."""
        return [] if self._exists() else known

    def write(self, pages: Iterable[Collected]) -> str:
        """Put pages in, over those of the same document and number."""
        iterator = iter(pages)
        while group := list(islice(iterator, _AT_ONCE)):
            rows = self._rows(group)
            if self._exists():
                table = self._database.open_table(self._name)
                merge = table.merge_insert(["document", "page"])
                merge.when_matched_update_all().when_not_matched_insert_all().execute(rows)
            else:
                self._database.create_table(self._name, rows)
        return self._where

    def forget(self, documents: Sequence[str]) -> None:
        """Delete the pages of these documents."""
        if documents and self._exists():
            names = ", ".join("'" + document.replace("'", "''") + "'" for document in documents)
            self._database.open_table(self._name).delete(f"document IN ({names})")

    def close(self) -> None:
        """Nothing is held between two calls."""

    def _exists(self) -> bool:
        return self._name in self._database.list_tables().tables

    def _rows(self, pages: Sequence[Collected]) -> pa.Table:
        dtype, dim = pages[0].rows.dtype, pages[0].rows.shape[1]
        require_dtype(dtype.name)
        columns = {
            "document": [page.document for page in pages],
            "page": [page.page for page in pages],
            "embedding": [list(page.rows) for page in pages],
            "model": [self._model] * len(pages),
            "sha256": [page.sha256 for page in pages],
        }
        return pa.table(columns, _schema(pa.from_numpy_dtype(dtype.newbyteorder("=")), dim))


def _schema(dtype: pa.DataType, dim: int) -> pa.Schema:
    return pa.schema(
        {
            "document": pa.string(),
            "page": pa.int32(),
            "embedding": pa.list_(pa.list_(dtype, dim)),
            "model": pa.string(),
            "sha256": pa.string(),
        }
    )
