"""Find the files that a backfill is about: from folders, files, patterns and lists. No document is opened."""

import csv
import errno
import glob
import json
import os
import re
import stat
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path, PurePath
from typing import Any, Final, TextIO

from colqueue_client.backfill.records import COLUMNS, Sighting
from colqueue_client.errors import BackfillError

__all__ = ["FOLDER", "IMAGE", "KINDS", "PDF", "TIFF", "Found", "find", "folders_in", "kind_of", "sight", "signature"]

PDF: Final = "pdf"
IMAGE: Final = "image"
TIFF: Final = "tiff"
FOLDER: Final = "/"
"""Ends the name of a folder that cannot be read."""

# The endings that Pillow registers for the formats the service decodes (worker/model/decode.py); a test compares.
_IMAGES: Final = (
    ".apng", ".avif", ".avifs", ".bmp", ".gif", ".j2c", ".j2k", ".jfif", ".jp2", ".jpc", ".jpe", ".jpeg", ".jpf",
    ".jpg", ".jpx", ".mpo", ".pbm", ".pfm", ".pgm", ".png", ".pnm", ".ppm", ".webp",
)  # fmt: skip
KINDS: Final[Mapping[str, str]] = {".pdf": PDF, ".tif": TIFF, ".tiff": TIFF} | dict.fromkeys(_IMAGES, IMAGE)
"""What a file is, by the ending of its name."""

# What a run writes into DIR, for a source that is DIR itself; other files in folders of these names are the user's.
_WRITTEN_INTO_DIR: Final = re.compile(r"(_backfill|lancedb|qdrant)/.*|pages/.*\.parquet|documents/.*\.npz", re.DOTALL)

# These keys of a list's entry have a meaning of their own; the others are carried along into the output.
_OWN_KEYS: Final = frozenset({"path", "document", "password"})


@dataclass(frozen=True, slots=True)
class Found:
    """One file: the name under which its pages go out, and where it is."""

    name: str
    """Its path relative to `root`, with slashes, or the name that a list gives it; never absolute, never upwards."""
    path: str
    """Absolute."""
    root: str
    """The absolute path of the folder that the name is relative to."""
    columns: Mapping[str, str] = field(default_factory=dict)
    """The other columns of the list that names it."""
    password: str = field(default="", repr=False)
    """That opens it, where the list has one."""
    failure: str = ""
    """Why it cannot be read, where that is known already."""


def kind_of(path: str) -> str | None:
    """Return what a file is, by the ending of its name; None where we cannot show its pages."""
    return KINDS.get(PurePath(path).suffix.lower())


def signature(path: str) -> str:
    """Return what changes whenever the file's content may have changed. OSError where there is no file to read.

    As git does it: size, inode, and the times of the last change to the content and to anything of the file. What is
    not a regular file is refused: opening a FIFO would wait for a writer.
    """
    facts = os.stat(path)  # noqa: PTH116 - half a million of them: no objects in between
    if not stat.S_ISREG(facts.st_mode):
        raise OSError(errno.EINVAL, "it is not a regular file")
    return f"{facts.st_size} {facts.st_ino} {facts.st_mtime_ns} {facts.st_ctime_ns}"


def find(sources: Sequence[str], stdin: TextIO, leave_out: Path) -> Iterator[Found]:
    """Yield the files of each source in turn, none of them in any order, without hidden entries and `leave_out`.

    A source is a folder, a file, a pattern (`**` reaches into folders), a list in a .jsonl or .csv file, or `-` for a
    list on `stdin`, one path a line. Links to folders are not followed. A folder that cannot be read is yielded itself,
    with a name that ends with `FOLDER`. BackfillError for a source that is none of it, and for a pattern without files.
    """
    for source in sources:
        if source == "-":
            yield from _read_entries(({"path": line.rstrip("\r\n")} for line in stdin if line.strip()), Path.cwd())
        elif os.path.isdir(source):  # noqa: PTH112 - as below, strings throughout
            yield from _walk(os.path.abspath(source), str(leave_out.resolve()))  # noqa: PTH100
        elif os.path.isfile(source):  # noqa: PTH113
            yield from _file(Path(source).absolute())
        elif glob.has_magic(source) and not os.path.lexists(source):
            yield from _find_matches(os.path.abspath(source), source)  # noqa: PTH100
        else:
            raise BackfillError(f"{source}: {_why_no_source(source)}")


def folders_in(sources: Sequence[str]) -> set[str]:
    """Return the absolute paths of the sources that are folders, also of those with nothing in them."""
    return {os.path.abspath(source) for source in sources if os.path.isdir(source)}  # noqa: PTH100, PTH112


def sight(found: Found) -> Sighting:
    """Return a file as it is now: its kind and signature, or why it cannot be read."""
    kind, why = kind_of(found.path), found.failure
    if not why:
        try:
            now = signature(found.path) if kind else ""
            return Sighting(found.name, found.path, kind, now, root=found.root, columns=found.columns)
        except (OSError, ValueError) as error:  # ValueError: a null character in a list
            why = f"the file cannot be read: {getattr(error, 'strerror', None) or error}"
    return Sighting(found.name, found.path, kind, "", ("unreadable", why), found.root, found.columns)


def _why_no_source(source: str) -> str:
    try:
        os.stat(source)  # noqa: PTH116
    except FileNotFoundError:
        return "no such file, folder or pattern"
    except (OSError, ValueError) as error:
        return f"it cannot be read: {getattr(error, 'strerror', None) or error}"
    return "it is neither a file nor a folder"


def _file(path: Path) -> Iterator[Found]:
    if path.suffix.lower() not in {".jsonl", ".csv"}:
        yield Found(path.name, str(path), str(path.parent))
        return
    try:
        with path.open(encoding="utf-8-sig", newline="") as lines:
            entries = (
                csv.DictReader(lines) if path.suffix.lower() == ".csv" else map(json.loads, filter(str.strip, lines))
            )
            yield from _read_entries(entries, path.parent)
    except (OSError, ValueError, csv.Error) as error:
        raise BackfillError(f"{path}: the list cannot be read: {error}") from error
    except BackfillError as error:
        raise BackfillError(f"{path}: {error}") from error


def _read_entries(entries: Iterable[Any], folder: Path) -> Iterator[Found]:
    for number, entry in enumerate(entries, 1):
        if not isinstance(entry, dict) or not isinstance(path := entry.get("path"), str) or not path:
            raise BackfillError(f"entry {number} of the list has no `path`")
        given = entry.get("document")
        if isinstance(given, bool | list | dict):
            raise BackfillError(f"entry {number} of the list: `document` has to be a text or a number")
        where = str(folder / path)
        name = _relative(str(given) if given not in (None, "") else path)
        if not name:
            raise BackfillError(f"entry {number} of the list: {given or path!r} is no name for a document")
        others = (key for key in entry if key and key not in _OWN_KEYS and key.lower() != "password")
        columns = {_column(key): _as_text(entry[key]) for key in others}
        try:
            os.fsencode(where)
        except UnicodeEncodeError:  # JSON can hold halves of characters, which no file system has
            yield Found(name, "", str(folder), columns, failure="no file can have this name")
            continue
        yield Found(name, where, str(folder), columns, _as_text(entry.get("password")))


def _column(key: str) -> str:
    return f"list_{key}" if key.lower() in COLUMNS else key


def _as_text(value: Any) -> str:
    return value if isinstance(value, str) else "" if value is None else json.dumps(value, ensure_ascii=False)


def _relative(path: str) -> str:
    """Return a path's parts without those that lead out of where the names begin."""
    return "/".join(part for part in PurePath(path).parts if part not in {"/", "//", "..", "."})


def _walk(root: str, leave_out: str) -> Iterator[Found]:
    folders = [root]
    is_output = os.path.realpath(root) == leave_out
    while folders:
        folder = folders.pop()
        try:
            with os.scandir(folder) as entries:
                for entry in entries:
                    if entry.name.startswith("."):
                        continue
                    if entry.is_dir(follow_symlinks=False):
                        if os.path.realpath(entry.path) != leave_out:
                            folders.append(entry.path)
                    elif not _is_link_to_folder(entry):
                        name = _name(entry.path, root)
                        if not (is_output and _WRITTEN_INTO_DIR.fullmatch(name)):
                            yield Found(name, entry.path, root)
        except OSError as error:  # at its beginning, or on the way: what was not listed is not gone
            why = f"the folder cannot be read: {error.strerror}"
            yield Found(_name(folder, root) + FOLDER, folder, root, failure=why)


def _is_link_to_folder(entry: os.DirEntry[str]) -> bool:
    try:
        return entry.is_dir()
    except OSError:  # a loop of links, or a link into a folder that is closed to us: it fails as a file
        return False


def _name(path: str, root: str) -> str:
    return os.path.relpath(path, root).replace(os.sep, "/")


def _find_matches(pattern: str, given: str) -> Iterator[Found]:
    fixed = Path(pattern)
    while glob.has_magic(str(fixed)):
        fixed = fixed.parent
    matched = False
    for path in glob.iglob(pattern, recursive=True):  # noqa: PTH207 - patterns may be absolute
        if not os.path.isdir(path):  # noqa: PTH112 - a link that leads nowhere is found, so that it can fail
            matched = True
            yield Found(_name(path, str(fixed)), path, str(fixed))
    if not matched:
        raise BackfillError(f"{given}: no file matches this pattern")
