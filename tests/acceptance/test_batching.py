"""Batches form across jobs and callers, and a job that is cancelled enters no further batch.

The worker's model is a double that can be held in a forward pass, so that it is certain which inputs wait together.
"""

import json
from concurrent.futures import ThreadPoolExecutor

import pytest
import redis
from acceptance.pictures import as_base64
from stack import KEY, OTHER_KEY, THIRD_KEY, Stack, eventually

from shared import keys
from shared.jobs import Lane

CALLERS = 8


@pytest.fixture(scope="module")
def stack(redis_program, tmp_path_factory):
    """A stack of this file's own, whose batches have room for every input of these tests."""
    del redis_program
    settings = {"COLQUEUE_BATCH_TOKENS": "10000", "DOUBLE_IS_PATIENT": "1"}
    with Stack(tmp_path_factory.mktemp("batching"), **settings) as running:
        running.start_api()
        running.start_double("worker")
        running.wait_until_ready()
        yield running


@pytest.fixture
def connection(stack):
    with redis.Redis.from_url(stack.redis.url) as connection:
        connection.delete("ran", "submitted")
        yield connection


def body_of(input_type, payload):
    return {"input_type": input_type, "inputs": [as_base64(payload) if input_type == "image" else payload.decode()]}


def batches_with(stack, jobs):
    """Return the sets of these jobs that the worker's log names together, batch by batch."""
    lines = [json.loads(line) for line in stack.worker.log.read_text().splitlines() if "batch.embedded" in line]
    return [together for line in lines if (together := set(line["jobs"]) & jobs)]


@pytest.mark.parametrize("input_type", ["image", "text"])
def test_requests_of_several_callers_that_wait_together_share_a_forward_pass(stack, connection, input_type):
    """The model is busy with one input while the others arrive, each from a caller with a connection of its own."""

    def call(number):
        with stack.client([KEY, OTHER_KEY, THIRD_KEY][number % 3]) as http:
            return http.post("/embeddings", json=body_of(input_type, b"request %d" % number)).status_code

    with stack.client() as http, ThreadPoolExecutor(CALLERS) as callers:
        http.post("/jobs", json=body_of(input_type, b"gated"))
        eventually(lambda: connection.lrange("ran", 0, -1) == [b"gated"])
        answers = [callers.submit(call, number) for number in range(CALLERS)]
        eventually(lambda: connection.llen("submitted") == 1 + CALLERS)
        connection.rpush("open", "it")
        assert [answer.result() for answer in answers] == [200] * CALLERS

    lines = [json.loads(line) for line in stack.worker.log.read_text().splitlines() if "batch.embedded" in line]
    assert [(line["inputs"], len(line["jobs"])) for line in lines[-2:]] == [(1, 1), (CALLERS, CALLERS)]


def test_a_batch_names_the_jobs_it_served_in_the_workers_log(stack, connection):
    with stack.client() as http:
        held = http.post("/jobs", json=body_of("text", b"gated")).json()["id"]
        eventually(lambda: connection.lrange("ran", 0, -1) == [b"gated"])
        jobs = {http.post("/jobs", json=body_of("text", b"page %d" % number)).json()["id"] for number in range(CALLERS)}
        eventually(lambda: connection.llen("submitted") == 1 + CALLERS)
        connection.rpush("open", "it")
        for job in jobs:
            eventually(lambda job=job: http.get(f"/jobs/{job}", params={"wait": 60}).json()["finished_at"])

    assert batches_with(stack, {held, *jobs}) == [{held}, jobs]


def test_a_running_job_that_is_cancelled_stops_with_the_batch_that_runs(stack, connection):
    """The job fills two batches, and each batch of it stands still in the model until it is let go."""
    texts = [f"gated {number} ".ljust(400, "x") for number in range(40)]
    with stack.client() as http:
        http.post("/jobs", json=body_of("text", b"gated"))
        eventually(lambda: connection.lrange("ran", 0, -1) == [b"gated"])
        job = http.post("/jobs", json={"input_type": "text", "inputs": texts}).json()["id"]
        eventually(lambda: connection.llen("submitted") == 1 + len(texts))
        connection.rpush("open", "it")
        eventually(lambda: connection.llen("ran") > 1)
        ran = connection.lrange("ran", 0, -1)
        assert len(ran) < 1 + len(texts)
        assert http.get(f"/jobs/{job}").json()["status"] == "running"

        cancelled = http.delete(f"/jobs/{job}").json()
        connection.rpush("open", "it")
        after = http.post("/embeddings", json=body_of("text", b"after"))
        eventually(lambda: not connection.exists("unacked", *(queue for lane in Lane for queue in lane.queues)))

        assert (cancelled["status"], after.status_code) == ("cancelled", 200)
        assert connection.lrange("ran", 0, -1) == [*ran, b"after"]
        assert http.get(f"/jobs/{job}").json() == cancelled
        assert not connection.exists(keys.payloads(job), keys.results(job), keys.failures(job))
