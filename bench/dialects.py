"""How each contestant is asked and how it answers. Knows bodies; knows no connection and no process."""

import base64
import io
import json
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from bench.callers import Call

__all__ = ["Bento", "Contract", "Dialect", "Lit", "Rows"]

Rows = NDArray[np.float32]
_JSON = {"content-type": "application/json"}


class Dialect(Protocol):
    """A contestant's HTTP."""

    def page_calls(self, images: Sequence[bytes]) -> list[Call]:
        """Return the calls by which one caller sends these pages, all at once."""

    def query_call(self, text: str) -> Call:
        """Return the call for one query."""

    def rows(self, body: bytes) -> list[Rows]:
        """Return what an answer to either holds, without padding rows."""


@dataclass(frozen=True, slots=True)
class Contract:
    """The old service's contract, which is ours too: one request for all pages, as morphik-core sends them."""

    path: str = "/embeddings"
    key: str = "any"

    def page_calls(self, images: Sequence[bytes]) -> list[Call]:
        """One call."""
        return [self._call("image", [base64.b64encode(image).decode() for image in images])]

    def query_call(self, text: str) -> Call:
        """One text."""
        return self._call("text", [text])

    def rows(self, body: bytes) -> list[Rows]:
        """Read npz or JSON."""
        if body.startswith(b"PK"):
            with np.load(io.BytesIO(body)) as archive:
                return [archive[f"emb_{index}"].astype(np.float32) for index in range(int(archive["count"]))]
        return [_without_padding(np.asarray(rows, np.float32)) for rows in json.loads(body)["embeddings"]]

    def _call(self, input_type: str, inputs: list[str]) -> Call:
        body = json.dumps({"input_type": input_type, "inputs": inputs}).encode()
        return Call(self.path, body, _JSON | {"authorization": f"Bearer {self.key}"})


class Bento:
    """A batched BentoML endpoint takes a list, cuts what is longer than a batch, and joins what is shorter."""

    def page_calls(self, images: Sequence[bytes]) -> list[Call]:
        """One call."""
        return [_json_call("/pages", {"images": [base64.b64encode(image).decode() for image in images]})]

    def query_call(self, text: str) -> Call:
        """One text."""
        return _json_call("/queries", {"texts": [text]})

    def rows(self, body: bytes) -> list[Rows]:
        """Read a list of base64."""
        return [_from_base64(rows) for rows in json.loads(body)]


class Lit:
    """LitServe batches requests of one input each, so a caller makes one a page, side by side."""

    def page_calls(self, images: Sequence[bytes]) -> list[Call]:
        """As many calls as pages."""
        return [
            _json_call("/predict", {"input_type": "image", "input": base64.b64encode(image).decode()})
            for image in images
        ]

    def query_call(self, text: str) -> Call:
        """One text."""
        return _json_call("/predict", {"input_type": "text", "input": text})

    def rows(self, body: bytes) -> list[Rows]:
        """Read one input's base64."""
        return [_from_base64(json.loads(body)["rows"])]


def _json_call(path: str, body: object) -> Call:
    return Call(path, json.dumps(body).encode(), _JSON)


def _from_base64(rows: str) -> Rows:
    return _without_padding(np.frombuffer(base64.b64decode(rows), np.float32).reshape(-1, 128))


def _without_padding(rows: Rows) -> Rows:
    """Drop the zero rows that stock batches of unlike pages have."""
    return rows[rows.any(axis=1)]
