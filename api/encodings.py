"""Decompresses request bodies in small pieces, so that a few bytes cannot become many at once."""

import sys
import zlib
from collections.abc import Callable, Iterable, Iterator
from typing import Any, Final

from shared.errors import InvalidBodyError, TooLargeError, UnsupportedEncodingError

if sys.version_info >= (3, 14):
    from compression import zstd
else:
    from backports import zstd

__all__ = ["ENCODINGS", "Decoding"]

_PIECE_BYTES: Final = 256 * 1024
# RFC 9659: no zstd frame for HTTP needs a larger window than 8 MB. By default a frame may ask for 128 MB.
_ZSTD_WINDOW: Final[dict[int, int]] = {zstd.DecompressionParameter.window_log_max: 23}
# Each further encoding multiplies what a body may unpack to on the way.
_MOST_ENCODINGS: Final = 2
# gzip members and zstd frames may follow one another; each costs time, though it may hold nothing.
_MOST_PARTS: Final = 1000


def _gunzip(part: Any, data: bytes) -> Iterator[bytes]:
    while True:
        piece = part.decompress(data, _PIECE_BYTES)
        yield piece
        data = part.unconsumed_tail
        # A full piece may leave a rest inside zlib.
        if part.eof or (not data and len(piece) < _PIECE_BYTES):
            return


def _unzstd(part: zstd.ZstdDecompressor, data: bytes) -> Iterator[bytes]:
    while True:
        yield part.decompress(data, _PIECE_BYTES)
        data = b""
        if part.eof or part.needs_input:
            return


_FORMATS: Final[dict[str, tuple[Callable[[], Any], Callable[[Any, bytes], Iterator[bytes]]]]] = {
    "gzip": (lambda: zlib.decompressobj(wbits=16 + zlib.MAX_WBITS), _gunzip),
    "zstd": (lambda: zstd.ZstdDecompressor(options=_ZSTD_WINDOW), _unzstd),
}
_ALIASES: Final = {"x-gzip": "gzip"}

ENCODINGS: Final = ", ".join(_FORMATS)
"""What is understood, as the header `Accept-Encoding` names it."""


class Decoding:
    """Undoes the encodings of one body, the last one first.

    Args:
        content_encoding: the header's value; the encodings in the order in which they were applied.
        max_bytes: the most that each of them may unpack to.

    Raises:
        UnsupportedEncodingError: an encoding is not known, or there are too many.
    """

    def __init__(self, content_encoding: str, max_bytes: int) -> None:
        given = (name.strip().lower() for name in content_encoding.split(","))
        names = [_ALIASES.get(name, name) for name in given if name not in {"", "identity"}]
        unknown = [name for name in names if name not in _FORMATS]
        if unknown or len(names) > _MOST_ENCODINGS:
            said = "one of these encodings is not known" if unknown else f"more than {_MOST_ENCODINGS} encodings"
            raise UnsupportedEncodingError(
                f"Content-Encoding: {said}. Send the body with {' or '.join(_FORMATS)}, or as it is."
            )
        self._layers = [_Layer(name, max_bytes) for name in reversed(names)]

    def __bool__(self) -> bool:
        return bool(self._layers)

    def pieces(self, data: bytes) -> Iterator[bytes]:
        """Yield what the next bytes of the body unpack to; InvalidBodyError or TooLargeError where they do not."""
        pieces: Iterator[bytes] = iter([data])
        for layer in self._layers:
            pieces = layer.pieces(pieces)
        return pieces

    def finish(self) -> None:
        """Raise InvalidBodyError if the body was cut short."""
        for layer in self._layers:
            layer.finish()


class _Layer:
    def __init__(self, name: str, max_bytes: int) -> None:
        self._name = name
        self._new, self._decode = _FORMATS[name]
        self._part: Any = None
        self._n_parts = 0
        self._left = max_bytes
        self._max_bytes = max_bytes

    def pieces(self, chunks: Iterable[bytes]) -> Iterator[bytes]:
        for data in chunks:
            try:
                yield from self._unpack(data)
            except (zlib.error, zstd.ZstdError):
                raise InvalidBodyError(f"The body is not valid {self._name}, as Content-Encoding says it is.") from None

    def _unpack(self, data: bytes) -> Iterator[bytes]:
        while data:
            if self._part is None:
                self._n_parts += 1
                if self._n_parts > _MOST_PARTS:
                    raise TooLargeError(f"The body has more than {_MOST_PARTS} parts of {self._name}.")
                self._part = self._new()
            for piece in self._decode(self._part, data):
                self._left -= len(piece)
                if self._left < 0:
                    raise TooLargeError(f"The body unpacks to more than {self._max_bytes} bytes.")
                if piece:
                    yield piece
            if not self._part.eof:
                return
            data, self._part = self._part.unused_data, None

    def finish(self) -> None:
        if self._part is not None:
            raise InvalidBodyError(f"The body's {self._name} is cut short.")
