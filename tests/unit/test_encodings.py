"""Compressed bodies: what they unpack to is what counts, and costs no more than the limits."""

import asyncio
import gzip
import threading
import tracemalloc
import zlib

import pytest
from backports import zstd
from starlette.requests import Request
from starlette.responses import Response

from api import encodings
from api.errors import error_response
from api.limits import BodyLimits
from shared.errors import ColqueueError

LIMIT = 2**20
TEXT = b"a body that is longer than one line, " * 500
SKIPPABLE = (0x184D2A50).to_bytes(4, "little") + (100).to_bytes(4, "little") + bytes(100)


def wide(data):
    """A frame that asks for a window of 128 MB."""
    options = {zstd.CompressionParameter.window_log: 27, zstd.CompressionParameter.content_size_flag: 0}
    compressor = zstd.ZstdCompressor(options=options)
    return compressor.compress(data) + compressor.flush()


async def ask(body, encoding, *, part=10_000, max_body_bytes=LIMIT, max_bodies_bytes=10 * LIMIT):
    """Send a body under BodyLimits; return status, headers and what the app read of it."""
    parts = [body[start : start + part] for start in range(0, len(body), part)] or [b""]
    read, sent = [], []

    async def app(scope, receive, send):
        try:
            read.extend([chunk async for chunk in Request(scope, receive).stream()])
            response = Response("read")
        except ColqueueError as error:
            response = error_response(error)
        await response(scope, receive, send)

    async def receive():
        if not parts:
            return {"type": "http.disconnect"}
        return {"type": "http.request", "body": parts.pop(0), "more_body": bool(parts)}

    async def send(message):
        sent.append(message)

    limits = BodyLimits(app, max_body_bytes=max_body_bytes, max_bodies_bytes=max_bodies_bytes, grace_s=100)
    headers = [] if encoding is None else [(b"content-encoding", encoding.encode())]
    await limits({"type": "http", "headers": headers}, receive, send)
    assert limits.held == 0
    return sent[0]["status"], dict(sent[0]["headers"]), b"".join(read), sent[1]["body"].decode()


def read(body, encoding, **options):
    status, _, content, _ = asyncio.run(ask(body, encoding, **options))
    assert status == 200
    return content


def refusal(body, encoding, **options):
    status, _, _, said = asyncio.run(ask(body, encoding, **options))
    return status, said


@pytest.mark.parametrize("part", [1, 1000, 10**6])
@pytest.mark.parametrize(
    ("encoding", "body"),
    [
        ("gzip", gzip.compress(TEXT)),
        ("GZIP", gzip.compress(TEXT)),
        ("x-gzip", gzip.compress(TEXT)),
        ("zstd", zstd.compress(TEXT)),
        ("gzip, zstd", zstd.compress(gzip.compress(TEXT))),
        ("zstd,gzip", gzip.compress(zstd.compress(TEXT))),
        ("identity, gzip", gzip.compress(TEXT)),
        ("identity", TEXT),
        ("", TEXT),
        (None, TEXT),
        ("gzip", gzip.compress(TEXT[:5000]) + gzip.compress(b"") + gzip.compress(TEXT[5000:])),
        ("zstd", zstd.compress(TEXT[:5000]) + SKIPPABLE + zstd.compress(TEXT[5000:])),
    ],
)
def test_a_compressed_body_is_read_as_what_it_unpacks_to(encoding, body, part):
    assert read(body, encoding, part=part) == TEXT


@pytest.mark.parametrize("encoding", ["gzip", "zstd"])
def test_an_empty_body_is_empty(encoding):
    assert read(b"", encoding) == b""


@pytest.mark.parametrize(
    "encoding", ["br", "deflate", "gzip, br", "compress", "gzip;q=1", "gzip, gzip, gzip", "gzip," * 1000, "\x00"]
)
def test_an_encoding_that_is_not_understood_is_415_and_says_what_is(encoding):
    status, headers, _, said = asyncio.run(ask(gzip.compress(TEXT), encoding))

    assert status == 415
    assert "unsupported_encoding" in said
    assert "gzip or zstd" in said
    assert headers[b"accept-encoding"] == b"gzip, zstd"


@pytest.mark.parametrize("encoding", ["gzip", "zstd"])
@pytest.mark.parametrize("body", [TEXT, b"\x1f\x8b\x08garbage and more of it", b"\x28\xb5\x2f\xfd\xff\xff\xff\xff\xff"])
def test_what_is_not_what_it_says_is_an_invalid_body(encoding, body):
    status, said = refusal(body, encoding)

    assert status == 400
    assert f"not valid {encoding}" in said or "cut short" in said


@pytest.mark.parametrize(("encoding", "pack"), [("gzip", gzip.compress), ("zstd", zstd.compress)])
def test_a_body_that_is_cut_short_is_an_invalid_body(encoding, pack):
    status, said = refusal(pack(TEXT)[:-6], encoding)

    assert (status, "cut short" in said) == (400, True)


BOMB = bytes(200 * LIMIT)
BOMBS = {
    "gzip": ("gzip", gzip.compress(BOMB)),
    "zstd": ("zstd", zstd.compress(BOMB)),
    "gzip in zstd": ("gzip, zstd", zstd.compress(gzip.compress(BOMB))),
    "zstd in zstd": ("zstd, zstd", zstd.compress(zstd.compress(BOMB))),
    "nothing in gzip in gzip": ("gzip, gzip", gzip.compress(gzip.compress(b"") * 200_000)),
    "nothing in a large frame": ("zstd, gzip", gzip.compress(SKIPPABLE * 50_000)),
}
del BOMB


@pytest.mark.parametrize("name", BOMBS)
def test_a_bomb_costs_no_more_than_the_limit(name):
    encoding, body = BOMBS[name]
    tracemalloc.start()
    try:
        status, said = refusal(body, encoding)
        assert tracemalloc.get_traced_memory()[1] < 4 * LIMIT
    finally:
        tracemalloc.stop()
    assert (status, "too_large" in said) == (413, True)


def test_a_window_of_more_than_8_mb_is_refused():
    assert refusal(wide(TEXT), "zstd")[0] == 400


def test_what_a_body_unpacks_to_counts_among_all_bodies():
    status, said = refusal(gzip.compress(bytes(LIMIT // 2)), "gzip", max_bodies_bytes=LIMIT // 4)

    assert (status, "busy" in said) == (503, True)


def test_a_compressed_body_of_exactly_the_limit_is_read_and_one_more_byte_is_too_large():
    assert read(gzip.compress(bytes(LIMIT)), "gzip") == bytes(LIMIT)
    assert refusal(gzip.compress(bytes(LIMIT + 1)), "gzip")[0] == 413


def test_what_is_sent_is_bounded_as_well():
    stored = zlib.compressobj(0, wbits=31)
    body = stored.compress(bytes(1000)) + stored.flush()
    assert refusal(body, "gzip", max_body_bytes=1000)[0] == 413


def test_a_large_body_is_unpacked_off_the_event_loop(monkeypatch):
    threads = set()

    class Noted(encodings.Decoding):
        """Notes where it is asked for pieces."""

        def pieces(self, data):
            for piece in super().pieces(data):
                threads.add(threading.get_ident())
                yield piece

    monkeypatch.setattr("api.limits.Decoding", Noted)
    read(gzip.compress(bytes(LIMIT)) + gzip.compress(b"") * 900, "gzip", part=10**6)

    assert threads
    assert threading.get_ident() not in threads
