"""Pages into a LanceDB table with a multi-vector column. Knows lancedb; knows no manifest."""

from collections.abc import Iterable, Sequence
from itertools import islice
from typing import Final

import lancedb
import pyarrow as pa

from colqueue_client.backfill.records import Collected
from colqueue_client.errors import BackfillError

__all__ = ["TABLE", "LanceTable"]

TABLE: Final = "pages"

_AT_ONCE: Final = 64


class LanceTable:
    """The table `pages` in the database at `where`; its column `embedding` is LanceDB's multi-vector."""

    batch_bytes: int | None = 64 * 2**20

    def __init__(self, where: str, model: str) -> None:
        self._database = lancedb.connect(where)
        self._model = model
        self._where = where

    def tidy(self, known: set[str]) -> Iterable[str]:
        """Nothing is ever half there: a commit of Lance's is whole."""
        return [] if self._exists() else known

    def write(self, pages: Iterable[Collected]) -> str:
        """Put pages in, over those of the same document and number."""
        iterator = iter(pages)
        while group := list(islice(iterator, _AT_ONCE)):
            rows = self._rows(group)
            if self._exists():
                table = self._database.open_table(TABLE)
                merge = table.merge_insert(["document", "page"])
                merge.when_matched_update_all().when_not_matched_insert_all().execute(rows)
            else:
                self._database.create_table(TABLE, rows)
        return self._where

    def forget(self, documents: Sequence[str]) -> None:
        """Delete the pages of these documents."""
        if documents and self._exists():
            names = ", ".join("'" + document.replace("'", "''") + "'" for document in documents)
            self._database.open_table(TABLE).delete(f"document IN ({names})")

    def close(self) -> None:
        """Nothing is held between two calls."""

    def _exists(self) -> bool:
        return TABLE in self._database.list_tables().tables

    def _rows(self, pages: Sequence[Collected]) -> pa.Table:
        dtype, dim = pages[0].rows.dtype, pages[0].rows.shape[1]
        if dtype.name not in {"float16", "float32"}:
            raise BackfillError(f"LanceDB has no MaxSim over {dtype.name}: use float16 or float32")
        vectors = pa.list_(pa.list_(pa.from_numpy_dtype(dtype.newbyteorder("=")), dim))
        return pa.table(
            {
                "document": pa.array([page.document for page in pages], pa.string()),
                "page": pa.array([page.page for page in pages], pa.int32()),
                "embedding": pa.array([list(page.rows) for page in pages], vectors),
                "model": pa.array([self._model] * len(pages), pa.string()),
                "sha256": pa.array([page.sha256 for page in pages], pa.string()),
            }
        )
