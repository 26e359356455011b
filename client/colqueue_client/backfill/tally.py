"""Count the pages and the skipped files of a manifest, and list its failures."""

from collections.abc import Iterator, Mapping
from pathlib import Path

from colqueue_client.backfill.database import Database
from colqueue_client.backfill.records import Counts

__all__ = ["count_pages", "count_skipped", "failures"]


def count_pages(database: Database, run: int) -> Counts:
    """Count the pages of the documents that this run has found.

    A document that cannot be read now counts as one failed page, and those of its pages that are embedded as embedded.
    """
    pages = dict(
        database.execute(
            "SELECT pages.state, count(*) FROM pages JOIN documents ON id = document "
            "WHERE run = ? AND documents.state = 'open' AND away_code = '' GROUP BY pages.state",
            (run,),
        ).fetchall()
    )
    kept = database.one(
        "SELECT count(*) FROM pages JOIN documents ON id = document "
        "WHERE run = ? AND away_code != '' AND pages.state IN ('collected', 'written')",
        run,
    )
    documents = dict(
        database.execute(
            "SELECT iif(away_code = '', state, 'away'), count(*) FROM documents WHERE run = ? GROUP BY 1", (run,)
        ).fetchall()
    )
    return Counts(
        embedded=pages.get("collected", 0) + pages.get("written", 0) + kept,
        failed=pages.get("failed", 0) + documents.get("failed", 0) + documents.get("away", 0),
        skipped=documents.get("skipped", 0),
        left=pages.get("pending", 0) + pages.get("submitted", 0),
        unopened=documents.get("new", 0) + documents.get("changed", 0) + documents.get("leaving", 0),
    )


def failures(database: Database, run: int) -> Iterator[Mapping[str, str | int | None]]:
    """Yield what failed, in order: document, page (None for a document as a whole), code, message."""
    query = """
        SELECT name, NULL AS page, code, message FROM documents WHERE state = 'failed' AND run = ?1
        UNION ALL
        SELECT name, NULL, away_code, away_message FROM documents WHERE away_code != '' AND run = ?1
        UNION ALL
        SELECT name, page, pages.code, pages.message FROM pages JOIN documents ON id = document
        WHERE pages.state = 'failed' AND run = ?1 AND away_code = '' ORDER BY name, page
    """
    for row in database.execute(query, (run,)):
        yield dict(zip(("document", "page", "code", "message"), row, strict=True))


def count_skipped(database: Database, run: int) -> dict[str, int]:
    """Return how many files of each suffix were skipped."""
    suffixes: dict[str, int] = {}
    for (name,) in database.execute("SELECT name FROM documents WHERE state = 'skipped' AND run = ?", (run,)):
        suffix = Path(name).suffix.lower() or "(no suffix)"
        suffixes[suffix] = suffixes.get(suffix, 0) + 1
    return suffixes
