"""Parquet shards that pyarrow, polars and DuckDB read as they are. Knows pyarrow; knows no manifest."""

from collections.abc import Iterable, Iterator, Sequence
from contextlib import AbstractContextManager, nullcontext
from itertools import islice, pairwise
from pathlib import Path
from typing import Any, Final

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from colqueue_client.backfill.files import TEMPORARY, appearing
from colqueue_client.backfill.records import Collected
from colqueue_client.wire import Rows

__all__ = ["ParquetShards", "multi_vectors", "shards"]

# So many pages are in memory at once, for whoever writes and whoever reads: 3 MB of them as float16, and ten times as
# much while Parquet's writer turns each value into a string of two bytes.
_GROUP: Final = 16
# The values look random: a dictionary of them is useless, and compression saves a tenth.
_ENCODING: Final[dict[str, Any]] = {"compression": "zstd", "use_dictionary": ["document", "model", "sha256"]}


class ParquetShards:
    """`part-00001.parquet` ... in a folder; columns document, page, embedding, rows, model, sha256."""

    def __init__(self, folder: Path, model: str, shard_bytes: int) -> None:
        self.batch_bytes: int | None = shard_bytes
        self._folder = folder
        self._model = model

    def tidy(self, known: set[str]) -> Iterable[str]:
        """Remove shards that were written and never noted, and return those that were noted and are not there."""
        for left in self._folder.glob(f".*{TEMPORARY}"):
            left.unlink()
        here = {path.name for path in shards(self._folder)}
        for name in here - known:
            (self._folder / name).unlink()
        return known - here

    def write(self, pages: Iterable[Collected]) -> str:
        """Write a shard and return its name. Raises OSError where the disk is full."""
        taken = [int(path.stem.removeprefix("part-")) for path in shards(self._folder)]
        name = f"part-{max(taken, default=0) + 1:05d}.parquet"
        with appearing(self._folder / name) as path:
            _write_tables(path, (self._table(group) for group in _grouped(pages)))
        return name

    def forget(self, documents: Sequence[str]) -> None:
        """Write each shard that holds pages of these documents anew, without them."""
        unwanted = pa.array(documents, pa.string())
        for shard in shards(self._folder):
            with pq.ParquetFile(shard) as file:
                names = file.read(["document"]).column("document")
                if not pc.any(pc.is_in(names, unwanted)).as_py():
                    continue
                groups = (file.read_row_group(number) for number in range(file.num_row_groups))
                kept = (group.filter(pc.invert(pc.is_in(group.column("document"), unwanted))) for group in groups)
                with appearing(shard) as path:
                    _write_tables(path, kept)

    def check(self, dtype: str) -> None:
        """Every dtype can be kept in files."""

    def translated(self) -> AbstractContextManager[None]:
        """Errors of files stay as they are."""
        return nullcontext()

    def close(self) -> None:
        """Nothing is held between two calls."""

    def _table(self, pages: Sequence[Collected]) -> pa.Table:
        counts = [len(page.rows) for page in pages]
        values = pa.array(np.concatenate([page.rows for page in pages]).ravel())
        rows = pa.FixedSizeListArray.from_arrays(values, pages[0].rows.shape[1])
        offsets = pa.array(np.cumsum([0, *counts]), pa.int32())
        return pa.table(
            {
                "document": pa.array([page.document for page in pages], pa.string()),
                "page": pa.array([page.page for page in pages], pa.int32()),
                "embedding": pa.ListArray.from_arrays(offsets, rows),
                "rows": pa.array(counts, pa.int32()),
                "model": pa.array([self._model] * len(pages), pa.string()),
                "sha256": pa.array([page.sha256 for page in pages], pa.string()),
            }
        )


def shards(folder: Path) -> list[Path]:
    """Return the shards of a folder in order."""
    return sorted(folder.glob("part-*.parquet"))


def multi_vectors(column: pa.ListArray) -> list[Rows]:
    """Return an `embedding` column's multi-vectors, n_rows x dim, as views where Arrow allows."""
    dim = column.type.value_type.list_size
    values = column.values.values.to_numpy(zero_copy_only=False).reshape(-1, dim)
    return [values[start:end] for start, end in pairwise(column.offsets.to_numpy())]


def _write_tables(path: Path, tables: Iterator[pa.Table]) -> None:
    first = next(tables)
    with pq.ParquetWriter(path, first.schema, **_ENCODING) as writer:
        writer.write_table(first)
        for table in tables:
            writer.write_table(table)


def _grouped(pages: Iterable[Collected]) -> Iterator[list[Collected]]:
    iterator = iter(pages)
    while group := list(islice(iterator, _GROUP)):
        yield group
