"""Read what a backfill has written, as Parquet or npz."""

import importlib.util
import json
import sqlite3
import zipfile
from collections.abc import Iterator, Mapping
from contextlib import closing, contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any
from urllib.parse import quote

import numpy as np

from colqueue_client.backfill.layout import NPZ, SEEN, SHARDS, manifest_path, old_shards
from colqueue_client.backfill.records import COLUMNS, Size, page_id
from colqueue_client.errors import BackfillError
from colqueue_client.wire import Rows

__all__ = ["Backfill", "EmbeddedPage", "load"]


@dataclass(frozen=True, slots=True)
class EmbeddedPage:
    """One page of a document and its multi-vector."""

    document: str
    """Its path relative to its source, or the name that a list gave it."""
    page: int
    """From 1."""
    embedding: Rows
    """n_rows x dim, at the precision that the backfill asked for."""
    model: str
    sha256: str
    """Of the document's file."""
    size: Size | None = None
    """The width and height of the page's image, in pixels; None where an older layout did not keep it."""
    columns: Mapping[str, str | None] = field(default_factory=dict)
    """The other columns of the list that named the document."""

    @property
    def id(self) -> str:
        """A UUID that follows from document and page."""
        return page_id(self.document, self.page)


class Backfill:
    """The pages in a folder. Iterating reads them from disk, a few dozen in memory at a time, each time anew."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self._npz = folder / NPZ

    def __iter__(self) -> Iterator[EmbeddedPage]:
        return self._from_npz() if self._npz.is_dir() else self._from_parquet()

    def __len__(self) -> int:
        """Return the number of pages, without reading them."""
        if self._npz.is_dir():
            return sum(1 for path in self._npz_files() for name in _names(path) if name.startswith("page_"))
        import pyarrow.parquet as pq  # noqa: PLC0415 - an extra: whoever reads npz needs none

        rows = 0
        for shard in self.shards():
            with _refuse_foreign(shard), pq.ParquetFile(shard) as file:
                rows += file.metadata.num_rows
        return rows

    def document(self, name: str) -> dict[int, Rows]:
        """Return one document's multi-vectors by page number."""
        return {page.page: page.embedding for page in self if page.document == name}

    def arrays(self) -> dict[tuple[str, int], Rows]:
        """Return every page's multi-vector by document and page number, all in memory: 0.19 MB a page as float16."""
        return {(page.document, page.page): np.array(page.embedding) for page in self}

    def shards(self) -> list[Path]:
        """Return the Parquet files that hold pages: those of the manifest, where it can be read.

        While shards are merged, and after a kill just then, pages are in two files; the manifest says which one counts.
        """
        there = sorted((self.folder / SHARDS).glob(SEEN)) or old_shards(self.folder)
        held = _held_files(manifest_path(self.folder))
        return there if held is None else [path for path in there if path.name in held]

    def _from_parquet(self) -> Iterator[EmbeddedPage]:
        import pyarrow.parquet as pq  # noqa: PLC0415 - as above

        for shard in self.shards():
            with _refuse_foreign(shard), pq.ParquetFile(shard) as file:
                for number in range(file.num_row_groups):
                    yield from _pages_of(file.read_row_group(number))

    def _npz_files(self) -> list[Path]:
        return sorted(path for path in self._npz.rglob("[!.]*.npz") if path.is_file())

    def _from_npz(self) -> Iterator[EmbeddedPage]:
        for path in self._npz_files():
            with _refuse_foreign(path), np.load(path, allow_pickle=False) as archive:
                model, sha256 = str(archive["model"]), str(archive["sha256"])
                document = path.relative_to(self._npz).as_posix().removesuffix(".npz")
                sizes, columns = {}, {}
                if "document" in archive:  # an older layout did not have these
                    document, columns = str(archive["document"]), json.loads(str(archive["columns"]))
                    sizes = {int(number): (int(width), int(height)) for number, width, height in archive["sizes"]}
                for name in archive.files:
                    if name.startswith("page_"):
                        page = int(name.removeprefix("page_"))
                        yield EmbeddedPage(document, page, archive[name], model, sha256, sizes.get(page), columns)


def load(folder: str | Path) -> Backfill:
    """Return the pages that `colqueue backfill` has written into `folder`.

    Raises BackfillError where there are none, or where they are Parquet and pyarrow is not installed.
    """
    backfill = Backfill(Path(folder))
    parquet = bool(backfill.shards())
    if not parquet and not (backfill.folder / NPZ).is_dir():
        raise BackfillError(f"{folder} holds no pages of a backfill")
    if parquet and importlib.util.find_spec("pyarrow") is None:
        raise BackfillError("Parquet needs pyarrow: pip install 'colqueue-client[backfill]'")
    return backfill


def _held_files(manifest: Path) -> set[str] | None:
    """Return the names of the files that hold pages, or None where no manifest says so."""
    if not manifest.is_file():
        return None
    try:
        with closing(sqlite3.connect(f"file:{quote(str(manifest))}?mode=ro", uri=True)) as database:
            return {name for (name,) in database.execute("SELECT name FROM files WHERE state = 'held'")}
    except sqlite3.OperationalError:  # it is just being made, or lies on a disk that SQLite cannot lock
        return None


@contextmanager
def _refuse_foreign(path: Path) -> Iterator[None]:
    """Raise BackfillError where the file at `path` cannot be read or turns out not to be one of a backfill."""
    try:
        yield
    except OSError as error:
        raise BackfillError(f"{path} cannot be read: {error.strerror or error}") from error
    except (ValueError, KeyError, zipfile.BadZipFile) as error:  # also what pyarrow raises
        raise BackfillError(f"{path} is damaged, or was not written by a backfill") from error


def _pages_of(group: Any) -> Iterator[EmbeddedPage]:
    from colqueue_client.backfill.parquet import multi_vectors  # noqa: PLC0415 - it imports pyarrow

    embeddings = multi_vectors(group.column("embedding").combine_chunks())
    facts = group.drop_columns(["embedding"]).to_pylist()
    for fact, rows in zip(facts, embeddings, strict=True):
        size = (fact["width"], fact["height"]) if fact.get("width") is not None else None
        columns = {name: value for name, value in fact.items() if name not in COLUMNS}
        yield EmbeddedPage(fact["document"], fact["page"], rows, fact["model"], fact["sha256"], size, columns)


def _names(path: Path) -> list[str]:
    with _refuse_foreign(path), np.load(path, allow_pickle=False) as archive:
        return list(archive.files)
