"""Connections to Redis that died in silence: no side was told, nothing comes any more."""

from concurrent.futures import ThreadPoolExecutor

import pytest
import redis
from proxy import SilentProxy
from stack import Stack, eventually

BODY = {"input_type": "text", "inputs": ["a"]}
# Time-outs of 5 and 10 s, one after the other, on a machine that others use, too.
RECOVERY_S = 120


@pytest.fixture
def stack(redis_program, tmp_path):
    del redis_program
    settings = {"COLQUEUE_VISIBILITY_TIMEOUT_S": "10", "COLQUEUE_REAP_AFTER_S": "2", "COLQUEUE_SYNC_ROOM_WAIT_S": "1"}
    with Stack(tmp_path, **settings) as stack:
        yield stack


@pytest.fixture
def proxy(stack):
    with SilentProxy(stack.redis.port) as proxy:
        yield proxy


@pytest.fixture
def connection(stack):
    with redis.Redis.from_url(stack.redis.url, socket_timeout=None) as connection:
        yield connection


def through(proxy, stack):
    """Settings of a process that reaches Redis by the proxy; a double's notes go straight."""
    return {"COLQUEUE_REDIS_URL": f"redis://127.0.0.1:{proxy.port}/0", "NOTES_REDIS_URL": stack.redis.url}


def answer(http):
    return http.post("/embeddings", json=BODY).status_code


def test_a_worker_whose_connections_died_in_silence_is_not_ready_and_comes_back(stack, proxy):
    stack.start_api()
    worker = stack.start_double("worker", **through(proxy, stack))
    stack.wait_until_ready()
    with stack.client() as http:
        assert answer(http) == 200
        proxy.freeze()
        eventually(lambda: http.get("/ready").status_code == 503, RECOVERY_S)
        proxy.thaw()
        eventually(lambda: http.get("/ready").status_code == 200, RECOVERY_S)
        assert answer(http) == 200
    assert worker.running()


def test_a_worker_that_reaches_the_store_and_not_its_queues_is_not_ready(stack, proxy):
    """Only the connections that read the queues are silent: the heartbeat, over its own, tells the truth."""
    stack.start_api()
    worker = stack.start_double("worker", **through(proxy, stack))
    stack.wait_until_ready()
    with stack.client() as http:
        proxy.freeze()
        proxy.thaw()
        reason = eventually(lambda: http.get("/ready").json().get("reason"), RECOVERY_S)
        assert "queue" in reason or "No worker" in reason
        eventually(lambda: http.get("/ready").status_code == 200, RECOVERY_S)
        assert answer(http) == 200
    assert worker.running()


def test_an_api_whose_connections_died_in_silence_says_so_and_comes_back(stack, proxy, connection):
    """Whoever waited is answered as well: the reader of announcements finds its connection dead by itself."""
    stack.start_api(**through(proxy, stack))
    stack.start_double("worker")
    stack.wait_until_ready()
    with stack.client() as http, ThreadPoolExecutor(1) as caller:
        waiting = caller.submit(http.post, "/embeddings", json={"input_type": "text", "inputs": ["gated b"]})
        eventually(lambda: b"gated b" in connection.lrange("ran", 0, -1))
        proxy.freeze()
        eventually(lambda: http.get("/ready").status_code == 503, RECOVERY_S)
        assert answer(http) == 503
        proxy.thaw()
        connection.rpush("open", "it")
        assert waiting.result(RECOVERY_S).status_code == 200
        eventually(lambda: answer(http) == 200, RECOVERY_S)
        assert http.get("/ready").status_code == 200
