"""Write pages into a LanceDB table with a multi-vector column."""

from collections.abc import Collection, Iterable, Iterator, Sequence
from contextlib import AbstractContextManager
from itertools import islice
from typing import Any, Final

import numpy as np
import pyarrow as pa

from colqueue_client.backfill.lancedb_database import connect, require_dtype, require_fit, translate_errors
from colqueue_client.backfill.records import Collected, Document, page_id
from colqueue_client.backfill.store import Store
from colqueue_client.wire import Rows

__all__ = ["LanceTable"]

_AT_ONCE: Final = 64
_DIM: Final = 128


class LanceTable:
    """The table `pages` in the database at `where`; its column `embedding` is LanceDB's multi-vector."""

    batch_bytes: int | None = 64 * 2**20

    def __init__(self, where: str, store: Store, model: str) -> None:
        self._database = connect(where, store)
        self._name = store.collection
        self._model = model
        self._where = where
        self._columns: tuple[str, ...] = ()

    def check(self, dtype: str) -> None:
        """Raise BackfillError for a dtype without MaxSim, and where the table is there and of another form."""
        require_dtype(dtype)
        if self._exists():
            wanted = _schema(pa.from_numpy_dtype(np.dtype(dtype)), _DIM)
            require_fit(self._database.open_table(self._name).schema, wanted, self._name, self._where)

    def translate_errors(self) -> AbstractContextManager[None]:
        """Turn LanceDB's errors into ours."""
        return translate_errors(self._where)

    def tidy(self, held: Collection[str], unwanted: Collection[str]) -> set[str]:
        """Nothing is ever half there: a commit of Lance's is whole."""
        del unwanted
        return set() if self._exists() else set(held)

    def use_columns(self, columns: Sequence[str]) -> None:
        """Keep these columns in a table that is yet to be made; one that is there keeps its own."""
        self._columns = tuple(columns)

    def new_name(self, document: str) -> str:
        """All pages are in one table."""
        del document
        return self._where

    def write(self, name: str, pages: Iterable[Collected]) -> None:
        """Put pages in, over those of the same document and number."""
        del name
        iterator = iter(pages)
        while group := list(islice(iterator, _AT_ONCE)):
            rows = self._rows(group)
            if self._exists():
                table = self._database.open_table(self._name)
                rows = rows.select([column for column in rows.column_names if column in table.schema.names])
                merge = table.merge_insert(["document", "page"])
                merge.when_matched_update_all().when_not_matched_insert_all().execute(rows)
            else:
                self._database.create_table(self._name, rows)

    def read(self, document: Document, names: Collection[str]) -> Iterator[tuple[int, Rows]]:
        """Yield the pages of a document, of the content that the manifest knows."""
        del names
        query = self._database.open_table(self._name).search().where(_is_of(document)).limit(None)
        for row in query.select(["page", "embedding"]).to_arrow().to_pylist():
            yield row["page"], np.array(row["embedding"], self._dtype())

    def forget(self, documents: Sequence[Document]) -> None:
        """Delete the pages of these documents, of the content that the manifest knows: others are not ours."""
        if self._exists():
            for document in documents:
                self._database.open_table(self._name).delete(_is_of(document))

    def close(self) -> None:
        """Nothing is held between two calls."""

    def _dtype(self) -> Any:
        return (
            self._database.open_table(self._name).schema.field("embedding").type.value_type.value_type.to_pandas_dtype()
        )

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
        table = pa.table(columns, _schema(pa.from_numpy_dtype(dtype.newbyteorder("=")), dim))
        others = {
            "id": pa.array([page_id(page.document, page.page) for page in pages], pa.string()),
            "width": pa.array([page.size and page.size[0] for page in pages], pa.int32()),
            "height": pa.array([page.size and page.size[1] for page in pages], pa.int32()),
        }
        others |= {name: pa.array([page.columns.get(name) for page in pages], pa.string()) for name in self._columns}
        for name, values in others.items():
            table = table.append_column(name, values)
        return table


def _schema(dtype: pa.DataType, dim: int) -> pa.Schema:
    """Return the columns that a table must have. A table made by an older version has no others."""
    return pa.schema(
        {
            "document": pa.string(),
            "page": pa.int32(),
            "embedding": pa.list_(pa.list_(dtype, dim)),
            "model": pa.string(),
            "sha256": pa.string(),
        }
    )


def _is_of(document: Document) -> str:
    name, sha256 = (text.replace("'", "''") for text in (document.name, document.sha256))
    return f"document = '{name}' AND sha256 = '{sha256}'"
