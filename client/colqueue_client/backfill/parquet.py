"""Write pages into Parquet shards that pyarrow, pandas, polars and DuckDB read as they are."""

from collections.abc import Callable, Collection, Iterable, Iterator, Sequence
from contextlib import AbstractContextManager, nullcontext
from itertools import chain, islice, pairwise
from pathlib import Path
from typing import Any, Final

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from colqueue_client.backfill.files import atomic_write, flush_to_disk, temporary_of
from colqueue_client.backfill.layout import SEEN, SHARDS
from colqueue_client.backfill.records import COLUMNS, Collected, Document, page_id
from colqueue_client.errors import BackfillError
from colqueue_client.wire import Rows

__all__ = ["ParquetShards", "multi_vectors"]

# So many pages are in memory at once, for whoever writes and whoever reads: 3 MB of them as float16, and ten times as
# much while Parquet's writer turns each value into a string of two bytes.
_GROUP: Final = 16
# The values look random: a dictionary of them is useless, and compression saves a tenth.
_ENCODING: Final[dict[str, Any]] = {"compression": "zstd"}


class ParquetShards:
    """`pages/part-00001.parquet` ... with the columns `COLUMNS` and, as texts, those of the lists."""

    def __init__(self, folder: Path, model: str, shard_bytes: int) -> None:
        self.batch_bytes: int | None = shard_bytes
        self._above = folder
        self._folder = folder / SHARDS
        self._model = model
        self._columns: tuple[str, ...] = ()
        self._held: set[str] = set()

    def tidy(self, held: Collection[str], unwanted: Collection[str]) -> set[str]:
        """Remove shards that were never finished or are merged; return those of `held` that are missing."""
        self._folder.mkdir(exist_ok=True)
        ours = {*held, *unwanted}
        strangers = [path for path in self._folder.glob(SEEN) if path.name not in ours]
        if strangers := [*strangers, *self._above.glob(SEEN)]:
            raise BackfillError(
                f"{strangers[0]} was not written by this backfill, and readers would take it for a part of it. "
                "Nothing was changed. Move it elsewhere, or give another --out"
            )
        for name in unwanted:
            (self._folder / name).unlink(missing_ok=True)
        for name in (*held, *unwanted):
            temporary_of(self._folder / name).unlink(missing_ok=True)
        flush_to_disk(self._folder)
        self._held = {name for name in held if (self._folder / name).is_file()}
        return set(held) - self._held

    def use_columns(self, columns: Sequence[str]) -> None:
        """Write shards that lack a column anew, so that all of them have one schema."""
        self._columns = tuple(columns)
        names = [*COLUMNS, *self._columns]
        for shard in self._shards():
            if pq.read_schema(shard).names != names:
                self._rewrite(shard, lambda group: group)

    def new_name(self, document: str) -> str:
        """Return the name of the next shard, which no file has."""
        del document
        taken = [int(number) for path in self._folder.glob("part-*") if (number := path.stem[5:]).isdecimal()]
        return f"part-{max(taken, default=0) + 1:05d}.parquet"

    def write(self, name: str, pages: Iterable[Collected]) -> None:
        """Write a shard. Raises OSError where the disk is full."""
        with atomic_write(self._folder / name) as path:
            _write_tables(path, (self._table(group) for group in _in_groups(pages)))
        self._held.add(name)

    def read(self, document: Document, names: Collection[str]) -> Iterator[tuple[int, Rows]]:
        """Yield the pages of a document in these shards."""
        for name in sorted(names):
            with pq.ParquetFile(self._folder / name) as file:
                for number in range(file.num_row_groups):
                    if document.name in file.read_row_group(number, ["document"]).column("document").to_pylist():
                        group = file.read_row_group(number, ["document", "page", "embedding"])
                        group = group.filter(pc.equal(group.column("document"), document.name)).combine_chunks()
                        rows = multi_vectors(group.column("embedding").combine_chunks())
                        yield from zip(group.column("page").to_pylist(), rows, strict=True)

    def forget(self, documents: Sequence[Document]) -> None:
        """Write each shard that holds pages of these documents anew, without them; remove it where nothing is left."""
        unwanted = pa.array([document.name for document in documents], pa.string())
        for shard in self._shards():
            with pq.ParquetFile(shard) as file:
                is_unwanted = pc.is_in(file.read(["document"]).column("document"), unwanted)
            if pc.all(is_unwanted).as_py():
                shard.unlink()
                self._held.discard(shard.name)
            elif pc.any(is_unwanted).as_py():
                self._rewrite(
                    shard, lambda group: group.filter(pc.invert(pc.is_in(group.column("document"), unwanted)))
                )

    def merge(self, names: Sequence[str], into: str) -> None:
        """Write a shard with all pages of these. They stay."""
        with atomic_write(self._folder / into) as path:
            _write_tables(path, (group for name in names for group in self._groups(self._folder / name)))
        self._held.add(into)

    def remove(self, names: Collection[str]) -> None:
        """Remove shards whose pages are all in another one."""
        for name in names:
            (self._folder / name).unlink(missing_ok=True)
            self._held.discard(name)
        flush_to_disk(self._folder)

    def sizes(self) -> dict[str, int]:
        """Return the bytes of each shard by name, in order."""
        return {shard.name: shard.stat().st_size for shard in self._shards()}

    def check(self, dtype: str) -> None:
        """Every dtype can be kept in files."""

    def translate_errors(self) -> AbstractContextManager[None]:
        """Errors of files stay as they are."""
        return nullcontext()

    def close(self) -> None:
        """Nothing is held between two calls."""

    def _shards(self) -> list[Path]:
        return [self._folder / name for name in sorted(self._held)]

    def _rewrite(self, shard: Path, change: Callable[[pa.Table], pa.Table]) -> None:
        with atomic_write(shard) as path:
            _write_tables(path, map(change, self._groups(shard)))

    def _groups(self, shard: Path) -> Iterator[pa.Table]:
        """Yield the row groups of a shard, with all columns of this version and of the lists."""
        with pq.ParquetFile(shard) as file:
            for number in range(file.num_row_groups):
                yield self._complete(file.read_row_group(number))

    def _complete(self, group: pa.Table) -> pa.Table:
        there = set(group.column_names)
        made: dict[str, Any] = {}
        if "id" not in there:
            keys = zip(group.column("document").to_pylist(), group.column("page").to_pylist(), strict=True)
            made["id"] = pa.array([page_id(document, page) for document, page in keys], pa.string())
        for name in {"width", "height"} - there:
            made[name] = pa.nulls(len(group), pa.int32())
        for name in set(self._columns) - there:
            made[name] = pa.nulls(len(group), pa.string())
        for name, values in made.items():
            group = group.append_column(name, values)
        return group.select([*COLUMNS, *self._columns]).replace_schema_metadata(None)

    def _table(self, pages: Sequence[Collected]) -> pa.Table:
        counts = [len(page.rows) for page in pages]
        values = pa.array(np.concatenate([page.rows for page in pages]).ravel())
        rows = pa.FixedSizeListArray.from_arrays(values, pages[0].rows.shape[1])
        offsets = pa.array(np.cumsum([0, *counts]), pa.int32())
        columns = {
            "id": pa.array([page_id(page.document, page.page) for page in pages], pa.string()),
            "document": pa.array([page.document for page in pages], pa.string()),
            "page": pa.array([page.page for page in pages], pa.int32()),
            "embedding": pa.ListArray.from_arrays(offsets, rows),
            "rows": pa.array(counts, pa.int32()),
            "width": pa.array([page.size and page.size[0] for page in pages], pa.int32()),
            "height": pa.array([page.size and page.size[1] for page in pages], pa.int32()),
            "model": pa.array([self._model] * len(pages), pa.string()),
            "sha256": pa.array([page.sha256 for page in pages], pa.string()),
        }
        listed = {name: pa.array([page.columns.get(name) for page in pages], pa.string()) for name in self._columns}
        return pa.table(columns | listed)


def multi_vectors(column: pa.ListArray) -> list[Rows]:
    """Return an `embedding` column's multi-vectors, n_rows x dim, as views where Arrow allows."""
    dim = column.type.value_type.list_size
    values = column.values.values.to_numpy(zero_copy_only=False).reshape(-1, dim)
    return [values[start:end] for start, end in pairwise(column.offsets.to_numpy())]


def _write_tables(path: Path, tables: Iterator[pa.Table]) -> None:
    first = next(tables)
    dictionaries = [name for name in first.column_names if name not in {"id", "embedding", "page", "rows"}]
    with pq.ParquetWriter(path, first.schema, use_dictionary=dictionaries, **_ENCODING) as writer:
        for table in chain([first], tables):
            if len(table):  # who filters may leave nothing of a group
                writer.write_table(table)


def _in_groups(pages: Iterable[Collected]) -> Iterator[list[Collected]]:
    iterator = iter(pages)
    while group := list(islice(iterator, _GROUP)):
        yield group
