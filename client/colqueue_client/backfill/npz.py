"""One `.npz` a document. Knows NumPy's format; knows no manifest."""

import zipfile
from collections.abc import Iterable, Sequence
from contextlib import AbstractContextManager, nullcontext
from itertools import chain
from pathlib import Path
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from colqueue_client.backfill.files import TEMPORARY, appearing
from colqueue_client.backfill.records import Collected

__all__ = ["FOLDER", "NpzFiles"]

FOLDER: Final = "documents"


class NpzFiles:
    """`documents/<document>.npz`: `page_1` ... (n_rows x dim), `model`, `sha256`; failed pages have no entry."""

    batch_bytes: int | None = None

    def __init__(self, folder: Path, model: str) -> None:
        self._folder = folder / FOLDER
        self._model = model

    def tidy(self, known: set[str]) -> Iterable[str]:
        """Remove what was half written. A file that was written and never noted is written again, over itself."""
        for left in self._folder.rglob(f".*{TEMPORARY}"):
            left.unlink()
        return {name for name in known if not self._path(name).is_file()}

    def write(self, pages: Iterable[Collected]) -> str:
        """Write the pages of one document, one in memory at a time, beside those it has already; return its name."""
        iterator = iter(pages)
        first = next(iterator)
        path = self._path(first.document)
        path.parent.mkdir(parents=True, exist_ok=True)
        with appearing(path) as temporary, zipfile.ZipFile(temporary, "w", allowZip64=True) as archive:
            _add(archive, "model", np.array(self._model))
            _add(archive, "sha256", np.array(first.sha256))
            added = set()
            for page in chain([first], iterator):
                _add(archive, f"page_{page.page}", page.rows)
                added.add(f"page_{page.page}")
            if path.exists():  # pages that failed then and did not now
                with np.load(path, allow_pickle=False) as before:
                    for name in sorted({name for name in before.files if name.startswith("page_")} - added):
                        _add(archive, name, before[name])
        return first.document

    def forget(self, documents: Sequence[str]) -> None:
        """Remove these documents' files."""
        for document in documents:
            self._path(document).unlink(missing_ok=True)

    def check(self, dtype: str) -> None:
        """Every dtype can be kept in files."""

    def translated(self) -> AbstractContextManager[None]:
        """Errors of files stay as they are."""
        return nullcontext()

    def close(self) -> None:
        """Nothing is held between two calls."""

    def _path(self, document: str) -> Path:
        return self._folder / f"{document}.npz"


def _add(archive: zipfile.ZipFile, name: str, array: NDArray[Any]) -> None:
    with archive.open(f"{name}.npy", "w", force_zip64=True) as entry:
        np.lib.format.write_array(entry, array, allow_pickle=False)
