"""Encodes multi-vectors: as they are stored, and as answers in JSON, npz and msgpack."""

import io
import struct
import zipfile
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Final, Protocol

import msgpack
import numpy as np
import orjson
from numpy.typing import NDArray

from shared.jobs import InputFailure

__all__ = [
    "DIM",
    "AnswerEncoder",
    "AnswerHead",
    "JsonEncoder",
    "MsgpackEncoder",
    "NpzEncoder",
    "Rows",
    "StoredRows",
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
class AnswerHead:
    """What an answer holds beside its embeddings. `failures` is None where no input may fail."""

    input_type: str
    total: int
    failures: Sequence[InputFailure] | None = None

    def errors(self) -> dict[str, list[dict[str, Any]]]:
        """Return the field `errors` as answers have it, or nothing where no input may fail."""
        return {} if self.failures is None else {"errors": [failure.model_dump() for failure in self.failures]}


class AnswerEncoder(Protocol):
    """Encodes one answer piece by piece: `begin`, then `add` for each input in order, then `end`.

    The concatenated pieces are the answer. Each call returns the bytes that it completes.
    """

    def begin(self) -> bytes:
        """Return what stands before the first embedding."""

    def add(self, rows: StoredRows | None) -> bytes:
        """Return the next input's embedding; None stands for an input that failed."""

    def end(self) -> bytes:
        """Return what stands after the last embedding."""


class JsonEncoder:
    """`{"embeddings": [[[number] * 128] * n_rows | null]}`; with failures allowed, also `errors`.

    The decimals are the shortest that read back as the same float32; bytes are numbers from 0 to 255.
    """

    # orjson holds the interpreter's lock during a call: one call encodes at most so many rows, which takes about 1 ms.
    _ROWS_PER_CALL: Final = 128

    def __init__(self, head: AnswerHead) -> None:
        self._head = head
        self._separator = b""

    def begin(self) -> bytes:
        """Return the opening of the object and of the list."""
        return b'{"embeddings":['

    def add(self, rows: StoredRows | None) -> bytes:
        """Return `null` or the list of rows."""
        separator, self._separator = self._separator, b","
        if rows is None:
            return separator + b"null"
        return b"".join([separator, b"[", b",".join(self._encoded(rows)), b"]"])

    def end(self) -> bytes:
        """Return the errors, where the answer has the field, and the closing of the object."""
        errors = orjson.dumps(self._head.errors())[1:-1]
        return b"]" + (b"," + errors if errors else b"") + b"}"

    def _encoded(self, rows: StoredRows) -> Iterator[bytes]:
        for start in range(0, len(rows), self._ROWS_PER_CALL):
            some = rows[start : start + self._ROWS_PER_CALL]
            plain = np.ascontiguousarray(some, dtype=np.float32 if rows.dtype.kind == "f" else rows.dtype)
            yield orjson.dumps(plain, option=orjson.OPT_SERIALIZE_NUMPY)[1:-1]


class MsgpackEncoder:
    """Like JSON, each embedding as `{"dtype", "shape", "data"}` with little-endian values in C order."""

    def __init__(self, head: AnswerHead) -> None:
        self._head = head
        self._pack = msgpack.Packer().pack

    def begin(self) -> bytes:
        """Return the opening of the map, the input type, and the opening of the list."""
        packer = msgpack.Packer(autoreset=False)
        packer.pack_map_header(2 + len(self._head.errors()))
        packer.pack("input_type")
        packer.pack(self._head.input_type)
        packer.pack("embeddings")
        packer.pack_array_header(self._head.total)
        packed: bytes = packer.bytes()
        return packed

    def add(self, rows: StoredRows | None) -> bytes:
        """Return nil or the map that describes and holds the rows."""
        packed: bytes = self._pack(
            None if rows is None else {"dtype": rows.dtype.name, "shape": list(rows.shape), "data": rows.tobytes()}
        )
        return packed

    def end(self) -> bytes:
        """Return the errors, where the answer has the field."""
        return b"".join(self._pack(name) + self._pack(errors) for name, errors in self._head.errors().items())


class NpzEncoder:
    """An uncompressed NumPy archive: `count`, `input_type`, `emb_0` ... `emb_{count-1}`, as `numpy.savez` writes it.

    A failed input has no `emb_i`; with failures allowed, `errors` holds them as a JSON string.
    """

    def __init__(self, head: AnswerHead) -> None:
        self._head = head
        self._added = 0
        self._file = _DrainedFile()
        self._archive = zipfile.ZipFile(self._file, "w")

    def begin(self) -> bytes:
        """Return the entries that stand before the embeddings."""
        self._write("count", np.array(self._head.total))
        self._write("input_type", np.array(self._head.input_type))
        for name, errors in self._head.errors().items():
            self._write(name, np.array(orjson.dumps(errors).decode()))
        return self._file.drain()

    def add(self, rows: StoredRows | None) -> bytes:
        """Return the entry that holds the rows, or nothing for an input that failed."""
        if rows is not None:
            self._write(f"emb_{self._added}", rows)
        self._added += 1
        return self._file.drain()

    def end(self) -> bytes:
        """Return the archive's directory."""
        self._archive.close()
        return self._file.drain()

    def _write(self, name: str, array: NDArray[Any]) -> None:
        with self._archive.open(f"{name}.npy", "w", force_zip64=True) as entry:
            np.lib.format.write_array(entry, array, allow_pickle=False)


class _DrainedFile(io.BytesIO):
    """A file whose complete part is taken out while it is written; positions count from its beginning.

    `zipfile` seeks back to the header of the entry that it has just written, to note the entry's size and checksum
    there, and never further: what is drained between two entries is final.
    """

    def __init__(self) -> None:
        super().__init__()
        self._drained = 0

    def drain(self) -> bytes:
        """Return and forget all that was written since the last call."""
        written = self.getvalue()
        self._drained += len(written)
        super().seek(0)
        self.truncate()
        return written

    def tell(self) -> int:
        """Return the position, counted from the beginning of the whole file."""
        return self._drained + super().tell()

    def seek(self, offset: int, whence: int = io.SEEK_SET) -> int:
        """Move within what is not drained."""
        return self._drained + super().seek(offset - self._drained if whence == io.SEEK_SET else offset, whence)
