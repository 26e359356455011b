"""The plain records of a backfill: its documents, its pages and their counts."""

import uuid
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Final

from colqueue_client.wire import Rows

__all__ = ["COLUMNS", "Collected", "Counts", "Document", "PageKey", "Sighting", "Size", "page_id"]

PageKey = tuple[int, int]
"""A document's id, and the number of a page of it from 1."""

Size = tuple[int, int]
"""The width and height of a page's image, in pixels."""

COLUMNS: Final = ("id", "document", "page", "embedding", "rows", "width", "height", "model", "sha256")
"""The columns that the output has of its own; a list's column of such a name goes out with `list_` before it."""

_IDS: Final = uuid.UUID("5f0c2f0e-6d0b-4a51-9b5e-0a4b8e7f3c11")


def page_id(document: str, page: int) -> str:
    """Return the id of a page: a UUID that follows from the document's name and the page's number alone."""
    return str(uuid.uuid5(_IDS, f"{document}\0{page}"))


@dataclass(frozen=True, slots=True)
class Document:
    """A file of a source."""

    id: int
    name: str
    path: str
    kind: str
    signature: str
    sha256: str
    root: str = ""
    """Under which its pages were embedded; empty where that is not known."""
    found_root: str = ""
    """Under which this run has found it."""


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
    root: str = ""
    """The folder that the name is relative to."""
    columns: Mapping[str, str] = field(default_factory=dict)
    """The other columns of the list that names it."""


@dataclass(frozen=True, slots=True)
class Collected:
    """A page's embedding on its way into the output."""

    key: PageKey
    document: str
    page: int
    sha256: str
    rows: Rows
    size: Size | None = None
    columns: Mapping[str, str] = field(default_factory=dict)


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
