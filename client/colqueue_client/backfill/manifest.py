"""The record of a backfill: each document, each page and what became of it. Knows SQLite; knows no file and no service.

A page is `pending`, then `submitted` (in a job of the service), `collected` (its rows lie in `spool`) and `written`
(its rows are in the output), or `failed`. Each change is one transaction, so a process killed between two of them
leaves every page in exactly one of these states.
"""

import os
import sqlite3
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import closing, contextmanager
from pathlib import Path
from typing import Any, Final

import numpy as np

from colqueue_client.backfill.records import Collected, Counts, Document, PageKey, Sighting
from colqueue_client.errors import BackfillError, InputFailedError
from colqueue_client.wire import JobResult, Rows

__all__ = ["Manifest", "collected_rows"]

_VERSION: Final = 1
_SCHEMA: Final = """
CREATE TABLE facts (name TEXT PRIMARY KEY, value TEXT NOT NULL);
CREATE TABLE documents (
    id INTEGER PRIMARY KEY,
    name TEXT NOT NULL UNIQUE,
    path BLOB NOT NULL,          -- as the system has it, which need not be text
    kind TEXT NOT NULL,
    signature TEXT NOT NULL,     -- of the file, see sources.signature
    sha256 TEXT NOT NULL DEFAULT '',
    state TEXT NOT NULL,         -- new, open, changed (was open, looks different now), failed, skipped
    code TEXT NOT NULL DEFAULT '',
    message TEXT NOT NULL DEFAULT '',
    run INTEGER NOT NULL         -- the last one that found it
);
CREATE INDEX documents_by_state ON documents (state);
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
"""


class Manifest:
    """The manifest at `path`, made if it is not there. For one thread; `counts` is kept up to date by every change."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self._db = sqlite3.connect(path, isolation_level=None)
        self._db.execute("PRAGMA journal_mode = WAL")
        # What a power cut may take are the last transactions, never their order; output files are flushed before
        # the transaction that knows of them.
        self._db.execute("PRAGMA synchronous = NORMAL")
        version = self._one("PRAGMA user_version")
        if version == 0:
            with self._db:
                self._db.executescript(f"BEGIN; {_SCHEMA} PRAGMA user_version = {_VERSION}; COMMIT;")
        elif version != _VERSION:
            raise BackfillError(f"{path} is of another version of colqueue-client")
        self.run = int(self.fact("run") or 0) + 1
        self.set_fact("run", str(self.run))
        self.counts = Counts()
        self.collected_now = 0

    def close(self) -> None:
        """Close the file."""
        self._db.close()

    def fact(self, name: str) -> str | None:
        """Return what was noted of the backfill as a whole."""
        value: str | None = self._one("SELECT value FROM facts WHERE name = ?", name)
        return value

    def set_fact(self, name: str, value: str) -> None:
        """Note something of the backfill as a whole."""
        self._db.execute("INSERT OR REPLACE INTO facts VALUES (?, ?)", (name, value))

    # Documents

    def see(self, sightings: Iterable[Sighting]) -> None:
        """Note what this run has found. BackfillError where one name stands for two files."""
        with self._transaction():
            for sighting in sightings:
                self._see(sighting)

    def _see(self, seen: Sighting) -> None:
        name, path = seen.name.encode("utf-8", "backslashreplace").decode(), os.fsencode(seen.path)
        code, message = seen.failure or ("", "" if seen.kind else "not a PDF or an image")
        state = "failed" if seen.failure else "new" if seen.kind else "skipped"
        known = self._db.execute("SELECT id, path, signature, state, run FROM documents WHERE name = ?", (name,))
        if (row := known.fetchone()) is None:
            self._db.execute(
                "INSERT INTO documents (name, path, kind, signature, state, code, message, run) "
                "VALUES (?, ?, ?, ?, ?, ?, ?, ?)",
                (name, path, seen.kind or "", seen.signature, state, code, message, self.run),
            )
            return
        document, path_before, signature_before, state_before, run_before = row
        if run_before == self.run and path_before != path:
            raise BackfillError(
                f"two files would both be called {name}: {os.fsdecode(path_before)} and {seen.path}. "
                "Name a folder above both as the source."
            )
        self._db.execute("UPDATE documents SET path = ?, run = ? WHERE id = ?", (path, self.run, document))
        if seen.signature != signature_before:
            if state_before in {"open", "changed"}:  # its pages are in the output, and must leave it first
                state, code, message = "changed", "", ""
            self._db.execute(
                "UPDATE documents SET kind = ?, signature = ?, state = ?, code = ?, message = ? WHERE id = ?",
                (seen.kind or "", seen.signature, state, code, message, document),
            )

    def seen(self) -> None:
        """All documents have been found: count what is to do."""
        self.counts = self._counted()

    def gone(self) -> int:
        """Return how many documents of earlier runs this one has not found."""
        count: int = self._one("SELECT count(*) FROM documents WHERE run < ? AND state != 'skipped'", self.run)
        return count

    def documents(self, state: str) -> list[Document]:
        """Return up to 1000 documents in `state` that this run has found."""
        rows = self._db.execute(
            "SELECT id, name, path, kind, signature, sha256 FROM documents WHERE state = ? AND run = ? LIMIT 1000",
            (state, self.run),
        )
        return [_document(row) for row in rows.fetchall()]

    def document(self, document: int) -> Document:
        """Return the document of this id."""
        row = self._db.execute(
            "SELECT id, name, path, kind, signature, sha256 FROM documents WHERE id = ?", (document,)
        ).fetchone()
        return _document(row)

    def opened(self, document: Document, sha256: str, signature: str, pages: int) -> None:
        """Note a document's content, and that all its pages are to be embedded."""
        with self._transaction():
            self._db.execute("DELETE FROM pages WHERE document = ?", (document.id,))
            self._db.execute("DELETE FROM spool WHERE document = ?", (document.id,))
            self._db.executemany(
                "INSERT INTO pages (document, page, state) VALUES (?, ?, 'pending')",
                ((document.id, page) for page in range(1, pages + 1)),
            )
            self._set_document(document, "open", signature, sha256)
        self.counts.left += pages
        self.counts.unopened -= 1

    def unchanged(self, document: Document, signature: str) -> None:
        """Note that a document which looked different is the same."""
        self._set_document(document, "open", signature, document.sha256)

    def refused(self, document: Document, signature: str, failure: tuple[str, str]) -> None:
        """Note that a document cannot be opened, and why."""
        with self._transaction():
            self._db.execute("DELETE FROM pages WHERE document = ?", (document.id,))
            self._db.execute("DELETE FROM spool WHERE document = ?", (document.id,))
            self._set_document(document, "failed", signature, "", failure)
        self.counts.failed += 1
        self.counts.unopened -= 1

    def _set_document(
        self, document: Document, state: str, signature: str, sha256: str, failure: tuple[str, str] = ("", "")
    ) -> None:
        self._db.execute(
            "UPDATE documents SET state = ?, signature = ?, sha256 = ?, code = ?, message = ? WHERE id = ?",
            (state, signature, sha256, *failure, document.id),
        )

    # Pages

    def pending(self, after: PageKey, limit: int) -> list[PageKey]:
        """Return the next pages to embed behind `after`, all of one document, of those this run has found."""
        rows = self._db.execute(
            "SELECT document, page FROM pages JOIN documents ON id = document "
            "WHERE pages.state = 'pending' AND (document, page) > (?, ?) AND run = ? ORDER BY document, page LIMIT ?",
            (*after, self.run, limit),
        ).fetchall()
        return [(document, page) for document, page in rows if document == rows[0][0]]

    def attempts(self, keys: Sequence[PageKey]) -> list[int]:
        """Return how often each page has been submitted in vain."""
        return [self._one("SELECT attempt FROM pages WHERE document = ? AND page = ?", *key) for key in keys]

    def failed(self, key: PageKey, code: str, message: str) -> None:
        """Note that a page cannot be embedded, and why."""
        self._db.execute(
            "UPDATE pages SET state = 'failed', code = ?, message = ?, job = NULL, place = NULL "
            "WHERE document = ? AND page = ?",
            (code, message, *key),
        )
        self.counts.failed += 1
        self.counts.left -= 1

    def retry_failed(self) -> None:
        """Make everything that failed pending again."""
        with self._transaction():
            self._db.execute(
                "UPDATE pages SET state = 'pending', attempt = attempt + 1, code = '', message = '' "
                "WHERE state = 'failed'"
            )
            self._db.execute("UPDATE documents SET state = 'new' WHERE state = 'failed'")

    # Jobs

    def submitted(self, service_id: str, keys: Sequence[PageKey]) -> int:
        """Note that these pages, in order, are the inputs of a job of the service; return our number of it."""
        with self._transaction():
            job = self._db.execute(
                "INSERT INTO jobs (service_id, total) VALUES (?, ?)", (service_id, len(keys))
            ).lastrowid
            assert job is not None  # noqa: S101 - for mypy: it was inserted
            self._db.executemany(
                "UPDATE pages SET state = 'submitted', job = ?, place = ? WHERE document = ? AND page = ?",
                ((job, place, *key) for place, key in enumerate(keys)),
            )
        return job

    def jobs(self) -> list[tuple[int, str, int]]:
        """Return the jobs that nothing was collected of: our number, the service's id, and how many inputs."""
        return self._db.execute("SELECT id, service_id, total FROM jobs ORDER BY id").fetchall()

    def collected(self, job: int, result: JobResult, again: Iterable[InputFailedError] = ()) -> int:
        """Keep a job's result; pages whose failures are `again` are pending anew. Return the bytes kept."""
        failures = {failure.index: failure for failure in result.failures}
        once_more = {failure.index for failure in again}
        kept = 0
        with self._transaction():
            for document, page, place in self._pages_of(job):
                rows = result.embeddings[place]
                if rows is not None:
                    self._spool((document, page), rows)
                    kept += rows.nbytes
                elif place in once_more:
                    self._pending_anew((document, page))
                else:
                    self.failed((document, page), failures[place].code, failures[place].message)
            self._db.execute("DELETE FROM jobs WHERE id = ?", (job,))
        return kept

    def lost(self, job: int) -> None:
        """Note that the service knows nothing of a job any more: its pages are pending anew."""
        with self._transaction():
            for document, page, _ in self._pages_of(job):
                self._pending_anew((document, page))
            self._db.execute("DELETE FROM jobs WHERE id = ?", (job,))

    def _pages_of(self, job: int) -> list[tuple[int, int, int]]:
        query = "SELECT document, page, place FROM pages WHERE job = ? AND state = 'submitted'"
        return self._db.execute(query, (job,)).fetchall()

    def _pending_anew(self, key: PageKey) -> None:
        self._db.execute(
            "UPDATE pages SET state = 'pending', attempt = attempt + 1, job = NULL, place = NULL "
            "WHERE document = ? AND page = ?",
            key,
        )

    def _spool(self, key: PageKey, rows: Rows) -> None:
        little_endian = np.ascontiguousarray(rows, rows.dtype.newbyteorder("<"))
        self._db.execute(
            "INSERT OR REPLACE INTO spool VALUES (?, ?, ?, ?, ?, ?, ?)",
            (*key, rows.dtype.name, *rows.shape, rows.nbytes, little_endian.tobytes()),
        )
        self._db.execute(
            "UPDATE pages SET state = 'collected', job = NULL, place = NULL WHERE document = ? AND page = ?", key
        )
        self.counts.embedded += 1
        self.counts.left -= 1
        self.collected_now += 1

    # Output

    def spooled_bytes(self) -> int:
        """Return how much was collected and is not written yet."""
        total: int = self._one("SELECT coalesce(sum(bytes), 0) FROM spool")
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
            if not self._one(query, document):
                pages = self._db.execute("SELECT page FROM spool WHERE document = ? ORDER BY page", (document,))
                yield [(document, page) for (page,) in pages.fetchall()]

    def written(self, keys: Sequence[PageKey], file: str) -> None:
        """Note that these pages are in the output for good."""
        with self._transaction():
            self._db.executemany(
                "UPDATE pages SET state = 'written', file = ? WHERE document = ? AND page = ?",
                ((file, *key) for key in keys),
            )
            self._db.executemany("DELETE FROM spool WHERE document = ? AND page = ?", keys)

    def files(self) -> set[str]:
        """Return the output files that hold pages."""
        return {file for (file,) in self._db.execute("SELECT DISTINCT file FROM pages WHERE state = 'written'")}

    def missing(self, file: str) -> None:
        """Note that an output file is no longer there: its pages are to be embedded again."""
        with self._transaction():
            self._db.execute(
                "UPDATE pages SET state = 'pending', attempt = attempt + 1, file = NULL "
                "WHERE file = ? AND state = 'written'",
                (file,),
            )

    def failures(self) -> Iterator[Mapping[str, str | int | None]]:
        """Yield what failed, in order: document, page (None for a document as a whole), code, message."""
        query = """
            SELECT name, NULL AS page, code, message FROM documents WHERE state = 'failed' AND run = ?1
            UNION ALL
            SELECT name, page, pages.code, pages.message FROM pages JOIN documents ON id = document
            WHERE pages.state = 'failed' AND run = ?1 ORDER BY name, page
        """
        for row in self._db.execute(query, (self.run,)):
            yield dict(zip(("document", "page", "code", "message"), row, strict=True))

    def skipped(self) -> dict[str, int]:
        """Return how many files of each suffix were skipped."""
        names = self._db.execute("SELECT name FROM documents WHERE state = 'skipped' AND run = ?", (self.run,))
        suffixes: dict[str, int] = {}
        for (name,) in names:
            suffix = Path(name).suffix.lower() or "(no suffix)"
            suffixes[suffix] = suffixes.get(suffix, 0) + 1
        return suffixes

    def _counted(self) -> Counts:
        pages = dict(
            self._db.execute(
                "SELECT pages.state, count(*) FROM pages JOIN documents ON id = document "
                "WHERE run = ? AND documents.state = 'open' GROUP BY pages.state",
                (self.run,),
            ).fetchall()
        )
        documents = dict(
            self._db.execute(
                "SELECT state, count(*) FROM documents WHERE run = ? GROUP BY state", (self.run,)
            ).fetchall()
        )
        return Counts(
            embedded=pages.get("collected", 0) + pages.get("written", 0),
            failed=pages.get("failed", 0) + documents.get("failed", 0),
            skipped=documents.get("skipped", 0),
            left=pages.get("pending", 0) + pages.get("submitted", 0),
            unopened=documents.get("new", 0) + documents.get("changed", 0),
        )

    def _one(self, query: str, *values: object) -> Any:
        row = self._db.execute(query, values).fetchone()
        return None if row is None else row[0]

    @contextmanager
    def _transaction(self) -> Iterator[None]:
        self._db.execute("BEGIN IMMEDIATE")
        try:
            yield
        except BaseException:
            self._db.execute("ROLLBACK")
            raise
        self._db.execute("COMMIT")


def collected_rows(path: Path, keys: Iterable[PageKey]) -> Iterator[Collected]:
    """Yield the collected pages `keys` of the manifest at `path`, over a connection of its own: from any one thread."""
    query = (
        "SELECT name, sha256, dtype, n_rows, dim, rows FROM spool JOIN documents ON id = document "
        "WHERE document = ? AND page = ?"
    )
    with closing(sqlite3.connect(path, check_same_thread=False)) as db:
        for key in keys:
            name, sha256, dtype, n_rows, dim, rows = db.execute(query, key).fetchone()
            array = np.frombuffer(rows, np.dtype(dtype).newbyteorder("<")).reshape(n_rows, dim)
            yield Collected(key, name, key[1], sha256, array)


def _document(row: tuple[int, str, bytes, str, str, str]) -> Document:
    number, name, path, kind, signature, sha256 = row
    return Document(number, name, os.fsdecode(path), kind, signature, sha256)
