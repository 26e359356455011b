"""Synchronous requests wait for room in the queue before they are refused: an api without any worker."""

import http.client
import json
from contextlib import contextmanager

import httpx2
import pytest
import redis
from stack import Stack, eventually

ROOM, KEY_ROOM = 10, 4
TEXT = {"input_type": "text", "inputs": ["a question"]}


@pytest.fixture(scope="module")
def door(redis_program, tmp_path_factory):
    """A stack without a worker, so that nothing drains but what is cancelled."""
    del redis_program
    settings = {
        "SERVICE_API_KEY": "alice,bob,carol",
        "COLQUEUE_QUEUE_MAX_INPUTS": str(ROOM),
        "COLQUEUE_KEY_MAX_INPUTS": str(KEY_ROOM),
        "COLQUEUE_MAX_BODIES_BYTES": "150000",
    }
    with Stack(tmp_path_factory.mktemp("room"), **settings) as running:
        running.start_api()
        yield running


@pytest.fixture(autouse=True)
def empty(door):
    """Each test begins and ends with nothing in the queue."""
    yield
    for key in ("alice", "bob", "carol"):
        with door.client(key) as caller:
            for job in caller.get("/jobs", params={"limit": 1000}).json()["jobs"]:
                caller.delete(f"/jobs/{job['id']}")


@pytest.fixture
def fill(door):
    """Call to let a key submit so many interactive inputs; returns the job."""

    def fill(key, number):
        with door.client(key) as caller:
            body = {"input_type": "text", "inputs": ["x"] * number, "lane": "interactive"}
            answer = caller.post("/jobs", json=body)
            assert answer.status_code == 202, answer.text
            return answer.json()

    return fill


@pytest.fixture
def fill_lane(fill):
    """Call to fill the interactive lane with the work of two keys; returns the second's job."""

    def fill_lane():
        fill("alice", KEY_ROOM)
        return fill("bob", 3)

    return fill_lane


def cancel(door, key, job):
    with door.client(key) as caller:
        caller.delete(f"/jobs/{job['id']}")


def unfinished(door, key):
    with door.client(key) as caller:
        return [job for job in caller.get("/jobs").json()["jobs"] if not job["finished_at"]]


@contextmanager
def asking(door, key, body=TEXT, path="/embeddings"):
    """Send a synchronous request and go on once the api has made it wait; at the end hang up."""
    waits = requests_that_wait(door)
    caller = http.client.HTTPConnection("127.0.0.1", door.port)
    headers = {"Authorization": f"Bearer {key}", "Content-Type": "application/json"}
    caller.request("POST", path, json.dumps(body), headers)
    try:
        eventually(lambda: requests_that_wait(door) > waits)
        yield
    finally:
        caller.close()


def requests_that_wait(door):
    return door.processes["api"].log.read_text().count("request.waits")


def hung_up(door):
    with door.client("carol") as caller:
        lines = caller.get("/metrics").text.splitlines()
    return sum(float(line.rpartition(" ")[2]) for line in lines if 'status="499"' in line and "requests_total" in line)


@pytest.mark.parametrize("path", ["/embeddings", "/npz/embeddings"])
def test_a_request_that_finds_the_queue_full_is_taken_once_there_is_room(door, fill_lane, path):
    blocking = fill_lane()
    with asking(door, "carol", {"input_type": "text", "inputs": ["x"] * 4}, path):
        assert unfinished(door, "carol") == []
        cancel(door, "bob", blocking)
        (job,) = eventually(lambda: unfinished(door, "carol"))
        assert job["total"] == 4
    eventually(lambda: not unfinished(door, "carol"))


def test_a_key_over_its_own_limit_waits_for_its_own_work_to_end(door, fill):
    blocking = fill("alice", KEY_ROOM)
    with asking(door, "alice"):
        cancel(door, "alice", blocking)
        (job,) = eventually(lambda: unfinished(door, "alice"))
        assert job["total"] == 1


def test_a_caller_that_hangs_up_while_it_waits_leaves_nothing_behind(door, fill_lane):
    blocking, before = fill_lane(), hung_up(door)
    with redis.Redis.from_url(door.redis.url) as connection:
        keys = set(connection.scan_iter("colqueue:job:*"))
        with asking(door, "carol", {"input_type": "text", "inputs": ["x"] * 4}):
            pass
        eventually(lambda: hung_up(door) > before)
        assert set(connection.scan_iter("colqueue:job:*")) == keys
    cancel(door, "bob", blocking)
    assert unfinished(door, "carol") == []


def test_jobs_answers_at_once_where_the_queue_is_full(door, fill_lane):
    fill_lane()
    waits = requests_that_wait(door)
    with door.client("carol") as caller:
        answer = caller.post("/jobs", json={"input_type": "text", "inputs": ["x"] * 4, "lane": "interactive"})
    assert (answer.status_code, answer.json()["code"]) == (429, "queue_full")
    assert requests_that_wait(door) == waits


def test_a_request_is_refused_once_it_has_waited_long_enough(door, fill_lane):
    fill_lane()
    url = door.start_api("hasty", COLQUEUE_SYNC_ROOM_WAIT_S="0.5")
    with door.client("carol", url=url) as caller:
        answer = caller.post("/embeddings", json={"input_type": "text", "inputs": ["x"] * 4})
    assert (answer.status_code, answer.json()["code"]) == (429, "queue_full")
    assert int(answer.headers["Retry-After"]) > 0
    assert "request.waits" in door.processes["hasty"].log.read_text()
    door.stop("hasty")


def test_waiting_for_room_and_for_the_result_takes_no_longer_than_one_may_wait_altogether(door, fill_lane):
    """Refused as one that found no room, and not as one whose result was not ready."""
    fill_lane()
    url = door.start_api("hasty", COLQUEUE_SYNC_ROOM_WAIT_S="600", COLQUEUE_SYNC_TIMEOUT_S="0.5")
    with door.client("carol", url=url) as caller:
        answer = caller.post("/embeddings", json={"input_type": "text", "inputs": ["x"] * 4})
    assert (answer.status_code, answer.json()["code"]) == (429, "queue_full")
    door.stop("hasty")


def test_the_body_of_a_request_that_waits_stays_counted(door, fill_lane):
    fill_lane()
    large = {"input_type": "text", "inputs": [], "pad": "x" * 60_000}
    with door.client("alice") as alice:
        with asking(door, "carol", {"input_type": "text", "inputs": ["x"] * 4, "pad": "x" * 100_000}):
            refused = alice.post("/jobs", json=large)
            assert (refused.status_code, refused.json()["code"]) == (503, "busy")
        eventually(lambda: alice.post("/jobs", json=large).json()["code"] == "invalid_job")


def test_a_request_waits_while_redis_is_away_and_gets_through(door):
    door.redis.kill()
    try:
        with asking(door, "carol"):
            door.redis.start()
            (job,) = eventually(lambda: unfinished_if_known(door))
            assert job["total"] == 1
    finally:
        door.redis.stop()
        door.redis.start()


def unfinished_if_known(door):
    try:
        return unfinished(door, "carol")
    except (KeyError, httpx2.HTTPError):
        return []
