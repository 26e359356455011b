"""The server's patience with callers that stop sending a head or reading an answer, on real sockets."""

import asyncio
import contextlib
import socket
import threading

import pytest
import uvicorn
from stack import eventually

from api import protocol
from api.protocol import ImpatientProtocol

HEAD = b"GET / HTTP/1.1\r\nHost: x\r\n"
# More than all buffers between the two hold.
PART, LARGE_PARTS = bytes(2**20), 64
ENDED = threading.Event()
# Long enough for the slowest machine; no test waits for it unless it fails.
SOON_S = 120


async def app(scope, receive, send):
    """Answer after the whole body, later than a head may take."""
    if scope["type"] != "http":
        return
    while (await receive()).get("more_body"):
        pass
    if scope["path"] == "/large":
        await send({"type": "http.response.start", "status": 200, "headers": []})
        for _ in range(LARGE_PARTS):
            await send({"type": "http.response.body", "body": PART, "more_body": True})
        await send({"type": "http.response.body", "body": b""})
        ENDED.set()
        return
    await asyncio.sleep(0.5)
    await send({"type": "http.response.start", "status": 200, "headers": [(b"content-length", b"2")]})
    await send({"type": "http.response.body", "body": b"ok"})


@pytest.fixture(scope="module")
def port():
    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(protocol, "_HEAD_S", 0.3)
        patched.setattr(protocol, "_STALL_S", 0.5)
        server = uvicorn.Server(
            uvicorn.Config(app, port=0, http=ImpatientProtocol, log_config=None, lifespan="off", timeout_keep_alive=30)
        )
        thread = threading.Thread(target=server.run, daemon=True)
        thread.start()
        eventually(lambda: server.started, SOON_S)
        yield server.servers[0].sockets[0].getsockname()[1]
        server.should_exit = True
        thread.join(SOON_S)


@pytest.fixture
def connection(port):
    with socket.create_connection(("127.0.0.1", port), timeout=SOON_S) as connection:
        yield connection


def answer(connection):
    received = b""
    while b"ok" not in received and (part := connection.recv(65_536)):
        received += part
    return received


@pytest.mark.parametrize("sent", [b"", b"G", HEAD, HEAD + b"X-Slow: "])
def test_a_connection_without_a_whole_head_is_closed(connection, sent):
    connection.sendall(sent)
    assert connection.recv(65_536) == b""


def test_a_head_that_trickles_is_cut_off(connection):
    connection.sendall(HEAD)
    with pytest.raises(ConnectionError):  # noqa: PT012 the byte at which it is noticed is chance
        for _ in range(10_000):
            connection.sendall(b"x")
            threading.Event().wait(0.01)


def test_a_request_that_takes_longer_than_a_head_may_is_answered_and_so_is_the_next(connection):
    for _ in range(2):
        connection.sendall(HEAD + b"\r\n")
        assert answer(connection).endswith(b"ok")


def test_a_second_head_that_does_not_end_is_cut_off_like_the_first(connection):
    connection.sendall(HEAD + b"\r\n")
    assert answer(connection).endswith(b"ok")
    connection.sendall(HEAD)
    assert connection.recv(65_536) == b""


def test_a_body_is_not_hurried_by_it(connection):
    connection.sendall(HEAD.replace(b"GET", b"POST") + b"Content-Length: 2\r\n\r\n1")
    threading.Event().wait(0.5)
    connection.sendall(b"2")
    assert answer(connection).endswith(b"ok")


@pytest.mark.parametrize("flood", [b"X-A: " + b"a" * 2**20, b"X-A: b\r\n" * 2**17], ids=["one", "many"])
def test_a_flood_of_headers_is_refused(connection, flood):
    with pytest.raises(ConnectionError):  # noqa: PT012 where it is noticed depends on the sockets' buffers
        connection.sendall(HEAD + flood)
        if b" 400 " in connection.recv(65_536):
            raise ConnectionAbortedError


def test_a_caller_that_stops_reading_its_answer_is_cut_off(connection):
    """Else it would hold a part of the answer, and what counts it, for as long as it likes."""
    ENDED.clear()
    connection.sendall(b"GET /large HTTP/1.1\r\nHost: x\r\n\r\n")
    # uvicorn drops what is sent to a connection that is gone, so the route comes to its end.
    assert ENDED.wait(SOON_S)
    received = 0
    with contextlib.suppress(ConnectionError):
        while part := connection.recv(2**20):
            received += len(part)
    assert received < LARGE_PARTS * len(PART)


def test_a_caller_that_reads_gets_all_of_a_large_answer(connection):
    connection.sendall(b"GET /large HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n")
    received = 0
    while part := connection.recv(2**20):
        received += len(part)
    assert received > LARGE_PARTS * len(PART)
