"""Which files a backfill is about. Knows paths, patterns and lists; opens no document."""

import csv
import glob
import json
import os
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path, PurePath
from typing import Final, TextIO

from colqueue_client.errors import BackfillError

__all__ = ["IMAGE", "PDF", "TIFF", "UNREADABLE", "Found", "find", "kind_of", "signature"]

PDF: Final = "pdf"
IMAGE: Final = "image"
TIFF: Final = "tiff"
UNREADABLE: Final = "/"
_KINDS: Final = {".pdf": PDF, ".tif": TIFF, ".tiff": TIFF} | dict.fromkeys(
    (".avif", ".bmp", ".gif", ".jp2", ".jpeg", ".jpg", ".png", ".pnm", ".ppm", ".webp"), IMAGE
)


@dataclass(frozen=True, slots=True)
class Found:
    """One file: the name under which its pages go out, and where it is."""

    name: str
    """Its path relative to its source, with slashes; never absolute, never upwards."""
    path: str


def kind_of(path: str) -> str | None:
    """Return what a file is, by its suffix; None for what has no pages that we can show."""
    return _KINDS.get(PurePath(path).suffix.lower())


def signature(path: str) -> str:
    """Return what changes whenever the file's content may have; OSError where there is no file to read.

    As git does it: size, inode, and the times of the last change to the content and to anything of the file.
    """
    facts = os.stat(path)  # noqa: PTH116 - half a million of them: no objects in between
    return f"{facts.st_size} {facts.st_ino} {facts.st_mtime_ns} {facts.st_ctime_ns}"


def find(sources: Sequence[str], stdin: TextIO, leave_out: Path) -> Iterator[Found]:
    """Yield the files of each source in turn, none of them in any order, without hidden entries and `leave_out`.

    A source is a folder, a file, a pattern (`**` reaches into folders), a list in a .jsonl or .csv file, or `-` for a
    list on `stdin`, one path a line. Links to folders are not followed. A folder that cannot be read is yielded itself,
    with a name that ends with `UNREADABLE`. BackfillError for a source that is none of it.
    """
    for source in sources:
        if source == "-":
            yield from _listed({"path": line.rstrip("\r\n")} for line in stdin if line.strip())
        elif os.path.isdir(source):  # noqa: PTH112 - as below, strings throughout
            yield from _walked(source, str(leave_out.resolve()))
        elif os.path.isfile(source):  # noqa: PTH113
            yield from _file(Path(source))
        elif glob.has_magic(source):
            yield from _matched(source)
        else:
            raise BackfillError(f"{source}: no such file, folder or pattern")


def _file(path: Path) -> Iterator[Found]:
    if path.suffix.lower() not in {".jsonl", ".csv"}:
        yield Found(path.name, str(path))
        return
    try:
        with path.open(encoding="utf-8-sig", newline="") as lines:
            entries = (
                csv.DictReader(lines) if path.suffix.lower() == ".csv" else map(json.loads, filter(str.strip, lines))
            )
            yield from _listed(entries, path.parent)
    except (ValueError, csv.Error) as error:
        raise BackfillError(f"{path}: {error}") from error


def _listed(entries: Iterable[dict[str, str]], folder: Path = Path()) -> Iterator[Found]:
    for number, entry in enumerate(entries, 1):
        path = entry.get("path") if isinstance(entry, dict) else None
        if not path:
            raise BackfillError(f"entry {number} of the list has no `path`")
        yield Found(_relative(entry.get("document") or path), str(folder / path))


def _relative(path: str) -> str:
    """Return a path's parts without those that lead out of where the names begin."""
    return "/".join(part for part in PurePath(path).parts if part not in {"/", "..", "."})


def _walked(root: str, leave_out: str) -> Iterator[Found]:
    folders = [root]
    while folders:
        folder = folders.pop()
        try:
            entries = os.scandir(folder)
        except OSError:
            yield Found(_name(folder, root) + UNREADABLE, folder)
            continue
        with entries:
            for entry in entries:
                if entry.name.startswith("."):
                    continue
                if entry.is_dir(follow_symlinks=False):
                    if os.path.realpath(entry.path) != leave_out:
                        folders.append(entry.path)
                elif not entry.is_dir():
                    yield Found(_name(entry.path, root), entry.path)


def _name(path: str, root: str | Path) -> str:
    return os.path.relpath(path, root).replace(os.sep, "/")


def _matched(pattern: str) -> Iterator[Found]:
    fixed = Path(pattern)
    while glob.has_magic(str(fixed)):
        fixed = fixed.parent
    for path in glob.iglob(pattern, recursive=True):  # noqa: PTH207 - patterns may be absolute
        if os.path.isfile(path):  # noqa: PTH113
            yield Found(_name(path, fixed), path)
