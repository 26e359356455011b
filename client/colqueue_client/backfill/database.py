"""Open the SQLite file of a backfill's manifest, and bring one of the previous version up to date."""

import os
import sqlite3
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Final

from colqueue_client.backfill.records import Document
from colqueue_client.errors import BackfillError

__all__ = ["DOCUMENT", "Database", "as_document"]

DOCUMENT: Final = "SELECT id, name, path, kind, signature, sha256, root, found_root FROM documents"
"""Selects what `as_document` reads."""

_VERSION: Final = 2
_SCHEMA: Final = """
CREATE TABLE facts (name TEXT PRIMARY KEY, value TEXT NOT NULL);
CREATE TABLE documents (
    id INTEGER PRIMARY KEY,
    name TEXT NOT NULL UNIQUE,
    path BLOB NOT NULL,          -- absolute, as the system has it, which need not be text
    root TEXT NOT NULL DEFAULT '',       -- the folder that the name is relative to; '' is not known
    found_root TEXT NOT NULL DEFAULT '', -- the same of the last sighting; `root` is that of the pages in the output
    kind TEXT NOT NULL,
    signature TEXT NOT NULL,     -- of the file, see sources.signature
    sha256 TEXT NOT NULL DEFAULT '',
    columns TEXT NOT NULL DEFAULT '',    -- the other columns of the list that names it, as JSON
    state TEXT NOT NULL,         -- new, open, changed (was open, looks different now), leaving, failed, skipped
    code TEXT NOT NULL DEFAULT '',
    message TEXT NOT NULL DEFAULT '',
    away_code TEXT NOT NULL DEFAULT '',  -- why the file cannot be read now though its pages are kept
    away_message TEXT NOT NULL DEFAULT '',
    run INTEGER NOT NULL         -- the last one that found it
);
CREATE INDEX documents_by_state ON documents (state);
CREATE INDEX documents_by_sha256 ON documents (sha256);
CREATE TABLE pages (
    document INTEGER NOT NULL REFERENCES documents,
    page INTEGER NOT NULL,
    state TEXT NOT NULL,
    attempt INTEGER NOT NULL DEFAULT 0,
    job INTEGER,                 -- while submitted
    place INTEGER,               -- of its input in that job
    file TEXT,                   -- where it is written
    code TEXT NOT NULL DEFAULT '',
    message TEXT NOT NULL DEFAULT '',
    width INTEGER,               -- of its image, in pixels
    height INTEGER,
    PRIMARY KEY (document, page)
) WITHOUT ROWID;
CREATE INDEX pages_pending ON pages (document, page) WHERE state = 'pending';
CREATE INDEX pages_of_job ON pages (job) WHERE state = 'submitted';
CREATE INDEX pages_of_file ON pages (file) WHERE state = 'written';
CREATE TABLE jobs (id INTEGER PRIMARY KEY, service_id TEXT NOT NULL, total INTEGER NOT NULL);
CREATE TABLE spool (
    document INTEGER NOT NULL,
    page INTEGER NOT NULL,
    dtype TEXT NOT NULL,
    n_rows INTEGER NOT NULL,
    dim INTEGER NOT NULL,
    bytes INTEGER NOT NULL,
    rows BLOB NOT NULL,
    PRIMARY KEY (document, page)
);
CREATE TABLE files (
    name TEXT PRIMARY KEY,       -- of an output file
    state TEXT NOT NULL          -- writing (perhaps not there, or half), held, leaving (its pages are in another one)
) WITHOUT ROWID;
"""
_FROM_VERSION_1: Final = """
ALTER TABLE documents ADD COLUMN root TEXT NOT NULL DEFAULT '';
ALTER TABLE documents ADD COLUMN found_root TEXT NOT NULL DEFAULT '';
ALTER TABLE documents ADD COLUMN columns TEXT NOT NULL DEFAULT '';
ALTER TABLE documents ADD COLUMN away_code TEXT NOT NULL DEFAULT '';
ALTER TABLE documents ADD COLUMN away_message TEXT NOT NULL DEFAULT '';
CREATE INDEX documents_by_sha256 ON documents (sha256);
ALTER TABLE pages ADD COLUMN width INTEGER;
ALTER TABLE pages ADD COLUMN height INTEGER;
CREATE TABLE files (name TEXT PRIMARY KEY, state TEXT NOT NULL) WITHOUT ROWID;
INSERT INTO files SELECT DISTINCT file, 'held' FROM pages WHERE state = 'written';
"""
# Less than this is not worth writing the file anew.
_WORTH_SHRINKING: Final = 2**20


class Database:
    """The SQLite file at `path`, made if it is not there. For one thread."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self._connection = sqlite3.connect(path, isolation_level=None)
        try:
            version = self.one("PRAGMA user_version")
        except sqlite3.DatabaseError as error:
            raise BackfillError(f"{path} cannot be read as the manifest of a backfill: {error}") from error
        if version == 0 and self.one("SELECT count(*) FROM sqlite_master"):
            raise BackfillError(f"{path} was not made by a backfill: give another folder")
        if version > _VERSION:
            raise BackfillError(f"{path} was made by a newer colqueue-client: use that one")
        self.execute("PRAGMA journal_mode = WAL")
        # What a power cut may take are the last transactions, never their order; output files are flushed before
        # the transaction that knows of them.
        self.execute("PRAGMA synchronous = NORMAL")
        if version == 0:
            self._connection.executescript(f"BEGIN; {_SCHEMA} PRAGMA user_version = {_VERSION}; COMMIT;")
        elif version == 1:
            self._update_from_version_1()

    def close(self) -> None:
        """Close the file."""
        self._connection.close()

    def execute(self, query: str, values: Iterable[object] = ()) -> sqlite3.Cursor:
        """Run one statement."""
        return self._connection.execute(query, tuple(values))

    def executemany(self, query: str, rows: Iterable[Iterable[object]]) -> None:
        """Run one statement for each row of values."""
        self._connection.executemany(query, map(tuple, rows))

    def one(self, query: str, *values: object) -> Any:
        """Return the first value of the first row, or None."""
        row = self.execute(query, values).fetchone()
        return None if row is None else row[0]

    @contextmanager
    def transaction(self) -> Iterator[None]:
        """Make everything within one change, or none where it raises."""
        self.execute("BEGIN IMMEDIATE")
        try:
            yield
        except BaseException:
            self.execute("ROLLBACK")
            raise
        self.execute("COMMIT")

    def shrink(self) -> None:
        """Give the space of what was deleted back to the disk, and leave one file that needs no log beside it."""
        try:
            if self.one("PRAGMA freelist_count") * self.one("PRAGMA page_size") > _WORTH_SHRINKING:
                self.execute("VACUUM")
            self.execute("PRAGMA journal_mode = DELETE")
        except sqlite3.OperationalError:
            # Somebody reads the file, or the disk has no room for the smaller one beside it: it stays large, and whole.
            return

    def _update_from_version_1(self) -> None:
        with self.transaction():
            for statement in filter(str.strip, _FROM_VERSION_1.split(";")):
                self.execute(statement)
            for document, name, path in self.execute("SELECT id, name, path FROM documents").fetchall():
                # That version kept paths as they were given; they are looked up from where this run is started.
                where = os.path.abspath(os.fsdecode(path))  # noqa: PTH100 - strings throughout
                root = where.removesuffix(f"/{name}") if where.endswith(f"/{name}") else ""
                self.execute(
                    "UPDATE documents SET path = ?, root = ?, found_root = ? WHERE id = ?",
                    (os.fsencode(where), root, root, document),
                )
            self.execute(f"PRAGMA user_version = {_VERSION}")


def as_document(row: tuple[int, str, bytes, str, str, str, str, str]) -> Document:
    """Return a row of `DOCUMENT` as its record."""
    number, name, path, *others = row
    return Document(number, name, os.fsdecode(path), *others)
