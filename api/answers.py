"""Answers with embeddings, in the form that the caller accepts, read and sent in pieces."""

import asyncio
import re
from collections.abc import AsyncGenerator, AsyncIterator, Awaitable, Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import aclosing
from typing import Final, Protocol
from urllib.parse import quote

import structlog
from fastapi.responses import Response
from starlette.types import Receive, Scope, Send

from api.hang_ups import hung_up
from api.outgoing import AnswerRoom
from api.results import Piece
from shared.codecs import AnswerEncoder, AnswerHead, JsonEncoder, MsgpackEncoder, NpzEncoder, StoredRows
from shared.errors import ColqueueError, UnavailableError
from shared.jobs import Job

__all__ = ["JSON", "MSGPACK", "NPZ", "Answers", "Source", "model_headers", "negotiated"]

_log = structlog.get_logger(__name__)

JSON: Final = "application/json"
NPZ: Final = "application/x-npz"
MSGPACK: Final = "application/msgpack"

_ENCODERS: Final[Mapping[str, Callable[[AnswerHead], AnswerEncoder]]] = {
    JSON: JsonEncoder,
    NPZ: NpzEncoder,
    MSGPACK: MsgpackEncoder,
}
_ALIASES: Final = {"application/x-msgpack": MSGPACK, "application/vnd.msgpack": MSGPACK, "application/npz": NPZ}

# How many bytes of memory a stored byte takes while its piece is encoded and sent. The decimals of a float16 value take
# up to 13 characters; the binary forms hold the stored bytes and up to two copies.
_MEMORY_PER_BYTE: Final = {JSON: 8, NPZ: 3, MSGPACK: 3}

# Answers up to this size are encoded on the event loop, which takes less than a hand-over to a thread, and not counted.
_SMALL_BYTES: Final = 64 * 1024
# A connection's buffer takes about this much before it makes the sender wait.
_SLICE_BYTES: Final = 64 * 1024


class Source(Protocol):
    """Where the embeddings of an answer come from: `api.results.StoredResult`."""

    def pieces(self) -> AsyncIterator[Piece]:
        """Yield the pieces in the order of the inputs."""

    async def read(self, piece: Piece) -> Sequence[bytes | None]:
        """Return the packed rows of each input of a piece; None where it failed."""

    def rows(self, packed: bytes) -> StoredRows:
        """Return rows as the answer has them."""


class Answers:
    """Makes answers. All of one process together hold at most `max_bytes` of embeddings.

    One thread encodes, piece by piece: encoders hold the interpreter's lock, so more threads would only keep the event
    loop waiting for longer.
    """

    def __init__(self, max_bytes: int) -> None:
        self.room = AnswerRoom(max_bytes)
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="encoder")

    def close(self) -> None:
        """End the encoding thread."""
        self._thread.shutdown(wait=False, cancel_futures=True)

    def empty(self, media_type: str) -> Response:
        """Return the answer to a request without inputs."""
        encoder = _ENCODERS[media_type](AnswerHead("", 0))
        return Response(encoder.begin() + encoder.end(), media_type=media_type)

    def response(
        self,
        media_type: str,
        head: AnswerHead,
        source: Source,
        owner: str,
        after: Callable[[bool], Awaitable[None]] | None = None,
    ) -> Response:
        """Return a response that reads, encodes and sends one piece after the other.

        `after` is called once at the end, with True where the whole answer was handed to the connection while the
        caller was there, else with False.
        """
        return _EmbeddingsResponse(self, media_type=media_type, head=head, source=source, owner=owner, after=after)

    async def encode(self, n_bytes: int, encode: Callable[[], bytes]) -> bytes:
        """Return what `encode` returns, off the event loop unless it is about few bytes."""
        if n_bytes <= _SMALL_BYTES:
            return encode()
        return await asyncio.get_running_loop().run_in_executor(self._thread, encode)


class _EmbeddingsResponse(Response):
    def __init__(  # noqa: PLR0913  # the parts of one answer, which only `Answers.response` puts together
        self,
        answers: Answers,
        *,
        media_type: str,
        head: AnswerHead,
        source: Source,
        owner: str,
        after: Callable[[bool], Awaitable[None]] | None,
    ) -> None:
        self.media_type = media_type
        self.status_code = 200
        self.background = None
        self.init_headers()
        self._answers = answers
        self._encoder = _ENCODERS[media_type](head)
        self._source = source
        self._owner = owner
        self._after = after
        self._started = False

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Send the answer. Errors before its first byte are raised; later ones close the connection early."""
        gone = asyncio.ensure_future(hung_up(receive))
        is_whole = False
        try:
            is_whole = await self._send_pieces(send, gone)
        except ColqueueError as error:
            if not self._started:
                raise
            # The status is sent. What is missing at the end tells the caller that the answer is not whole.
            _log.warning("answer.broken_off", path=scope["path"], code=error.code, reason=error.message)
        finally:
            gone.cancel()
            await self._finish(scope["path"], is_whole=is_whole)

    async def _finish(self, path: str, *, is_whole: bool) -> None:
        if self._after is not None:
            try:
                await self._after(is_whole)
            except UnavailableError as error:  # the answer is out: what was to be dropped expires
                _log.warning("answer.not_dropped", path=path, code=error.code, reason=error.message)

    async def _send_pieces(self, send: Send, gone: "asyncio.Future[None]") -> bool:
        async with aclosing(self._encoded()) as encoded:
            async for piece, body in encoded:
                if not self._started:
                    await self._start(send, len(body) if piece.is_last else None)
                for start in range(0, len(body), _SLICE_BYTES):
                    if gone.done():
                        return False
                    part = {"type": "http.response.body", "body": body[start : start + _SLICE_BYTES], "more_body": True}
                    await send(part)
                if piece.is_last and not await _is_gone(gone):
                    await send({"type": "http.response.body", "body": b"", "more_body": False})
                    return True
        return False

    async def _encoded(self) -> AsyncGenerator[tuple[Piece, memoryview]]:
        """Yield each piece with its bytes, which count until the next one is asked for."""
        first = True
        per_byte = _MEMORY_PER_BYTE[str(self.media_type)]
        async for piece in self._source.pieces():
            if first and piece.is_last and piece.n_bytes <= _SMALL_BYTES:
                yield piece, await self._body(piece, is_first=True)
                return
            async with self._answers.room.take(self._owner, piece.n_bytes * per_byte):
                yield piece, await self._body(piece, is_first=first)
            first = False

    async def _body(self, piece: Piece, *, is_first: bool) -> memoryview:
        packed = await self._source.read(piece)

        def encode() -> bytes:
            parts = [self._encoder.begin()] if is_first else []
            parts += [self._encoder.add(None if rows is None else self._source.rows(rows)) for rows in packed]
            return b"".join([*parts, self._encoder.end()] if piece.is_last else parts)

        return memoryview(await self._answers.encode(piece.n_bytes, encode))

    async def _start(self, send: Send, content_length: int | None) -> None:
        self._started = True
        if content_length is not None:
            self.headers["content-length"] = str(content_length)
        await send({"type": "http.response.start", "status": self.status_code, "headers": self.raw_headers})


async def _is_gone(gone: "asyncio.Future[None]") -> bool:
    """Tell whether the caller has hung up, after the event loop had the turns it takes to notice that."""
    for _ in range(3):
        await asyncio.sleep(0)
    return gone.done()


def model_headers(job: Job) -> dict[str, str]:
    """Return which model answers a job, and which checkpoint of that name; nothing while that is not decided."""
    if job.model is None or job.model_id is None:
        return {}
    return {"X-Colqueue-Model": quote(job.model, safe="/:@+ "), "X-Colqueue-Model-Id": job.model_id}


def negotiated(accept: str | None, default: str) -> str:
    """Return the first known media type by descending quality; `default` for `*/*` and for anything unknown."""
    wanted: list[tuple[float, str]] = []
    for part in (accept or "").split(","):
        media_type, *parameters = (piece.strip().lower() for piece in part.split(";"))
        quality = next((piece[2:] for piece in parameters if piece.startswith("q=")), "1")
        # RFC 9110, 12.4.2; zero, and what is no quality at all, is not wanted.
        if re.fullmatch(r"[01](\.[0-9]{0,3})?", quality) and float(quality):
            wanted.append((float(quality), _ALIASES.get(media_type, media_type)))
    ranked = sorted(wanted, key=lambda entry: -entry[0])
    return next((media_type for _, media_type in ranked if media_type in _ENCODERS), default)
