"""Callers that leave, waits that run out, a worker that stands still or dies, a Redis that goes away and comes back."""

import json
import socket
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, contextmanager
from signal import SIGCONT, SIGKILL, SIGSTOP

import pytest
import redis
from acceptance.morphik_core import MorphikCore
from acceptance.pictures import A4, as_base64, jpeg, png
from stack import KEY, Stack, eventually

from shared import keys

PAGE = as_base64(png())
IMAGE = {"input_type": "image", "inputs": [PAGE]}
TEXT = {"input_type": "text", "inputs": ["still there?"]}
# Celery's worker takes about 11 s to reconnect, on a busy machine longer.
RECOVERY_S = 180


@pytest.fixture(scope="module")
def stack(redis_program, models_dir, tmp_path_factory):
    """A stack of this file's own, which gives a dead worker's tasks back after five seconds."""
    del redis_program
    settings = {"COLQUEUE_CACHE_DIR": str(models_dir), "COLQUEUE_VISIBILITY_TIMEOUT_S": "5"}
    with Stack(tmp_path_factory.mktemp("outages"), **settings) as running:
        running.start_worker()
        running.start_api()
        running.wait_until_ready()
        yield running


@pytest.fixture
def http(stack):
    with stack.client() as client:
        yield client


@pytest.fixture(autouse=True)
def works_again(stack):
    """Each test leaves a service that embeds, without a restart of api or worker."""
    yield
    with stack.client() as client:
        eventually(lambda: client.get("/ready").status_code == 200, RECOVERY_S)
        assert client.post("/embeddings", json=TEXT).status_code == 200


@contextmanager
def paused(stack):
    stack.worker.signal(SIGSTOP)
    try:
        yield
    finally:
        stack.worker.signal(SIGCONT)


@contextmanager
def without_redis(stack):
    stack.redis.kill()
    try:
        yield
    finally:
        stack.redis.start()


def finished(http, job_id):
    job = {"finished_at": None}
    while not job["finished_at"]:
        job = http.get(f"/jobs/{job_id}", params={"wait": 30}).json()
    return job


def newest_job(http):
    """Return the job that was submitted last, None where there is none."""
    return next(iter(http.get("/jobs", params={"limit": 1}).json()["jobs"]), None)


def newer_job(http, than):
    """Return the job that was submitted after `than`, once it is there."""
    known = than and than["id"]
    return eventually(lambda: (job := newest_job(http)) and job["id"] != known and job)


@pytest.fixture(scope="module")
def hasty_url(stack):
    """A second api on the same Redis that holds its callers for a second only."""
    yield stack.start_api("hasty", COLQUEUE_SYNC_TIMEOUT_S="1")
    stack.stop("hasty")


@pytest.mark.parametrize("path", ["/embeddings", "/npz/embeddings"])
def test_a_wait_that_runs_out_says_where_the_result_will_be(stack, http, hasty_url, path):
    with stack.client(url=hasty_url) as hasty, paused(stack):
        answer = hasty.post(path, json=IMAGE)

    assert (answer.status_code, answer.json()["code"]) == (504, "wait_timeout")
    location = answer.headers["location"]
    assert location in answer.json()["error"]
    assert finished(http, location.removeprefix("/jobs/"))["status"] == "completed"
    assert len(http.get(f"{location}/result").json()["embeddings"]) == 1


def test_a_caller_that_hangs_up_cancels_its_job(stack, http):
    before, body = newest_job(http), json.dumps(IMAGE)
    headers = f"Host: x\r\nAuthorization: Bearer {KEY}\r\nContent-Length: {len(body)}"
    with paused(stack):
        with socket.create_connection(("127.0.0.1", stack.port)) as caller:
            caller.sendall(f"POST /embeddings HTTP/1.1\r\n{headers}\r\n\r\n{body}".encode())
            job = newer_job(http, before)
        eventually(lambda: http.get(f"/jobs/{job['id']}").json()["status"] == "cancelled")
    assert http.get(f"/jobs/{job['id']}").json()["completed"] == 0


def test_without_redis_callers_are_told_to_come_back(stack, http, hasty_url):
    with without_redis(stack), stack.client(url=hasty_url) as hasty:
        answers = [
            hasty.post("/embeddings", json=IMAGE),
            hasty.post("/npz/embeddings", json=TEXT),
            http.post("/jobs", json=IMAGE),
            http.get("/jobs"),
            http.get(f"/jobs/{32 * '0'}"),
            http.delete(f"/jobs/{32 * '0'}"),
            http.get("/metrics"),
        ]
        ready, health = http.get("/ready"), http.get("/health")

    for answer in answers:
        assert (answer.status_code, answer.json()["code"]) == (503, "store_unavailable")
        assert int(answer.headers["retry-after"]) > 0
    assert (ready.status_code, ready.json()["reason"]) == (503, "Redis does not answer.")
    assert int(ready.headers["retry-after"]) > 0
    assert health.status_code == 200


def test_a_caller_like_morphik_core_gets_through_an_outage(stack):
    """It may repeat nothing: its request waits in the api until Redis is back, and is answered once."""
    core = MorphikCore.of_today(f"{stack.url}/npz", KEY)
    log = stack.processes["api"].log
    waits = log.read_text().count("request.waits")
    with ThreadPoolExecutor(1) as callers:
        with without_redis(stack):
            rows = callers.submit(core.embed_for_query, "Who is supplied first?")
            eventually(lambda: log.read_text().count("request.waits") > waits)
        assert rows.result(timeout=RECOVERY_S).shape[1] == 128

    assert core.asked == [(1, 200)]


def test_callers_that_wait_get_their_result_when_redis_comes_back(stack, http):
    """One waits for embeddings, one for the end of its job, one for events: none is told of the outage."""

    def embeddings():
        with stack.client() as caller:
            return caller.post("/embeddings", json={"input_type": "image", "inputs": [PAGE] * 9})

    with ThreadPoolExecutor(3) as callers, ExitStack() as open_stream:
        with paused(stack):
            job = http.post("/jobs", json={"input_type": "image", "inputs": [PAGE] * 9}).json()
            waiting = callers.submit(embeddings)
            newer_job(http, job)
            client = open_stream.enter_context(stack.client())
            events = open_stream.enter_context(client.stream("GET", f"/jobs/{job['id']}/events")).iter_lines()
            assert next(events) == "event: progress"
            changed = callers.submit(lambda: http.get(f"/jobs/{job['id']}", params={"wait": 60}))
            assert http.get(f"/jobs/{job['id']}", params={"wait": 1}).json() == job
            with without_redis(stack):
                pass
        assert changed.result(timeout=RECOVERY_S).json()["status"] != "queued"
        assert [line for line in events if line.startswith("event:")][-1] == "event: completed"
        answer = waiting.result(timeout=RECOVERY_S)

    assert answer.status_code == 200
    assert len(answer.json()["embeddings"]) == 9
    assert finished(http, job["id"])["completed"] == 9


def test_a_full_redis_is_a_reason_to_come_back_later(stack, http, hasty_url):
    with stack.client(url=hasty_url) as hasty, redis.Redis.from_url(stack.redis.url) as connection:
        connection.config_set("maxmemory", 1)
        try:
            answers = [hasty.post("/embeddings", json=IMAGE), http.post("/jobs", json=IMAGE)]
        finally:
            connection.config_set("maxmemory", 0)

    for answer in answers:
        assert (answer.status_code, answer.json()["code"]) == (429, "queue_full")
        assert int(answer.headers["retry-after"]) > 0
    assert stack.worker.running()


def test_a_fault_in_the_worker_fails_the_inputs_and_nobody_waits_for_ever(stack, http):
    """Here: somebody else wrote over a payload in Redis."""
    with paused(stack):
        job = http.post("/jobs", json=TEXT).json()
        with redis.Redis.from_url(stack.redis.url) as connection:
            connection.hset(keys.payloads(job["id"]), "0", b"\xff not UTF-8")

    assert finished(http, job["id"])["status"] == "failed"
    (error,) = http.get(f"/jobs/{job['id']}/result").json()["errors"]
    assert (error["index"], error["code"]) == (0, "input_failed")


def test_the_work_of_a_worker_that_dies_is_done_by_the_next(stack, http):
    """Killed with the tasks in hand, and their pages perhaps half embedded."""
    pages = [as_base64(jpeg(*A4, seed)) for seed in range(12)]
    job = job_in_hand(stack, http, pages)
    stack.worker.signal(SIGKILL)
    stack.worker.wait()

    stack.start_worker()
    job = finished(http, job["id"])

    assert (job["status"], job["completed"], job["failed"]) == ("completed", 12, 0)


def job_in_hand(stack, http, pages):
    """Freeze the worker while it has tasks of a job in hand, and return that job."""
    while True:
        job = http.post("/jobs", json={"input_type": "image", "inputs": pages}).json()
        with redis.Redis.from_url(stack.redis.url) as connection:
            eventually(
                lambda connection=connection, job=job: (
                    connection.hlen("unacked") or http.get(f"/jobs/{job['id']}").json()["finished_at"]
                )
            )
            assert stack.worker.freeze()
            if connection.hlen("unacked") and not http.get(f"/jobs/{job['id']}").json()["finished_at"]:
                return job
        stack.worker.signal(SIGCONT)
        finished(http, job["id"])


def test_what_was_being_embedded_when_redis_went_away_is_finished(stack, http):
    pages = [as_base64(jpeg(*A4, seed)) for seed in range(16)]
    job = http.post("/jobs", json={"input_type": "image", "inputs": pages}).json()
    eventually(lambda: http.get(f"/jobs/{job['id']}").json()["completed"])
    with without_redis(stack):
        pass

    eventually(lambda: http.get(f"/jobs/{job['id']}").status_code == 200)
    job = finished(http, job["id"])
    assert (job["status"], job["completed"]) == ("completed", 16)
