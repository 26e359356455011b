"""The service's `/embeddings` and `/ready` as Python calls. Knows its HTTP; knows no model and no file."""

import base64
import io
import zipfile
from collections.abc import Sequence
from dataclasses import dataclass

import httpx2
import numpy as np
from numpy.typing import NDArray

from colqueue_client.errors import ServiceError, UnreachableError

__all__ = ["EmbeddingsClient", "Readiness"]


@dataclass(frozen=True, slots=True)
class Readiness:
    """Whether the service can embed now, and if not, why not."""

    ready: bool
    reason: str


class EmbeddingsClient:
    """Calls over `http`, which brings the base URL, the Authorization header and the timeouts. As thread-safe as that.

    Every call raises ServiceError when the service refuses and UnreachableError when there is no answer to read.
    """

    def __init__(self, http: httpx2.Client) -> None:
        self._http = http

    def embed_pages(self, images: Sequence[bytes]) -> list[NDArray[np.float32]]:
        """Return one multi-vector (n_rows x 128) per image file (PNG, JPEG ...), in order, from one request."""
        return self._embed("image", [base64.b64encode(image).decode() for image in images])

    def embed_queries(self, texts: Sequence[str]) -> list[NDArray[np.float32]]:
        """Return one multi-vector (n_rows x 128) per query, in order, from one request."""
        return self._embed("text", list(texts))

    def readiness(self) -> Readiness:
        """Ask whether the service can embed now."""
        answer = self._send("GET", "/ready")
        return Readiness(answer.status_code == httpx2.codes.OK, _field(answer, "reason"))

    def _embed(self, input_type: str, inputs: list[str]) -> list[NDArray[np.float32]]:
        answer = self._send("POST", "/embeddings", {"input_type": input_type, "inputs": inputs})
        if answer.status_code != httpx2.codes.OK:
            message = _field(answer, "error") or f"HTTP {answer.status_code} without a reason"
            raise ServiceError(answer.status_code, _field(answer, "code") or "unknown", message)
        embeddings = _read_npz(answer.content)
        if len(embeddings) != len(inputs):
            raise UnreachableError(f"{len(inputs)} inputs were sent and {len(embeddings)} came back")
        return embeddings

    def _send(self, method: str, path: str, body: object = None) -> httpx2.Response:
        try:
            return self._http.request(method, path, json=body, headers={"Accept": "application/x-npz"})
        except httpx2.HTTPError as error:
            raise UnreachableError(f"{self._http.base_url}: {error or type(error).__name__}") from error


def _field(answer: httpx2.Response, name: str) -> str:
    """Return a field of a JSON object's body as text, "" where there is none."""
    try:
        body = answer.json()
    except ValueError:
        return ""
    value = body.get(name) if isinstance(body, dict) else None
    return "" if value is None else str(value)


def _read_npz(body: bytes) -> list[NDArray[np.float32]]:
    """Return `emb_0` ... `emb_{count-1}`, rows in float32 whatever they travelled as."""
    try:
        with np.load(io.BytesIO(body), allow_pickle=False) as archive:
            return [archive[f"emb_{i}"].astype(np.float32, copy=False) for i in range(int(archive["count"]))]
    except (ValueError, KeyError, EOFError, zipfile.BadZipFile) as error:
        raise UnreachableError(f"the answer is not the npz that was asked for: {error}") from error
