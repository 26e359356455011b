"""Results that are larger than what one answer may hold in memory, and callers that keep many answers open."""

import contextlib
import io
import json
import select
import socket

import httpx2
import msgpack
import numpy as np
import pytest
import redis
from stack import KEY, OTHER_KEY, Stack, eventually

from shared import keys
from shared.errors import ImageInvalidError
from shared.jobs import Lane
from shared.settings import StoreSettings
from worker.store import Store

PAGES = 40
ROWS = np.random.default_rng(7).standard_normal((700, 128), dtype=np.float32)
FAILED = 17
MOST_WAITS = 3
MOST_CALLS = 5
SOON_S = 120


@pytest.fixture(scope="module")
def stack(redis_program, tmp_path_factory):
    """An api and Redis, and no worker: the tests do what it would do."""
    del redis_program
    settings = {"COLQUEUE_KEY_MAX_WAITS": str(MOST_WAITS), "COLQUEUE_KEY_MAX_CALLS": str(MOST_CALLS)}
    with Stack(tmp_path_factory.mktemp("large"), **settings) as running:
        running.start_api()
        yield running


@pytest.fixture(scope="module")
def store(stack):
    store = Store(StoreSettings(_env_file=None, redis_url=stack.redis.url))
    yield store
    for client in (store._redis, store._impatient):  # noqa: SLF001  # a worker's store lives as long as its process
        client.close()


@pytest.fixture
def http(stack):
    with stack.client() as client:
        yield client


def submit(http, number=1):
    answer = http.post("/jobs", json={"input_type": "text", "inputs": ["text"] * number})
    assert answer.status_code == 202, answer.text
    return answer.json()["id"]


def page(index):
    return ROWS + np.float32(index)


@pytest.fixture
def large(http, store):
    """A finished job of 14 MB, one of whose inputs has failed."""
    job_id = submit(http, PAGES)
    for index in range(PAGES):
        store.save(job_id, {index: ImageInvalidError("no page") if index == FAILED else page(index)})
    return job_id


def rows_in_json(body):
    answer = json.loads(body)
    assert [error["index"] for error in answer["errors"]] == [FAILED]
    return answer["embeddings"]


def rows_in_msgpack(body):
    answer = msgpack.unpackb(body)
    assert [error["index"] for error in answer["errors"]] == [FAILED]
    return [rows and np.frombuffer(rows["data"], rows["dtype"]).reshape(rows["shape"]) for rows in answer["embeddings"]]


def rows_in_npz(body):
    with np.load(io.BytesIO(body)) as archive:
        assert int(archive["count"]) == PAGES
        return [archive.get(f"emb_{index}") for index in range(PAGES)]


@pytest.mark.parametrize(
    ("accept", "rows_in"),
    [("application/json", rows_in_json), ("application/msgpack", rows_in_msgpack), ("application/x-npz", rows_in_npz)],
)
def test_a_large_result_comes_in_pieces_and_is_whole_in_every_form(http, large, accept, rows_in):
    answer = http.get(f"/jobs/{large}/result", headers={"Accept": accept})
    assert answer.headers["transfer-encoding"] == "chunked"
    rows = rows_in(answer.content)
    assert rows[FAILED] is None
    for index in {*range(PAGES)} - {FAILED}:
        np.testing.assert_array_equal(np.asarray(rows[index], np.float32), page(index))


def test_a_result_that_goes_while_it_is_sent_leaves_an_answer_that_no_client_takes_for_whole(http, stack, large):
    with http.stream("GET", f"/jobs/{large}/result") as answer:
        parts = answer.iter_raw(1024)
        next(parts)
        with stack.client() as other:
            assert other.get(f"/jobs/{large}").json()["completed"] == PAGES - 1
            forget_results(stack, large)
        with pytest.raises(httpx2.RemoteProtocolError):
            list(parts)
    assert http.get(f"/jobs/{large}/result").status_code == 410


def forget_results(stack, job_id):
    with redis.Redis.from_url(stack.redis.url) as connection:
        connection.delete(keys.results(job_id))


def result_status(http, job_id):
    return http.get(f"/jobs/{job_id}/result").status_code


@pytest.fixture
def finished(http, store):
    """A small finished job."""
    job_id = submit(http)
    store.save(job_id, {0: ROWS})
    return job_id


def test_deleting_a_finished_job_drops_its_result_and_says_so(http, stack, finished):
    job = http.get(f"/jobs/{finished}").json()
    assert job["released"] is False
    with redis.Redis.from_url(stack.redis.url) as connection:
        assert connection.hlen(keys.results(finished)) == 1
        for _ in range(2):
            answer = http.delete(f"/jobs/{finished}")
            assert answer.status_code == 200
            assert answer.json() == job | {"released": True, "expires_at": answer.json()["expires_at"]}
            assert answer.json()["expires_at"] < job["expires_at"]
        assert not connection.exists(keys.results(finished))
        assert finished not in str(connection.zrange(keys.KEPT, 0, -1))
    answer = http.get(f"/jobs/{finished}/result")
    assert (answer.status_code, answer.json()["code"]) == (410, "result_expired")


def test_a_result_is_released_once_it_was_sent_whole(http, large, finished):
    for job_id in (large, finished):
        assert http.get(f"/jobs/{job_id}/result").status_code == 200
        assert http.get(f"/jobs/{job_id}/result?release=true").status_code == 200
        eventually(lambda job_id=job_id: http.get(f"/jobs/{job_id}").json()["released"], SOON_S)
        assert result_status(http, job_id) == 410


def test_a_result_whose_reader_hangs_up_half_way_is_kept(http, stack, large):
    with contextlib.ExitStack() as calls:
        connection = begin_call(calls, stack, f"/jobs/{large}/result?release=true")
        assert connection.recv(1024)
    for _ in range(2):
        assert result_status(http, large) == 200
    assert http.get(f"/jobs/{large}").json()["released"] is False


def tasks_queued(stack):
    with redis.Redis.from_url(stack.redis.url) as connection:
        return sum(connection.llen(queue) for lane in Lane for queue in lane.queues)


def test_a_repeat_under_an_idempotency_key_queues_nothing(http, stack):
    """400 repeats of one request queued 25,664 tasks. What the broker loses is the reaper's to queue again."""
    body = {"input_type": "text", "inputs": ["text"] * 3}
    before = tasks_queued(stack)
    first = http.post("/jobs", json=body, headers={"Idempotency-Key": "repeated"})
    once = tasks_queued(stack)
    assert once > before
    for _ in range(10):
        again = http.post("/jobs", json=body, headers={"Idempotency-Key": "repeated"})
        assert (again.status_code, again.json()["id"]) == (202, first.json()["id"])
    assert tasks_queued(stack) == once
    other = http.post("/jobs", json=body | {"lane": "interactive"}, headers={"Idempotency-Key": "repeated"})
    assert (other.status_code, other.json()["code"]) == (422, "idempotency_key_reused")


def begin_call(calls, stack, path, body=b""):
    """Send a request without reading its answer, and return its connection, which `calls` closes."""
    connection = calls.enter_context(socket.create_connection(("127.0.0.1", stack.port), timeout=SOON_S))
    method = "POST" if body else "GET"
    head = f"{method} {path} HTTP/1.1\r\nHost: x\r\nAuthorization: Bearer {KEY}\r\nContent-Length: {len(body)}\r\n\r\n"
    connection.sendall(head.encode() + body)
    return connection


def refusals(connections):
    """Return the answers 429 that have come on any of these connections."""
    ready, _, _ = select.select(connections, [], [], 0)
    heads = [connection.recv(65_536, socket.MSG_PEEK) for connection in ready]
    return [head for head in heads if head.startswith(b"HTTP/1.1 429 ")]


def is_refused(http, path):
    """Tell whether a call is refused; one that is taken waits and is given up by us."""
    try:
        return http.get(path, timeout=0.5).status_code == 429
    except httpx2.ReadTimeout:
        return False


@pytest.mark.parametrize("kind", ["?wait=60", "/events"])
def test_long_polls_and_event_streams_of_a_key_are_bounded_and_who_hangs_up_is_noticed(stack, http, kind):
    job = f"/jobs/{submit(http)}"
    with stack.client(OTHER_KEY) as other, contextlib.ExitStack() as calls:
        connections = [begin_call(calls, stack, job + kind) for _ in range(MOST_WAITS + 1)]
        (refused,) = eventually(lambda: refusals(connections), SOON_S)
        assert b"rate_limited" in refused
        assert b"retry-after: " in refused
        assert http.get(job).status_code == 200
        assert other.get(f"/jobs/{submit(other)}?wait=0.01").status_code == 200
        calls.close()
        eventually(lambda: not is_refused(http, job + kind), SOON_S)


def test_all_requests_of_a_key_are_bounded_and_those_of_others_are_not(stack, http):
    body = json.dumps({"input_type": "text", "inputs": ["text"]}).encode()
    with stack.client(OTHER_KEY) as other, contextlib.ExitStack() as calls:
        connections = [begin_call(calls, stack, "/embeddings", body) for _ in range(MOST_CALLS + 1)]
        (refused,) = eventually(lambda: refusals(connections), SOON_S)
        assert b"rate_limited" in refused
        assert http.get("/jobs").status_code == 429
        assert other.get("/jobs").status_code == 200
        assert http.get("/metrics").status_code == 200
        calls.close()
        eventually(lambda: http.get("/jobs").status_code == 200, SOON_S)
