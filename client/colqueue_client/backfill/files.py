"""Files that are whole or not there. Knows the file system only."""

import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Final

__all__ = ["TEMPORARY", "appearing", "flush_to_disk"]

TEMPORARY: Final = ".part"
"""Ends the name of a file that is being written."""


@contextmanager
def appearing(path: Path) -> Iterator[Path]:
    """Yield a name to write to; on leaving, that file is on disk and takes the place of `path` in one step."""
    temporary = path.with_name(f".{path.name}{TEMPORARY}")
    yield temporary
    flush_to_disk(temporary)
    temporary.replace(path)
    flush_to_disk(path.parent)


def flush_to_disk(path: Path) -> None:
    """Return once what is at `path`, a file or the entries of a folder, is on disk."""
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)
