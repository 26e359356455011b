"""Reads what a backfill has written. Knows the two forms of files; knows no service."""

import importlib.util
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from colqueue_client.backfill.npz import FOLDER
from colqueue_client.errors import BackfillError
from colqueue_client.wire import Rows

__all__ = ["Backfill", "EmbeddedPage", "load"]


@dataclass(frozen=True, slots=True)
class EmbeddedPage:
    """One page of a document and its multi-vector."""

    document: str
    """Its path relative to its source."""
    page: int
    """From 1."""
    embedding: Rows
    """n_rows x dim, at the precision that the backfill asked for."""
    model: str
    sha256: str
    """Of the document's file."""


class Backfill:
    """The pages in a folder. Iterating reads them from disk, a few dozen in memory at a time, each time anew."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self._npz = folder / FOLDER

    def __iter__(self) -> Iterator[EmbeddedPage]:
        return self._from_npz() if self._npz.is_dir() else self._from_parquet()

    def __len__(self) -> int:
        """Return the number of pages, without reading them."""
        if self._npz.is_dir():
            return sum(1 for path in self._npz_files() for name in _names(path) if name.startswith("page_"))
        import pyarrow.parquet as pq  # noqa: PLC0415 - an extra: whoever reads npz needs none

        return sum(pq.ParquetFile(shard).metadata.num_rows for shard in self._shards())

    def document(self, name: str) -> dict[int, Rows]:
        """Return one document's multi-vectors by page number."""
        return {page.page: page.embedding for page in self if page.document == name}

    def arrays(self) -> dict[tuple[str, int], Rows]:
        """Return every page's multi-vector by document and page number, all in memory: 0.19 MB a page as float16."""
        return {(page.document, page.page): np.array(page.embedding) for page in self}

    def _shards(self) -> list[Path]:
        return sorted(self.folder.glob("part-*.parquet"))

    def _from_parquet(self) -> Iterator[EmbeddedPage]:
        import pyarrow.parquet as pq  # noqa: PLC0415 - as above

        from colqueue_client.backfill.parquet import multi_vectors  # noqa: PLC0415 - as above

        for shard in self._shards():
            with pq.ParquetFile(shard) as file:
                for number in range(file.num_row_groups):
                    group = file.read_row_group(number)
                    facts = (group.column(name).to_pylist() for name in ("document", "page", "model", "sha256"))
                    embeddings = multi_vectors(group.column("embedding").combine_chunks())
                    for document, page, model, sha256, rows in zip(*facts, embeddings, strict=True):
                        yield EmbeddedPage(document, page, rows, model, sha256)

    def _npz_files(self) -> list[Path]:
        return sorted(self._npz.rglob("[!.]*.npz"))

    def _from_npz(self) -> Iterator[EmbeddedPage]:
        for path in self._npz_files():
            document = path.relative_to(self._npz).as_posix().removesuffix(".npz")
            with np.load(path, allow_pickle=False) as archive:
                model, sha256 = str(archive["model"]), str(archive["sha256"])
                for name in archive.files:
                    if name.startswith("page_"):
                        yield EmbeddedPage(document, int(name.removeprefix("page_")), archive[name], model, sha256)


def load(folder: str | Path) -> Backfill:
    """Return the pages that `colqueue backfill` has written into `folder`.

    Raises BackfillError where there are none, or where they are Parquet and pyarrow is not installed.
    """
    backfill = Backfill(Path(folder))
    parquet = any(backfill.folder.glob("part-*.parquet"))
    if not parquet and not (backfill.folder / FOLDER).is_dir():
        raise BackfillError(f"{folder} holds no pages of a backfill")
    if parquet and importlib.util.find_spec("pyarrow") is None:
        raise BackfillError("Parquet needs pyarrow: pip install 'colqueue-client[backfill]'")
    return backfill


def _names(path: Path) -> list[str]:
    with np.load(path, allow_pickle=False) as archive:
        return list(archive.files)
