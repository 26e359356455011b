"""A client that behaves like morphik-core's, both generations (contracts.md, section 2). Knows nothing of ours."""

import io
import time
from collections.abc import Callable, Sequence
from typing import Any

import httpx2
import numpy as np
from numpy.typing import NDArray

__all__ = ["DocumentFailedError", "MorphikCore"]

BATCH = 16
TRIES = 8
RETRY_AFTER_CAP_S = 10.0


class DocumentFailedError(Exception):
    """Not retried: the document is given up."""


class MorphikCore:
    """`domain` is one entry of `morphik_embedding_api_domain`; `read` is what tells the generations apart.

    `asked` notes how many inputs each request held and what it was answered.
    """

    def __init__(self, domain: str, key: str, read: Callable[[httpx2.Response], list[NDArray[np.float32]]]) -> None:
        self._url = f"{domain}/embeddings"
        self._headers = {"Authorization": f"Bearer {key}"}
        self._read = read
        self.asked: list[tuple[int, int]] = []

    @classmethod
    def of_may_2025(cls, domain: str, key: str) -> "MorphikCore":
        return cls(domain, key, _read_json)

    @classmethod
    def of_today(cls, domain: str, key: str) -> "MorphikCore":
        return cls(domain, key, _read_npz)

    def embed_for_ingestion(self, pages: Sequence[str]) -> list[NDArray[np.float32]]:
        """Embed base64 pages, 16 a request."""
        with self._client() as http:
            starts = range(0, len(pages), BATCH)
            return [rows for start in starts for rows in self._embed(http, "image", pages[start : start + BATCH])]

    def embed_for_query(self, text: str) -> NDArray[np.float32]:
        with self._client() as http:
            return self._embed(http, "text", [text])[0]

    def _client(self) -> httpx2.Client:
        return httpx2.Client(timeout=httpx2.Timeout(600, connect=30), trust_env=False)

    def _embed(self, http: httpx2.Client, input_type: str, inputs: Sequence[str]) -> list[NDArray[np.float32]]:
        body = {"input_type": input_type, "inputs": list(inputs)}
        for _ in range(TRIES):
            answer = http.post(self._url, json=body, headers=self._headers)
            self.asked.append((len(inputs), answer.status_code))
            if answer.status_code == 413 and len(inputs) > 1:
                middle = len(inputs) // 2
                return self._embed(http, input_type, inputs[:middle]) + self._embed(http, input_type, inputs[middle:])
            if answer.status_code == 429 or answer.status_code >= 500:
                time.sleep(min(float(answer.headers.get("Retry-After", 1)), RETRY_AFTER_CAP_S))
                continue
            if answer.status_code != 200:
                raise DocumentFailedError(answer.status_code)
            return self._read(answer)
        raise DocumentFailedError(answer.status_code)


def _read_json(answer: httpx2.Response) -> list[NDArray[np.float32]]:
    return [np.array(rows, dtype=np.float32) for rows in answer.json()["embeddings"]]


def _read_npz(answer: httpx2.Response) -> list[NDArray[np.float32]]:
    archive: Any = np.load(io.BytesIO(answer.content))
    count, input_type = int(archive["count"]), str(archive["input_type"])
    assert input_type in ("image", "text")
    return [np.asarray(archive[f"emb_{index}"], dtype=np.float32) for index in range(count)]
