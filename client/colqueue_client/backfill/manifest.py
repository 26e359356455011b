"""Keep the record of a backfill: each document, each page and what became of it, in SQLite.

A page is `pending`, then `submitted` (in a job of the service), `collected` (its rows lie in the spool) and `written`
(its rows are in the output), or `failed`. Each change is one transaction, so a process killed between two of them
leaves every page in exactly one of these states.
"""

import json
import os
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Final

from colqueue_client.backfill.database import DOCUMENT, Database, as_document
from colqueue_client.backfill.departures import Departures
from colqueue_client.backfill.records import Counts, Document, PageKey, Sighting, Size
from colqueue_client.backfill.spool import Spool
from colqueue_client.backfill.tally import count_pages, count_skipped, failures
from colqueue_client.errors import BackfillError, InputFailedError
from colqueue_client.wire import JobResult

__all__ = ["Manifest"]

UNREADABLE: Final = "unreadable"
"""The code of what could not be read, which is tried again by each run."""


class Manifest:
    """The manifest at `path`, made if it is not there. For one thread; `counts` is kept up to date by every change.

    `new_run` is false where the output is read or rewritten and no documents are looked for.
    """

    def __init__(self, path: Path, *, new_run: bool = True) -> None:
        self.path = path
        self._db = Database(path)
        self.spool = Spool(self._db)
        self.run = int(self.fact("run") or 0) + new_run
        self.set_fact("run", str(self.run))
        self.counts = Counts()
        self.collected_now = 0
        self.departures = Departures(self._db, self.spool, self.run)

    def close(self) -> None:
        """Close the file."""
        self._db.close()

    def shrink(self) -> None:
        """Give the space of what was deleted back to the disk."""
        self._db.shrink()

    def fact(self, name: str) -> str | None:
        """Return what was noted of the backfill as a whole."""
        value: str | None = self._db.one("SELECT value FROM facts WHERE name = ?", name)
        return value

    def set_fact(self, name: str, value: str) -> None:
        """Note something of the backfill as a whole."""
        self._db.execute("INSERT OR REPLACE INTO facts VALUES (?, ?)", (name, value))

    # Documents

    def roots(self) -> set[str]:
        """Return the folders that the names of this run's documents are relative to."""
        return {
            root for (root,) in self._db.execute("SELECT DISTINCT found_root FROM documents WHERE run = ?", (self.run,))
        }

    def columns(self) -> list[str]:
        """Return the columns that any list ever gave its documents, in the order of their appearance."""
        columns = dict.fromkeys(json.loads(self.fact("columns") or "[]"))
        for (kept,) in self._db.execute("SELECT DISTINCT columns FROM documents WHERE columns != ''"):
            columns |= dict.fromkeys(json.loads(kept))
        self.set_fact("columns", json.dumps(list(columns)))
        return list(columns)

    def record_found(self, sightings: Iterable[Sighting]) -> None:
        """Record the files that this run has found. BackfillError where one name stands for two files."""
        with self._db.transaction():
            for sighting in sightings:
                self._record_found(sighting)

    def _record_found(self, seen: Sighting) -> None:
        name, path = seen.name.encode("utf-8", "backslashreplace").decode(), os.fsencode(seen.path)
        columns = json.dumps(dict(seen.columns), ensure_ascii=False) if seen.columns else ""
        columns = columns.encode("utf-8", "backslashreplace").decode()
        code, message = seen.failure or ("", "" if seen.kind else "not a PDF or an image")
        state = "failed" if seen.failure else "new" if seen.kind else "skipped"
        known = self._db.execute("SELECT id, path, signature, state, root, run FROM documents WHERE name = ?", (name,))
        if (row := known.fetchone()) is None:
            self._db.execute(
                "INSERT INTO documents (name, path, root, found_root, kind, signature, columns, state, code, message, "
                "run) VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?)",
                (name, path, seen.root, seen.root, seen.kind or "", seen.signature, columns, state, code, message,
                 self.run),
            )  # fmt: skip
            return
        document, path_before, signature_before, state_before, root_before, run_before = row
        if run_before == self.run and path_before != path:
            raise BackfillError(
                f"two files would both be called {name}: {os.fsdecode(path_before)} and {seen.path}. "
                "Name a folder above both as the source."
            )
        has_pages = state_before in {"open", "changed", "leaving"}  # perhaps in the output, too
        self._db.execute(
            "UPDATE documents SET path = ?, found_root = ?, columns = ?, run = ?, away_code = '', away_message = '' "
            "WHERE id = ?",
            (path, seen.root, columns, self.run, document),
        )
        if has_pages and seen.failure:  # what it was is all that is known of it
            self.record_unreadable(document, seen.failure)
            return
        has_moved = has_pages and root_before not in {"", seen.root}
        if seen.failure or seen.signature != signature_before or has_moved:
            if has_pages:  # its pages may have to leave the output first
                state, code, message = "leaving" if state_before == "leaving" else "changed", "", ""
            self._db.execute(
                "UPDATE documents SET kind = ?, signature = ?, state = ?, code = ?, message = ? WHERE id = ?",
                (seen.kind or "", seen.signature, state, code, message, document),
            )
        if not has_pages or root_before == "":
            self._db.execute("UPDATE documents SET root = found_root WHERE id = ?", (document,))

    def record_unreadable(self, document: int, failure: tuple[str, str]) -> None:
        """Note that a document cannot be read in this run. Its pages stay what they are; none is embedded."""
        self._db.execute(
            "UPDATE documents SET away_code = ?, away_message = ? WHERE id = ?",
            (failure[0], f"{failure[1]}; its pages stay in the output", document),
        )

    def finish_finding(self) -> None:
        """Count what is to do, and requeue pages that could not be read before. Call it after `record_found`."""
        with self._db.transaction():
            self._db.execute("UPDATE documents SET away_code = '', away_message = '' WHERE run < ?", (self.run,))
            self._db.execute(
                "UPDATE pages SET state = 'pending', attempt = attempt + 1, code = '', message = '' "
                "WHERE state = 'failed' AND code = ? AND document IN "
                "(SELECT id FROM documents WHERE run = ? AND away_code = '')",
                (UNREADABLE, self.run),
            )
        self.counts = count_pages(self._db, self.run)

    def recount(self) -> None:
        """Count once more from the records, and not by counting along."""
        self.counts = count_pages(self._db, self.run)

    def documents(self, state: str) -> list[Document]:
        """Return up to 1000 documents in `state` that this run has found and can read."""
        rows = self._db.execute(
            f"{DOCUMENT} WHERE state = ? AND run = ? AND away_code = '' LIMIT 1000", (state, self.run)
        )
        return [as_document(row) for row in rows.fetchall()]

    def document(self, document: int) -> Document:
        """Return the document of this id."""
        return as_document(self._db.execute(f"{DOCUMENT} WHERE id = ?", (document,)).fetchone())

    def record_opened(self, document: Document, sha256: str, signature: str, pages: int) -> None:
        """Note a document's content, and that all its pages are to be embedded."""
        with self._db.transaction():
            self.spool.drop(document.id)
            self._db.executemany(
                "INSERT INTO pages (document, page, state) VALUES (?, ?, 'pending')",
                ((document.id, page) for page in range(1, pages + 1)),
            )
            self._set_document(document, "open", signature, sha256)
        self.counts.left += pages
        self.counts.unopened -= 1

    def record_unchanged(self, document: Document, signature: str) -> None:
        """Note that a document which looked different, or is found elsewhere, is the same."""
        self._set_document(document, "open", signature, document.sha256)

    def record_refused(self, document: Document, signature: str, failure: tuple[str, str]) -> None:
        """Note that a document cannot be opened, and why."""
        with self._db.transaction():
            self.spool.drop(document.id)
            self._set_document(document, "failed", signature, "", failure)
        self.counts.failed += 1
        self.counts.unopened -= 1

    def _set_document(
        self, document: Document, state: str, signature: str, sha256: str, failure: tuple[str, str] = ("", "")
    ) -> None:
        self._db.execute(
            "UPDATE documents SET state = ?, signature = ?, sha256 = ?, code = ?, message = ?, root = found_root "
            "WHERE id = ?",
            (state, signature, sha256, *failure, document.id),
        )

    # Pages

    def next_pending(self, after: PageKey, limit: int) -> list[PageKey]:
        """Return the next pages to embed behind `after`, all of one document, of those this run can read."""
        rows = self._db.execute(
            "SELECT document, page FROM pages JOIN documents ON id = document "
            "WHERE pages.state = 'pending' AND (document, page) > (?, ?) AND run = ? AND away_code = '' "
            "ORDER BY document, page LIMIT ?",
            (*after, self.run, limit),
        ).fetchall()
        return [(document, page) for document, page in rows if document == rows[0][0]]

    def attempts(self, keys: Sequence[PageKey]) -> list[int]:
        """Return how often each page has been submitted in vain."""
        return [self._db.one("SELECT attempt FROM pages WHERE document = ? AND page = ?", *key) for key in keys]

    def has_embeddings(self) -> bool:
        """Return whether any page is embedded, or at the service to be."""
        query = (
            "SELECT count(*) FROM (SELECT 1 FROM pages WHERE state IN ('submitted', 'collected', 'written') LIMIT 1)"
        )
        return bool(self._db.one(query))

    def record_failed(self, key: PageKey, code: str, message: str) -> None:
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
        with self._db.transaction():
            self._db.execute(
                "UPDATE pages SET state = 'pending', attempt = attempt + 1, code = '', message = '' "
                "WHERE state = 'failed'"
            )
            # What this run cannot look at has no signature: to open it would fail, too.
            self._db.execute("UPDATE documents SET state = 'new' WHERE state = 'failed' AND signature != ''")

    # Jobs

    def record_submitted(self, service_id: str, keys: Sequence[PageKey], sizes: Sequence[Size | None] = ()) -> int:
        """Note that these pages, in order, are the inputs of a job of the service; return our number of it."""
        with self._db.transaction():
            job = self._db.execute(
                "INSERT INTO jobs (service_id, total) VALUES (?, ?)", (service_id, len(keys))
            ).lastrowid
            assert job is not None  # noqa: S101 - for mypy: it was inserted
            self._db.executemany(
                "UPDATE pages SET state = 'submitted', job = ?, place = ?, width = ?, height = ? "
                "WHERE document = ? AND page = ?",
                ((job, place, *((sizes and sizes[place]) or (None, None)), *key) for place, key in enumerate(keys)),
            )
        return job

    def jobs(self) -> list[tuple[int, str, int]]:
        """Return the jobs that nothing was collected of: our number, the service's id, and how many inputs."""
        return self._db.execute("SELECT id, service_id, total FROM jobs ORDER BY id").fetchall()

    def record_collected(self, job: int, result: JobResult, again: Iterable[InputFailedError] = ()) -> int:
        """Keep a job's result; pages whose failures are `again` are pending anew. Return the bytes kept."""
        failures = {failure.index: failure for failure in result.failures}
        once_more = {failure.index for failure in again}
        kept = 0
        with self._db.transaction():
            for document, page, place in self._pages_of(job):
                rows = result.embeddings[place]
                if rows is not None:
                    self.spool.put((document, page), rows)
                    kept += rows.nbytes
                    self.counts.embedded += 1
                    self.counts.left -= 1
                    self.collected_now += 1
                elif place in once_more:
                    self._requeue((document, page))
                else:
                    self.record_failed((document, page), failures[place].code, failures[place].message)
            self._db.execute("DELETE FROM jobs WHERE id = ?", (job,))
        return kept

    def requeue_lost_pages(self, job: int) -> None:
        """Make the pages of a job that the service has lost pending again."""
        with self._db.transaction():
            for document, page, _ in self._pages_of(job):
                self._requeue((document, page))
            self._db.execute("DELETE FROM jobs WHERE id = ?", (job,))

    def _pages_of(self, job: int) -> list[tuple[int, int, int]]:
        query = "SELECT document, page, place FROM pages WHERE job = ? AND state = 'submitted'"
        return self._db.execute(query, (job,)).fetchall()

    def _requeue(self, key: PageKey) -> None:
        self._db.execute(
            "UPDATE pages SET state = 'pending', attempt = attempt + 1, job = NULL, place = NULL "
            "WHERE document = ? AND page = ?",
            key,
        )

    # Reports

    def failures(self) -> Iterator[Mapping[str, str | int | None]]:
        """Yield what failed, in order: document, page (None for a document as a whole), code, message."""
        return failures(self._db, self.run)

    def count_skipped(self) -> dict[str, int]:
        """Return how many files of each suffix were skipped."""
        return count_skipped(self._db, self.run)
