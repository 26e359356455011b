"""Keep the rows between the service and the output, and the names of the output files: a part of the manifest."""

import json
import sqlite3
from collections.abc import Iterable, Iterator, Sequence
from contextlib import closing
from pathlib import Path

import numpy as np

from colqueue_client.backfill.database import Database
from colqueue_client.backfill.records import Collected, PageKey
from colqueue_client.wire import Rows

__all__ = ["Spool", "collected_rows"]


class Spool:
    """Rows that are collected and in no output file yet, and the output files by name. For one thread."""

    def __init__(self, database: Database) -> None:
        self._db = database

    # Rows

    def put(self, key: PageKey, rows: Rows) -> None:
        """Keep a page's rows; its state is `collected`. Within a transaction of the caller's."""
        little_endian = np.ascontiguousarray(rows, rows.dtype.newbyteorder("<"))
        self._db.execute(
            "INSERT OR REPLACE INTO spool VALUES (?, ?, ?, ?, ?, ?, ?)",
            (*key, rows.dtype.name, *rows.shape, rows.nbytes, little_endian.tobytes()),
        )
        self._db.execute(
            "UPDATE pages SET state = 'collected', job = NULL, place = NULL WHERE document = ? AND page = ?", key
        )

    def drop(self, document: int) -> None:
        """Forget all pages of a document, collected or not. Within a transaction of the caller's."""
        self._db.execute("DELETE FROM pages WHERE document = ?", (document,))
        self._db.execute("DELETE FROM spool WHERE document = ?", (document,))

    def total_bytes(self) -> int:
        """Return how much was collected and is not written yet."""
        total: int = self._db.one("SELECT coalesce(sum(bytes), 0) FROM spool")
        return total

    def to_write(self, most_bytes: int) -> list[PageKey]:
        """Return collected pages in order, up to `most_bytes` of them or one."""
        keys: list[PageKey] = []
        total = 0
        for document, page, size in self._db.execute("SELECT document, page, bytes FROM spool ORDER BY document, page"):
            if keys and total + size > most_bytes:
                break
            keys.append((document, page))
            total += size
        return keys

    def whole_documents(self) -> Iterator[list[PageKey]]:
        """Yield the collected pages of each document that has no page to come."""
        for (document,) in self._db.execute("SELECT DISTINCT document FROM spool").fetchall():
            query = "SELECT count(*) FROM pages WHERE document = ? AND state IN ('pending', 'submitted')"
            if not self._db.one(query, document):
                pages = self._db.execute("SELECT page FROM spool WHERE document = ? ORDER BY page", (document,))
                yield [(document, page) for (page,) in pages.fetchall()]

    # Output files

    def begin_file(self, name: str) -> None:
        """Note that a file of this name may be there from now on, perhaps half, unless it holds pages already."""
        self._db.execute(
            "INSERT INTO files VALUES (?1, 'writing') ON CONFLICT DO UPDATE SET state = 'writing' "
            "WHERE NOT EXISTS (SELECT 1 FROM pages WHERE file = ?1 AND state = 'written')",
            (name,),
        )

    def record_written(self, keys: Sequence[PageKey], file: str) -> None:
        """Note that these pages are in the output for good."""
        with self._db.transaction():
            self._db.execute("INSERT OR REPLACE INTO files VALUES (?, 'held')", (file,))
            self._db.executemany(
                "UPDATE pages SET state = 'written', file = ? WHERE document = ? AND page = ?",
                ((file, *key) for key in keys),
            )
            self._db.executemany("DELETE FROM spool WHERE document = ? AND page = ?", keys)

    def record_merged(self, files: Sequence[str], into: str) -> None:
        """Note that the pages of `files` are all in `into`, and that those files are to go."""
        with self._db.transaction():
            self._db.execute("INSERT OR REPLACE INTO files VALUES (?, 'held')", (into,))
            for file in files:
                self._db.execute("UPDATE pages SET file = ? WHERE file = ? AND state = 'written'", (into, file))
                self._db.execute("UPDATE files SET state = 'leaving' WHERE name = ?", (file,))

    def files(self) -> set[str]:
        """Return the output files that hold pages."""
        return {name for (name,) in self._db.execute("SELECT name FROM files WHERE state = 'held'")}

    def unwanted_files(self) -> set[str]:
        """Return the output files that a kill may have left: never finished, or merged into others."""
        return {name for (name,) in self._db.execute("SELECT name FROM files WHERE state != 'held'")}

    def record_removed(self, files: Iterable[str]) -> None:
        """Note that output files are no longer there: the pages that they held are to be embedded again."""
        with self._db.transaction():
            for file in files:
                self._db.execute("DELETE FROM files WHERE name = ?", (file,))
                self._db.execute(
                    "UPDATE pages SET state = 'pending', attempt = attempt + 1, file = NULL "
                    "WHERE file = ? AND state = 'written'",
                    (file,),
                )

    def files_of(self, document: int) -> set[str]:
        """Return the output files that hold pages of a document."""
        query = "SELECT DISTINCT file FROM pages WHERE document = ? AND state = 'written'"
        return {file for (file,) in self._db.execute(query, (document,))}

    def name_of(self, key: PageKey) -> str:
        """Return the name of the document of a page."""
        name: str = self._db.one("SELECT name FROM documents WHERE id = ?", key[0])
        return name


def collected_rows(path: Path, keys: Iterable[PageKey]) -> Iterator[Collected]:
    """Yield the collected pages `keys` of the manifest at `path`, over a connection of its own: from any one thread."""
    query = (
        "SELECT name, sha256, columns, width, height, dtype, n_rows, dim, rows FROM spool "
        "JOIN documents ON id = spool.document "
        "JOIN pages ON pages.document = spool.document AND pages.page = spool.page "
        "WHERE spool.document = ? AND spool.page = ?"
    )
    with closing(sqlite3.connect(path, check_same_thread=False)) as db:
        for key in keys:
            name, sha256, columns, width, height, dtype, n_rows, dim, rows = db.execute(query, key).fetchone()
            array = np.frombuffer(rows, np.dtype(dtype).newbyteorder("<")).reshape(n_rows, dim)
            size = None if width is None else (width, height)
            yield Collected(key, name, key[1], sha256, array, size, json.loads(columns) if columns else {})
