"""Write pages into a Qdrant collection of multi-vectors."""

from collections.abc import Collection, Iterable, Iterator, Sequence
from contextlib import AbstractContextManager
from itertools import islice
from typing import Final

import numpy as np
from qdrant_client import models

from colqueue_client.backfill.qdrant_server import connect, require_fit, translate_errors
from colqueue_client.backfill.records import Collected, Document, page_id
from colqueue_client.backfill.store import Store
from colqueue_client.maxsim import as_float32
from colqueue_client.wire import Rows

__all__ = ["QdrantCollection"]

_AT_ONCE: Final = 16
_DIM: Final = 128
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

    def translate_errors(self) -> AbstractContextManager[None]:
        """Turn Qdrant's errors into ours."""
        return translate_errors(self._where)

    def tidy(self, held: Collection[str], unwanted: Collection[str]) -> set[str]:
        """A page has one id: written twice it is there once."""
        del unwanted
        return set() if self._client.collection_exists(self._name) else set(held)

    def use_columns(self, columns: Sequence[str]) -> None:
        """Each point has the columns of its own document."""

    def new_name(self, document: str) -> str:
        """All pages are in one collection."""
        del document
        return self._where

    def write(self, name: str, pages: Iterable[Collected]) -> None:
        """Put pages in, over those of the same document and number."""
        del name
        iterator = iter(pages)
        while group := list(islice(iterator, _AT_ONCE)):
            self._make_room(group[0])
            self._client.upsert(self._name, [self._point(page) for page in group], wait=True)

    def read(self, document: Document, names: Collection[str]) -> Iterator[tuple[int, Rows]]:
        """Yield the pages of a document, of the content that the manifest knows."""
        del names
        offset = None
        while True:
            points, offset = self._client.scroll(
                self._name, _is_of(document), limit=_AT_ONCE, offset=offset, with_vectors=True
            )
            for point in points:
                payload = point.payload or {}
                yield payload["page"], np.array(point.vector, np.float32)
            if offset is None:
                return

    def forget(self, documents: Sequence[Document]) -> None:
        """Delete the pages of these documents, of the content that the manifest knows: others are not ours."""
        if self._client.collection_exists(self._name):
            for document in documents:
                self._client.delete(self._name, models.FilterSelector(filter=_is_of(document)), wait=True)

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
            id=page_id(page.document, page.page),
            vector=as_float32(page.rows).tolist(),
            payload=dict(page.columns)
            | {"document": page.document, "page": page.page, "model": self._model, "sha256": page.sha256}
            | (dict(zip(("width", "height"), page.size, strict=True)) if page.size else {}),
        )


def _is_of(document: Document) -> models.Filter:
    facts = {"document": document.name, "sha256": document.sha256}
    return models.Filter(
        must=[models.FieldCondition(key=key, match=models.MatchValue(value=value)) for key, value in facts.items()]
    )
