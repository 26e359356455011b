"""Embeddings as an HTTP answer in the form the caller accepts. Knows media types; the bytes are `shared.codecs`'s."""

import re
from collections.abc import Callable
from typing import Final

from fastapi.concurrency import run_in_threadpool
from fastapi.responses import Response

from shared.codecs import Answer, answer_json, answer_msgpack, answer_npz

__all__ = ["JSON", "MSGPACK", "NPZ", "embeddings_response"]

JSON: Final = "application/json"
NPZ: Final = "application/x-npz"
MSGPACK: Final = "application/msgpack"

_ENCODERS: Final[dict[str, Callable[[Answer], bytes]]] = {
    JSON: answer_json,
    NPZ: answer_npz,
    MSGPACK: answer_msgpack,
}
_ALIASES: Final = {"application/x-msgpack": MSGPACK, "application/vnd.msgpack": MSGPACK, "application/npz": NPZ}


async def embeddings_response(accept: str | None, answer: Answer, *, default: str = JSON) -> Response:
    """Encode off the event loop in the form that `accept` asks for; `default` for `*/*` and for anything unknown."""
    media_type = _negotiated(accept, default)
    return Response(await run_in_threadpool(_ENCODERS[media_type], answer), media_type=media_type)


def _negotiated(accept: str | None, default: str) -> str:
    """Return the first known media type by descending quality."""
    wanted: list[tuple[float, str]] = []
    for part in (accept or "").split(","):
        media_type, *parameters = (piece.strip().lower() for piece in part.split(";"))
        quality = next((piece[2:] for piece in parameters if piece.startswith("q=")), "1")
        # RFC 9110, 12.4.2; zero, and what is no quality at all, is not wanted.
        if re.fullmatch(r"[01](\.[0-9]{0,3})?", quality) and float(quality):
            wanted.append((float(quality), _ALIASES.get(media_type, media_type)))
    ranked = sorted(wanted, key=lambda entry: -entry[0])
    return next((media_type for _, media_type in ranked if media_type in _ENCODERS), default)
