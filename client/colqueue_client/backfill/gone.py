"""Tell documents that are gone from documents that cannot be reached now."""

import os
from typing import Final

__all__ = ["GONE", "THERE", "state_of"]

THERE: Final = "there"
GONE: Final = "gone"


def state_of(path: str, root: str) -> str:
    """Return `GONE` where there is certainly no file at `path`, `THERE` where there is one, or else the doubt.

    A share that is not mounted is a folder that is empty, or not there. So a file below its source `root` is gone only
    where the source is there and the nearest folder above the file that is there has something in it.
    """
    try:
        os.lstat(path)
    except (FileNotFoundError, NotADirectoryError):
        return _state_of_missing(path, root)
    except OSError as error:
        return f"{path} cannot be read: {error.strerror}"
    return THERE


def _state_of_missing(path: str, root: str) -> str:
    folder = os.path.dirname(path)  # noqa: PTH120 - strings throughout, as in sources
    if folder.startswith(f"{root}/"):
        while folder != root and not os.path.lexists(folder):
            folder = os.path.dirname(folder)  # noqa: PTH120
    try:
        with os.scandir(folder) as entries:
            return GONE if any(True for _ in entries) else f"{folder} is empty: is it mounted?"
    except OSError as error:
        return f"{folder} cannot be read: {error.strerror}"
