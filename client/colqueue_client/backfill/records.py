"""What a backfill says of its documents and pages: plain records. Knows no SQLite, no file and no service."""

from dataclasses import dataclass

from colqueue_client.wire import Rows

__all__ = ["Collected", "Counts", "Document", "PageKey", "Sighting"]

PageKey = tuple[int, int]
"""A document's id, and the number of a page of it from 1."""


@dataclass(frozen=True, slots=True)
class Document:
    """A file of a source."""

    id: int
    name: str
    path: str
    kind: str
    signature: str
    sha256: str


@dataclass(frozen=True, slots=True)
class Sighting:
    """A file as a run has found it."""

    name: str
    path: str
    kind: str | None
    """None: it is to be skipped."""
    signature: str
    failure: tuple[str, str] | None = None
    """Code and sentence, where it cannot even be looked at."""


@dataclass(frozen=True, slots=True)
class Collected:
    """A page's embedding on its way into the output."""

    key: PageKey
    document: str
    page: int
    sha256: str
    rows: Rows


@dataclass(slots=True)
class Counts:
    """Pages by what became of them. A document that cannot be opened is one failed page, a skipped file one skipped."""

    embedded: int = 0
    failed: int = 0
    skipped: int = 0
    left: int = 0
    unopened: int = 0
    """Documents whose pages nobody has counted yet."""

    @property
    def found(self) -> int:
        """All pages known of."""
        return self.embedded + self.failed + self.skipped + self.left
