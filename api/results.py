"""Reads a finished job's result from Redis in pieces, so that no process holds more of it than it is sending."""

from collections.abc import AsyncIterator, Sequence
from dataclasses import dataclass
from typing import Any, Final

import msgpack
import numpy as np
from redis.asyncio import Redis

from shared import keys
from shared.codecs import StoredRows, unpack_rows
from shared.errors import ResultExpiredError
from shared.jobs import InputFailure, Job, OutputDtype
from shared.redis_errors import redis_errors_translated

__all__ = ["PIECE_BYTES", "Piece", "StoredResult"]

PIECE_BYTES: Final = 512 * 1024
"""A piece holds the results of neighbouring inputs up to this size, or of one input that is larger."""

# Sizes are asked for so many inputs at a time.
_WINDOW: Final = 256


@dataclass(frozen=True, slots=True)
class Piece:
    """The results of neighbouring inputs, not read yet, and how many bytes Redis holds of them."""

    inputs: range
    n_bytes: int
    is_last: bool


class StoredResult:
    """What a finished job left in Redis. `failures` are read at once, embeddings piece by piece."""

    def __init__(self, connection: Redis, job: Job, failures: Sequence[InputFailure], sizes: Sequence[int]) -> None:
        self.job = job
        self.failures = failures
        self._redis = connection
        self._sizes = sizes

    @classmethod
    async def open(cls, connection: Redis, job: Job) -> "StoredResult":
        """Return the result of a finished job; raises `ResultExpiredError` where Redis does not hold all of it."""
        with redis_errors_translated():
            async with connection.pipeline(transaction=True) as pipe:
                pipe.hlen(keys.results(job.id))
                pipe.hgetall(keys.failures(job.id))
                _ask_sizes(pipe, job, 0)
                embedded, failed, *sizes = await pipe.execute()
        if embedded + len(failed) < job.total:
            raise _expired()
        failures = [
            InputFailure(index=int(index), code=code, message=message)
            for index, (code, message) in ((index, msgpack.unpackb(packed)) for index, packed in failed.items())
        ]
        return cls(connection, job, sorted(failures, key=lambda failure: failure.index), sizes)

    async def pieces(self) -> AsyncIterator[Piece]:
        """Yield the pieces in the order of the inputs."""
        total, start, held = self.job.total, 0, 0
        for window in range(0, total, _WINDOW):
            for index, size in enumerate(await self._sizes_of(window), window):
                if index > start and held + size > PIECE_BYTES:
                    yield Piece(range(start, index), held, is_last=False)
                    start, held = index, 0
                held += size
        yield Piece(range(start, total), held, is_last=True)

    async def read(self, piece: Piece) -> list[bytes | None]:
        """Return the packed rows of a piece's inputs, None where an input failed.

        Raises `ResultExpiredError` where they have expired or were released since the result was opened.
        """
        with redis_errors_translated():
            packed: Any = await self._redis.hmget(keys.results(self.job.id), [str(index) for index in piece.inputs])
        failed = {failure.index for failure in self.failures}
        if any(rows is None and index not in failed for index, rows in zip(piece.inputs, packed, strict=True)):
            raise _expired()
        return list(packed)

    def rows(self, packed: bytes) -> StoredRows:
        """Return one input's rows at the precision that the job asked for."""
        rows = unpack_rows(packed)
        match self.job.output_dtype:
            case OutputDtype.FLOAT32:
                return rows.astype(np.float32, copy=False)
            case OutputDtype.FLOAT16:
                return rows.astype(np.float16, copy=False)
            case OutputDtype.INT8 | OutputDtype.BINARY | None:
                return rows

    async def _sizes_of(self, window: int) -> Sequence[int]:
        if window == 0:
            return self._sizes
        with redis_errors_translated():
            async with self._redis.pipeline(transaction=False) as pipe:
                _ask_sizes(pipe, self.job, window)
                sizes: list[int] = await pipe.execute()
        return sizes


def _ask_sizes(pipe: Any, job: Job, window: int) -> None:
    for index in range(window, min(window + _WINDOW, job.total)):
        pipe.hstrlen(keys.results(job.id), str(index))


def _expired() -> ResultExpiredError:
    return ResultExpiredError("This job's result is no longer kept.")
