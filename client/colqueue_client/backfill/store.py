"""Define where a LanceDB or Qdrant store is and how it is reached."""

import re
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final

from colqueue_client.errors import BackfillError

__all__ = ["COLLECTION", "Store"]

COLLECTION: Final = "pages"

_PASSWORD: Final = re.compile(r"^[a-z][a-z0-9+.-]*://[^/]*@", re.IGNORECASE)
_NAME: Final = re.compile(r"[A-Za-z0-9][A-Za-z0-9_.-]{0,199}")


@dataclass(frozen=True, slots=True)
class Store:
    """Where a store is and how it is reached. BackfillError where the address holds a password, or the name is none."""

    where: str | None = None
    """A folder, or a URL or URI; None: a folder in the output's own."""
    collection: str = COLLECTION
    """Name of the Qdrant collection or the LanceDB table."""
    key: str | None = field(default=None, repr=False)
    """Key of the store's API. Never written anywhere."""
    timeout_s: float = 60.0
    """Raised: a store that is slow is waited for longer; one that hangs is noticed later."""

    def __post_init__(self) -> None:
        if self.where is not None and _PASSWORD.match(self.where):
            raise BackfillError("the address of the store holds a password, which would be kept: give --store-key")
        if not _NAME.fullmatch(self.collection):
            raise BackfillError(f"{self.collection!r} cannot name a collection: use letters, digits, `_`, `-` and `.`")

    @property
    def name(self) -> str:
        """What tells it from other stores, for people and for the manifest."""
        return str(self.where) + ("" if self.collection == COLLECTION else f", collection {self.collection}")

    def location(self, folder: Path, name: str) -> str:
        """Return where it is, which is `name` in `folder` unless `where` says otherwise."""
        return self.where or str(folder / name)
