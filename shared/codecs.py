"""Multi-vectors as bytes: as stored, and as JSON, npz and msgpack. Knows arrays; knows no HTTP and no Redis."""

import io
import struct
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import msgpack
import numpy as np
import orjson
from numpy.typing import NDArray

from shared.jobs import InputFailure

__all__ = [
    "DIM",
    "Answer",
    "Rows",
    "StoredRows",
    "answer_json",
    "answer_msgpack",
    "answer_npz",
    "pack_rows",
    "unpack_rows",
]

DIM = 128

Rows = NDArray[np.float32] | NDArray[np.float16]
"""One input's multi-vector, n_rows x 128."""

StoredRows = Rows | NDArray[np.int8] | NDArray[np.uint8]
"""A multi-vector as its job asked for it; unsigned bytes are sign bits, n_rows x 16 (`shared.jobs.OutputDtype`)."""

# dtype name and shape, 16 bytes so that the rows behind it stay aligned.
_HEADER = struct.Struct("<8sII")


def pack_rows(rows: StoredRows) -> bytes:
    """Return `rows` as stored: a 16-byte header, then the values in C order, little-endian."""
    header = _HEADER.pack(rows.dtype.name.encode(), *rows.shape)
    return header + rows.astype(rows.dtype.newbyteorder("<"), order="C", copy=False).tobytes()


def unpack_rows(stored: bytes) -> StoredRows:
    """Return a read-only view of what `pack_rows` stored."""
    name, n_rows, dim = _HEADER.unpack_from(stored)
    dtype = np.dtype(name.rstrip(b"\0").decode()).newbyteorder("<")
    return np.frombuffer(stored, dtype, offset=_HEADER.size).reshape(n_rows, dim)


@dataclass(frozen=True, slots=True)
class Answer:
    """Embeddings in the order of their inputs; None where an input failed. `failures` is None where none may be."""

    input_type: str
    embeddings: Sequence[StoredRows | None]
    failures: Sequence[InputFailure] | None = None


def answer_json(answer: Answer) -> bytes:
    """`{"embeddings": [[[number] * 128] * n_rows | null]}`; with failures allowed, also `errors`.

    The decimals are the shortest that read back as the same float32; bytes are numbers from 0 to 255.
    """
    body: dict[str, Any] = {"embeddings": [None if rows is None else _for_json(rows) for rows in answer.embeddings]}
    return orjson.dumps(body | _errors(answer), option=orjson.OPT_SERIALIZE_NUMPY)


def answer_msgpack(answer: Answer) -> bytes:
    """Like `answer_json`, each embedding as `{"dtype", "shape", "data"}` with little-endian values in C order."""
    embeddings = [
        None if rows is None else {"dtype": rows.dtype.name, "shape": list(rows.shape), "data": rows.tobytes()}
        for rows in answer.embeddings
    ]
    packed: bytes = msgpack.packb({"input_type": answer.input_type, "embeddings": embeddings} | _errors(answer))
    return packed


def answer_npz(answer: Answer) -> bytes:
    """An uncompressed NumPy archive: `count`, `input_type`, `emb_0` ... `emb_{count-1}`.

    A failed input has no `emb_i`; with failures allowed, `errors` holds them as a JSON string.
    """
    arrays: dict[str, Any] = {"count": np.array(len(answer.embeddings)), "input_type": np.array(answer.input_type)}
    arrays |= {name: np.array(orjson.dumps(failures).decode()) for name, failures in _errors(answer).items()}
    arrays |= {f"emb_{index}": rows for index, rows in enumerate(answer.embeddings) if rows is not None}
    buffer = io.BytesIO()
    np.savez(buffer, allow_pickle=False, **arrays)
    return buffer.getvalue()


def _errors(answer: Answer) -> dict[str, list[dict[str, Any]]]:
    return {} if answer.failures is None else {"errors": [failure.model_dump() for failure in answer.failures]}


def _for_json(rows: StoredRows) -> NDArray[Any]:
    return np.ascontiguousarray(rows, dtype=np.float32 if rows.dtype.kind == "f" else rows.dtype)
