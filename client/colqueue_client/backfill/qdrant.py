"""Pages into a Qdrant collection of multi-vectors. Knows qdrant-client; knows no manifest."""

import uuid
from collections.abc import Iterable, Sequence
from itertools import islice
from typing import Final

from qdrant_client import QdrantClient, models

from colqueue_client.backfill.records import Collected
from colqueue_client.maxsim import as_float32

__all__ = ["COLLECTION", "QdrantCollection"]

COLLECTION: Final = "pages"

_AT_ONCE: Final = 16
_IDS: Final = uuid.UUID("5f0c2f0e-6d0b-4a51-9b5e-0a4b8e7f3c11")
_DATATYPES: Final = {"float16": models.Datatype.FLOAT16}


class QdrantCollection:
    """The collection `pages` of the server at a URL, or of local mode in a folder; it compares by MaxSim."""

    batch_bytes: int | None = 16 * 2**20

    def __init__(self, where: str, model: str) -> None:
        self._client = (
            QdrantClient(url=where) if where.startswith(("http://", "https://")) else QdrantClient(path=where)
        )
        self._model = model
        self._where = where

    def tidy(self, known: set[str]) -> Iterable[str]:
        """A page has one id: written twice it is there once."""
        return [] if self._client.collection_exists(COLLECTION) else known

    def write(self, pages: Iterable[Collected]) -> str:
        """Put pages in, over those of the same document and number."""
        iterator = iter(pages)
        while group := list(islice(iterator, _AT_ONCE)):
            self._make_room(group[0])
            self._client.upsert(COLLECTION, [self._point(page) for page in group], wait=True)
        return self._where

    def forget(self, documents: Sequence[str]) -> None:
        """Delete the pages of these documents."""
        if documents and self._client.collection_exists(COLLECTION):
            theirs = models.FieldCondition(key="document", match=models.MatchAny(any=list(documents)))
            self._client.delete(COLLECTION, models.FilterSelector(filter=models.Filter(must=[theirs])), wait=True)

    def close(self) -> None:
        """Let go of the folder or the server."""
        self._client.close()

    def _make_room(self, page: Collected) -> None:
        if self._client.collection_exists(COLLECTION):
            return
        vectors = models.VectorParams(
            size=as_float32(page.rows[:1]).shape[1],
            distance=models.Distance.DOT,
            datatype=_DATATYPES.get(page.rows.dtype.name),
            multivector_config=models.MultiVectorConfig(comparator=models.MultiVectorComparator.MAX_SIM),
            hnsw_config=models.HnswConfigDiff(m=0),  # an index over single rows is no help to MaxSim, and large
            on_disk=True,
        )
        self._client.create_collection(COLLECTION, vectors_config=vectors)

    def _point(self, page: Collected) -> models.PointStruct:
        return models.PointStruct(
            id=str(uuid.uuid5(_IDS, f"{page.document}\0{page.page}")),
            vector=as_float32(page.rows).tolist(),
            payload={"document": page.document, "page": page.page, "model": self._model, "sha256": page.sha256},
        )
