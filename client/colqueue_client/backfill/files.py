"""Write files that are whole or not there."""

import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

__all__ = ["atomic_write", "flush_to_disk", "temporary_of"]


def temporary_of(path: Path) -> Path:
    """Return the name under which `path` is written; hidden, so that readers of the folder leave it out."""
    return path.with_name(f".{path.name}.part")


@contextmanager
def atomic_write(path: Path) -> Iterator[Path]:
    """Yield a name to write to; on leaving, that file is on disk and takes the place of `path` in one step."""
    temporary = temporary_of(path)
    temporary.unlink(missing_ok=True)  # what a kill has left, or a link: never write through it
    temporary.touch(exist_ok=False)
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
