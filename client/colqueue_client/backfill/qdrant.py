"""Writes pages into a Qdrant collection of multi-vectors."""

import uuid
from collections.abc import Iterable, Sequence
from contextlib import AbstractContextManager
from itertools import islice
from typing import Final

from qdrant_client import models

from colqueue_client.backfill.qdrant_server import connect, require_fit, translated
from colqueue_client.backfill.records import Collected
from colqueue_client.backfill.store import Store
from colqueue_client.maxsim import as_float32

__all__ = ["QdrantCollection"]

_AT_ONCE: Final = 16
_DIM: Final = 128
_IDS: Final = uuid.UUID("5f0c2f0e-6d0b-4a51-9b5e-0a4b8e7f3c11")
_DATATYPES: Final = {"float16": models.Datatype.FLOAT16}


class QdrantCollection:
    """A collection of the server at a URL, or of local mode in a folder; it compares by MaxSim."""

    batch_bytes: int | None = 16 * 2**20

    def __init__(self, where: str, store: Store, model: str) -> None:
        self._client = connect(where, store)
        self._name = store.collection
        self._model = model
        self._where = where

    def check(self, dtype: str) -> None:
        """Raise BackfillError where the collection is there and of another form. Every dtype can be kept."""
        if self._client.collection_exists(self._name):
            info = self._client.get_collection(self._name)
            require_fit(info, self._name, self._where, _DIM, _DATATYPES.get(dtype))

    def translated(self) -> AbstractContextManager[None]:
        """Turn Qdrant's errors into ours."""
        return translated(self._where)

    def tidy(self, known: set[str]) -> Iterable[str]:
        """A page has one id: written twice it is there once."""
        return [] if self._client.collection_exists(self._name) else known

    def write(self, pages: Iterable[Collected]) -> str:
        """Put pages in, over those of the same document and number."""
        iterator = iter(pages)
        while group := list(islice(iterator, _AT_ONCE)):
            self._make_room(group[0])
            self._client.upsert(self._name, [self._point(page) for page in group], wait=True)
        return self._where

    def forget(self, documents: Sequence[str]) -> None:
        """Delete the pages of these documents."""
        if documents and self._client.collection_exists(self._name):
            theirs = models.FieldCondition(key="document", match=models.MatchAny(any=list(documents)))
            self._client.delete(self._name, models.FilterSelector(filter=models.Filter(must=[theirs])), wait=True)

    def close(self) -> None:
        """Let go of the folder or the server."""
        self._client.close()

    def _make_room(self, page: Collected) -> None:
        if self._client.collection_exists(self._name):
            return
        vectors = models.VectorParams(
            size=as_float32(page.rows[:1]).shape[1],
            distance=models.Distance.DOT,
            datatype=_DATATYPES.get(page.rows.dtype.name),
            multivector_config=models.MultiVectorConfig(comparator=models.MultiVectorComparator.MAX_SIM),
            hnsw_config=models.HnswConfigDiff(m=0),  # an index over single rows is no help to MaxSim, and large
            on_disk=True,
        )
        self._client.create_collection(self._name, vectors_config=vectors)

    def _point(self, page: Collected) -> models.PointStruct:
        return models.PointStruct(
            id=str(uuid.uuid5(_IDS, f"{page.document}\0{page.page}")),
            vector=as_float32(page.rows).tolist(),
            payload={"document": page.document, "page": page.page, "model": self._model, "sha256": page.sha256},
        )
