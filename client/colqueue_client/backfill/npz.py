"""Write each document into an `.npz` file of its own."""

import hashlib
import json
import zipfile
from collections.abc import Collection, Iterable, Iterator, Sequence
from contextlib import AbstractContextManager, nullcontext
from itertools import chain
from pathlib import Path, PurePosixPath
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from colqueue_client.backfill.files import atomic_write, temporary_of
from colqueue_client.backfill.layout import NPZ
from colqueue_client.backfill.records import Collected, Document
from colqueue_client.errors import BackfillError
from colqueue_client.wire import Rows

__all__ = ["NpzFiles"]

# What a file system allows for a name, less what `atomic_write` adds to it; and for a path, with room for DIR.
_LONGEST_NAME: Final = 255 - len("..npz.part")
_LONGEST_PATH: Final = 2000
_BY_SHA256: Final = "by-sha256"


class NpzFiles:
    """`documents/<document>.npz`: `page_1` ... (n_rows x dim), `document`, `model`, `sha256`, `sizes`, `columns`.

    Failed pages have no entry. A document whose name no file can have is in `documents/by-sha256/`.
    """

    batch_bytes: int | None = None

    def __init__(self, folder: Path, model: str) -> None:
        self._folder = folder / NPZ
        self._model = model

    def tidy(self, held: Collection[str], unwanted: Collection[str]) -> set[str]:
        """Remove files that were never noted as finished; return the documents of `held` whose file is missing."""
        ours = {self._path(name) for name in chain(held, unwanted)}
        for path in self._folder.rglob("[!.]*.npz"):
            if path not in ours and not path.is_dir():
                raise BackfillError(
                    f"{path} was not written by this backfill, and readers would take it for a part of it. "
                    "Nothing was changed. Move it elsewhere, or give another --out"
                )
        for path in ours:
            temporary_of(path).unlink(missing_ok=True)
        for name in unwanted:
            self._path(name).unlink(missing_ok=True)
        return {name for name in held if not self._path(name).is_file()}

    def use_columns(self, columns: Sequence[str]) -> None:
        """Each file has the columns of its own document."""

    def new_name(self, document: str) -> str:
        """Return the document's name: it has one file."""
        return document

    def write(self, name: str, pages: Iterable[Collected]) -> None:
        """Write the pages of one document, one in memory at a time, beside those it has already."""
        iterator = iter(pages)
        first = next(iterator)
        path = self._path(name)
        path.parent.mkdir(parents=True, exist_ok=True)
        sizes: dict[int, tuple[int, int]] = {}
        with atomic_write(path) as temporary, zipfile.ZipFile(temporary, "w", allowZip64=True) as archive:
            _add(archive, "document", np.array(name))
            _add(archive, "model", np.array(self._model))
            _add(archive, "sha256", np.array(first.sha256))
            _add(archive, "columns", np.array(json.dumps(dict(first.columns), ensure_ascii=False)))
            added = set()
            for page in chain([first], iterator):
                _add(archive, f"page_{page.page}", page.rows)
                added.add(f"page_{page.page}")
                if page.size:
                    sizes[page.page] = page.size
            if path.exists():  # pages that failed then and did not now
                with np.load(path, allow_pickle=False) as before:
                    if "sizes" in before:
                        sizes = {int(number): (int(w), int(h)) for number, w, h in before["sizes"]} | sizes
                    for entry in sorted({entry for entry in before.files if entry.startswith("page_")} - added):
                        _add(archive, entry, before[entry])
            table = [(number, *size) for number, size in sorted(sizes.items())]
            _add(archive, "sizes", np.array(table, np.int32).reshape(-1, 3))

    def read(self, document: Document, names: Collection[str]) -> Iterator[tuple[int, Rows]]:
        """Yield the pages of a document."""
        del names
        with np.load(self._path(document.name), allow_pickle=False) as archive:
            for entry in archive.files:
                if entry.startswith("page_"):
                    yield int(entry.removeprefix("page_")), archive[entry]

    def forget(self, documents: Sequence[Document]) -> None:
        """Remove these documents' files."""
        for document in documents:
            self._path(document.name).unlink(missing_ok=True)

    def check(self, dtype: str) -> None:
        """Every dtype can be kept in files."""

    def translate_errors(self) -> AbstractContextManager[None]:
        """Errors of files stay as they are."""
        return nullcontext()

    def close(self) -> None:
        """Nothing is held between two calls."""

    def _path(self, document: str) -> Path:
        """Return the file of a document: by its name, or by the name's SHA-256 where no file can have the name.

        A folder called `a.npz` is none either: it would be where the document `a` wants its file.
        """
        *folders, last = PurePosixPath(document).parts
        names = [part.encode() for part in (*folders, last)]
        if (
            sum(map(len, names)) + len(names) > _LONGEST_PATH
            or any(len(name) > _LONGEST_NAME or b"\0" in name for name in names)
            or any(folder.lower().endswith(".npz") for folder in folders)
            or folders[:1] == [_BY_SHA256]
            or self._is_blocked(self._folder / f"{document}.npz")
        ):
            return self._folder / _BY_SHA256 / f"{hashlib.sha256(document.encode()).hexdigest()}.npz"
        return self._folder / f"{document}.npz"

    def _is_blocked(self, path: Path) -> bool:
        """Say whether something of somebody else's is in the way: a file where a folder is needed, or the reverse."""
        above = path.parent
        while above != self._folder.parent and not above.is_dir():
            if above.exists():
                return True
            above = above.parent
        return path.is_dir()


def _add(archive: zipfile.ZipFile, name: str, array: NDArray[Any]) -> None:
    with archive.open(f"{name}.npy", "w", force_zip64=True) as entry:
        np.lib.format.write_array(entry, array, allow_pickle=False)
