"""Keep the part of the manifest about documents whose pages leave the output: changed, renamed, or gone."""

import json
import os
from collections.abc import Collection, Iterable

from colqueue_client.backfill.database import DOCUMENT, Database, as_document
from colqueue_client.backfill.gone import GONE
from colqueue_client.backfill.records import Document
from colqueue_client.backfill.spool import Spool
from colqueue_client.wire import Rows

__all__ = ["Departures"]


class _IncompleteError(Exception):
    """Not all pages of a document were found; ends a transaction."""


class Departures:
    """Documents that `run` has not found, and documents whose pages are to leave the output. For one thread."""

    def __init__(self, database: Database, spool: Spool, run: int) -> None:
        self._db = database
        self._spool = spool
        self._run = run
        self.renamed = 0
        self.pruned = 0

    # Documents of earlier runs that this one has not found

    def next_missing(self, roots: Collection[str], after: int) -> list[tuple[int, str, str]]:
        """Return id, path and root of the next of those with pages, below `roots` and behind the id `after`."""
        rows = self._db.execute(
            "SELECT id, path, found_root FROM documents WHERE run < ? AND id > ? AND state IN ('open', 'changed') "
            "AND found_root IN (SELECT value FROM json_each(?)) ORDER BY id LIMIT 1000",
            (self._run, after, json.dumps(sorted(roots))),
        )
        return [(document, os.fsdecode(path), root) for document, path, root in rows.fetchall()]

    def record_absent(self, documents: Iterable[tuple[int, str]]) -> None:
        """Note of documents that they are `gone`, or why nobody can tell."""
        with self._db.transaction():
            self._db.executemany(
                "UPDATE documents SET away_code = iif(?2 = ?3, ?3, 'unreachable'), away_message = ?2 WHERE id = ?1",
                ((document, state, GONE) for document, state in documents),
            )

    def count_absent(self) -> int:
        """Return how many documents are gone or out of reach."""
        count: int = self._db.one("SELECT count(*) FROM documents WHERE run < ? AND away_code != ''", self._run)
        return count

    def count_gone(self) -> int:
        """Return how many documents are gone whose pages stay in the output."""
        query = "SELECT count(*) FROM documents WHERE run < ? AND away_code = ?"
        count: int = self._db.one(query, self._run, GONE)
        return count

    def count_unreachable(self) -> tuple[int, str]:
        """Return how many documents are missing and perhaps not gone, and the reason for one of them."""
        query = "SELECT count(*), max(away_message) FROM documents WHERE run < ? AND away_code = 'unreachable'"
        count, reason = self._db.execute(query, (self._run,)).fetchone()
        return count, reason or ""

    def find_absent(self, kind: str, sha256: str, pages: int) -> Document | None:
        """Return an absent document of this content with all its pages in the output, if there is one."""
        query = (
            " WHERE sha256 = ? AND kind = ? AND state = 'open' AND run < ? AND away_code != '' AND ? = "
            "(SELECT count(*) FROM pages WHERE document = id AND pages.state = 'written') ORDER BY away_code LIMIT 1"
        )
        row = self._db.execute(DOCUMENT + query, (sha256, kind, self._run, pages)).fetchone()
        return None if row is None or not pages else as_document(row)

    def take_over(
        self, document: Document, before: Document, signature: str, pages: int, rows: Iterable[tuple[int, Rows]]
    ) -> bool:
        """Give a new document the pages of another one of the same content, which leaves if it is gone.

        False, and nothing is changed, where `rows` are not all of its pages.
        """
        try:
            with self._db.transaction():
                self._spool.drop(document.id)
                self._db.execute(
                    "INSERT INTO pages (document, page, state, width, height) "
                    "SELECT ?, page, 'pending', width, height FROM pages WHERE document = ?",
                    (document.id, before.id),
                )
                taken = 0
                for page, array in rows:
                    self._spool.put((document.id, page), array)
                    taken += 1
                _require_all(pages, taken)
                self._db.execute(
                    "UPDATE documents SET state = 'open', signature = ?, sha256 = ?, code = '', message = '' "
                    "WHERE id = ?",
                    (signature, before.sha256, document.id),
                )
                self._db.execute(
                    "UPDATE documents SET state = 'leaving' WHERE id = ? AND away_code = ?", (before.id, GONE)
                )
        except _IncompleteError:
            return False
        self.renamed += 1
        return True

    # Documents whose pages leave the output

    def begin_pruning(self) -> None:
        """Note that the pages of all documents that are gone are to leave the output."""
        query = (
            "UPDATE documents SET state = 'leaving' WHERE run < ? AND away_code = ? AND state IN ('open', 'changed')"
        )
        self.pruned = self._db.execute(query, (self._run, GONE)).rowcount

    def begin_removal(self, documents: Iterable[int]) -> None:
        """Note that the pages of these documents are to leave the output; from now on they count as not embedded."""
        with self._db.transaction():
            self._db.executemany(
                "UPDATE documents SET state = 'leaving' WHERE id = ?", ((document,) for document in documents)
            )

    def next_leaving(self) -> list[Document]:
        """Return up to 1000 documents whose pages are to leave the output."""
        return [
            as_document(row) for row in self._db.execute(DOCUMENT + " WHERE state = 'leaving' LIMIT 1000").fetchall()
        ]

    def end_removal(self, documents: Iterable[Document]) -> None:
        """Note that no page of these documents is in the output. Those that this run has found are new again."""
        with self._db.transaction():
            for document in documents:
                self._spool.drop(document.id)
                self._db.execute("DELETE FROM documents WHERE id = ? AND run < ?", (document.id, self._run))
                self._db.execute(
                    "UPDATE documents SET state = 'new', sha256 = '', root = found_root WHERE id = ?", (document.id,)
                )


def _require_all(pages: int, taken: int) -> None:
    if taken != pages:
        raise _IncompleteError
