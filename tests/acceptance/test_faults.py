"""What dies, leaves and comes twice around a real api, queue and Redis: every input still ends once, and right.

The worker's model is a double that takes no time, so that the faults are what these tests wait for.
"""

import json
import sys
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from signal import SIGKILL, SIGTERM

import httpx2
import numpy as np
import pytest
import redis
from doubles import rows_of
from stack import KEY, Process, Stack, clean_environment, eventually

from colqueue_client.launch.ports import free_port
from shared import keys
from shared.jobs import Lane
from shared.queue import celery_app, publish
from shared.registry import job_from_hash
from shared.settings import StoreSettings

VISIBILITY_TIMEOUT_S = 3
TASK_TOKENS = 80  # four inputs of these tests
TASK_TEXTS = 4
DEATHS = 8
OUTAGE_S = 30
# Celery's worker takes about 11 s to reconnect, on a busy machine longer.
RECOVERY_S = 180


@pytest.fixture
def start_stack(redis_program, tmp_path):
    del redis_program
    running = []

    def start_stack(**settings):
        defaults = {
            "COLQUEUE_VISIBILITY_TIMEOUT_S": str(VISIBILITY_TIMEOUT_S),
            "COLQUEUE_REAP_AFTER_S": "2",
            "COLQUEUE_TASK_TOKENS": str(TASK_TOKENS),
            "COLQUEUE_BATCH_TOKENS": "1000",
            "COLQUEUE_LOG_LEVEL": "INFO",
        }
        stack = Stack(tmp_path, **defaults | settings)
        running.append(stack)
        stack.__enter__()
        return stack

    yield start_stack
    for stack in running:
        stack.__exit__(None, None, None)


@pytest.fixture
def stack(start_stack):
    stack = start_stack()
    stack.start_api()
    return stack


@pytest.fixture
def http(stack):
    with stack.client() as client:
        yield client


@pytest.fixture
def connection(stack):
    with redis.Redis.from_url(stack.redis.url, socket_timeout=None) as connection:
        yield connection


def submit(http, *texts, lane="bulk", key=None):
    headers = {} if key is None else {"Idempotency-Key": key}
    answer = http.post("/jobs", json={"input_type": "text", "inputs": texts, "lane": lane}, headers=headers)
    assert answer.status_code == 202, answer.text
    return answer.json()["id"]


def finished(http, job_id, within_s=120):
    return eventually(
        lambda: (job := http.get(f"/jobs/{job_id}", params={"wait": 5}).json())["finished_at"] and job, within_s
    )


def assert_right(http, job_id, *texts):
    job = finished(http, job_id)
    assert (job["status"], job["completed"], job["failed"]) == ("completed", len(texts), 0)
    assert_rows(http.get(f"/jobs/{job_id}/result").json()["embeddings"], *texts)


def assert_rows(embeddings, *texts):
    for rows, text in zip(embeddings, texts, strict=True):
        np.testing.assert_array_equal(np.asarray(rows, np.float32), rows_of(text.encode()))


def ran(connection):
    return sorted(payload.decode() for payload in connection.lrange("ran", 0, -1))


def nothing_in_hand(connection):
    return not connection.exists("unacked", "unacked_index") and not tasks_queued(connection)


def tasks_queued(connection):
    return sum(connection.llen(queue) for lane in Lane for queue in lane.queues)


def test_what_the_callers_of_a_killed_api_wait_for_is_done_and_found_at_another(stack, http, connection):
    other_url = stack.start_api("other")
    stack.start_double("worker")
    with stack.client(url=other_url) as other, ThreadPoolExecutor(2) as callers:
        answered = callers.submit(http.post, "/embeddings", json={"input_type": "text", "inputs": ["gated a"]})
        eventually(lambda: ran(connection) == ["gated a"])
        job_id = submit(http, "gated b")
        # Until a worker took it, which would be the change that is waited for.
        eventually(lambda: http.get(f"/jobs/{job_id}").json()["status"] == "running")
        changed = callers.submit(http.get, f"/jobs/{job_id}", params={"wait": 60})
        (sync_job,) = [job["id"] for job in other.get("/jobs").json()["jobs"] if job["id"] != job_id]

        stack.processes["api"].signal(SIGKILL)
        for call in (answered, changed):
            assert isinstance(call.exception(120), httpx2.TransportError)

        connection.rpush("open", "it", "it")
        assert_right(other, sync_job, "gated a")
        assert_right(other, job_id, "gated b")
        stack.start_api()
        assert_right(http, sync_job, "gated a")


def test_a_caller_may_wait_at_any_api_for_a_job_of_another(stack, http, connection):
    with stack.client(url=stack.start_api("other")) as other, ThreadPoolExecutor(2) as callers:
        job_id = submit(http, "gated")
        before = other.get(f"/jobs/{job_id}").json()
        assert before["status"] == "queued"
        ended = callers.submit(
            lambda: [line for line in other.get(f"/jobs/{job_id}/events").text.splitlines() if "event:" in line][-1]
        )
        changed = callers.submit(other.get, f"/jobs/{job_id}", params={"wait": 60})
        stack.start_double("worker")
        assert changed.result(120).json()["status"] == "running"
        connection.rpush("open", "it")
        assert ended.result(120) == "event: completed"
        assert_right(other, job_id, "gated")


def test_thirty_seconds_without_redis_end_no_process_and_cost_no_caller_its_answer(start_stack):
    """With the timeouts of production: they are what must outlast it."""
    stack = start_stack(COLQUEUE_VISIBILITY_TIMEOUT_S="60", COLQUEUE_REAP_AFTER_S="15")
    stack.start_api()
    worker = stack.start_double("worker")
    with stack.client() as http, ThreadPoolExecutor(1) as callers:
        body = {"input_type": "text", "inputs": ["slow:2:a", "b"]}
        with redis.Redis.from_url(stack.redis.url) as connection:
            answered = callers.submit(http.post, "/embeddings", json=body)
            eventually(lambda: connection.llen("ran"))
        waiting = submit(http, "slow:0.1:c", "d")

        stack.redis.kill()
        ends = time.monotonic() + OUTAGE_S
        while time.monotonic() < ends:
            refused = http.post("/jobs", json=body)
            assert (refused.status_code, refused.json()["code"]) == (503, "store_unavailable")
            assert int(refused.headers["retry-after"]) > 0
            threading.Event().wait(1)
        stack.redis.start()

        answer = answered.result(RECOVERY_S)
        assert answer.status_code == 200
        assert_rows(answer.json()["embeddings"], *body["inputs"])
        assert_right(http, waiting, "slow:0.1:c", "d")
        new = submit(http, "e")
        finished(http, new, RECOVERY_S)
        assert_right(http, new, "e")
    assert worker.running()
    assert stack.processes["api"].running()


def test_redis_and_a_worker_killed_together_lose_nothing(stack, http, connection):
    worker = stack.start_double("worker")
    texts = [f"text {number}" for number in range(9)]
    running = submit(http, "gated", *texts)
    eventually(lambda: ran(connection))
    waiting = [submit(http, *texts, lane=lane) for lane in Lane]

    stack.redis.kill()
    worker.signal(SIGKILL)
    worker.wait()
    stack.redis.start()
    connection.rpush("open", *["each"] * 9)
    stack.start_double("next worker")

    assert_right(http, running, "gated", *texts)
    for job_id in waiting:
        assert_right(http, job_id, *texts)
    eventually(lambda: nothing_in_hand(connection))


def test_a_rolling_restart_under_load_embeds_every_input_once_and_waits_for_no_timeout(start_stack):
    """With a visibility timeout beyond the test's end, so that no task can come back by it."""
    stack = start_stack(COLQUEUE_VISIBILITY_TIMEOUT_S="3600", COLQUEUE_REAP_AFTER_S="3600")
    stack.start_api()
    workers = [stack.start_double(f"worker {number}") for number in range(2)]
    rolled = threading.Event()

    def load(caller):
        jobs = {}
        with stack.client() as http:
            while not rolled.is_set():
                texts = [f"slow:0.01:{caller}/{len(jobs)}/{number}" for number in range(10)]
                jobs[submit(http, *texts, lane=list(Lane)[len(jobs) % 2])] = texts
        return jobs

    with redis.Redis.from_url(stack.redis.url) as connection, ThreadPoolExecutor(3) as callers:
        loads = [callers.submit(load, caller) for caller in range(3)]
        try:
            for number in range(2, 6):
                eventually(lambda: all("shard.done" in worker.log.read_text() for worker in workers))
                eventually(lambda: connection.hlen("unacked"))
                workers.append(stack.start_double(f"worker {number}"))
                stopped = workers.pop(0)
                stopped.signal(SIGTERM)
                assert stopped.wait() == 0
        finally:
            rolled.set()
        with stack.client() as http:
            jobs = {job_id: texts for each in loads for job_id, texts in each.result().items()}
            eventually(lambda: not connection.exists(keys.UNFINISHED))
            for job_id, texts in list(jobs.items())[::10]:
                assert_right(http, job_id, *texts)
        assert ran(connection) == sorted(text for texts in jobs.values() for text in texts)
        eventually(lambda: nothing_in_hand(connection))


def test_tasks_lost_by_workers_killed_while_taking_them_are_found_and_done(stack, http, connection):
    """Each dies just after its task has left the queue and before that is recorded: nothing but the registry knows."""
    texts = [f"text {number}" for number in range(3 * TASK_TEXTS)]
    jobs = [submit(http, *texts, lane=list(Lane)[number % 2]) for number in range(DEATHS)]
    tasks = tasks_queued(connection)
    assert tasks == 3 * DEATHS
    connection.rpush("die_taking", *["each"] * DEATHS)
    for number in range(DEATHS):
        worker = stack.start_double(f"worker {number}")
        assert worker.wait() == -SIGKILL
    assert tasks_queued(connection) + connection.hlen("unacked") == tasks - DEATHS

    survivor = stack.start_double("survivor")
    for job_id in jobs:
        assert_right(http, job_id, *texts)
    eventually(lambda: nothing_in_hand(connection))
    requeued = [json.loads(line) for line in survivor.log.read_text().splitlines() if "job.requeued" in line]
    assert sum(line["inputs"] for line in requeued) >= DEATHS * TASK_TEXTS


def test_a_worker_whose_model_hangs_says_goodbye_ends_and_its_work_is_done_by_the_next(stack, http, connection):
    hangs = stack.start_double("worker", COLQUEUE_BATCH_TIMEOUT_S="1")
    stack.wait_until_ready()
    texts = [f"text {number}" for number in range(9)]
    jobs = [(submit(http, *these), these) for these in (["gated", *texts], texts)]

    assert hangs.wait() == 75
    answer = http.get("/ready")
    assert (answer.status_code, answer.json()["reason"]) == (503, "No worker is running.")
    assert "model.hangs" in hangs.log.read_text()

    connection.rpush("open", *["each"] * 9)
    stack.start_double("worker", COLQUEUE_BATCH_TIMEOUT_S="10")
    stack.wait_until_ready()
    for job_id, these in jobs:
        assert_right(http, job_id, *these)


def test_every_task_delivered_twice_leaves_results_and_counts_as_they_would_be(start_stack):
    """Two workers take every task twice; neither the broker nor the reaper delivers one a third time."""
    stack = start_stack(COLQUEUE_VISIBILITY_TIMEOUT_S="3600", COLQUEUE_REAP_AFTER_S="3600")
    stack.start_api()
    with stack.client() as http, redis.Redis.from_url(stack.redis.url) as connection:
        assert_right_although_delivered_twice(stack, http, connection)


def assert_right_although_delivered_twice(stack, http, connection):
    texts = [f"slow:0.02:{number}" for number in range(10)]
    settings = StoreSettings(_env_file=None, redis_url=stack.redis.url, task_tokens=TASK_TOKENS)
    app = celery_app(settings)
    jobs = []
    for number in range(20):
        jobs.append(submit(http, *texts, "huge one", lane=list(Lane)[number % 2]))
        job = job_from_hash(connection.hgetall(keys.job(jobs[-1])))
        publish(app, settings, job, range(job.total))
    app.close()
    tasks = tasks_queued(connection)
    assert tasks >= 2 * 3 * len(jobs)
    for number in range(2):
        stack.start_double(f"worker {number}")

    for job_id in jobs:
        job = finished(http, job_id)
        assert (job["status"], job["completed"], job["failed"]) == ("completed", 10, 1)
        result = http.get(f"/jobs/{job_id}/result").json()
        assert_rows(result["embeddings"][:-1], *texts)
        assert [(error["index"], error["code"]) for error in result["errors"]] == [(10, "out_of_device_memory")]
    eventually(lambda: nothing_in_hand(connection))
    assert connection.llen("runs") == tasks


def test_too_little_device_memory_and_a_fault_of_the_model_cost_their_inputs_alone(stack, http, connection):
    texts = ["a", "huge b", "c", "broken d", "e"]
    other = ["text f", "text g"]
    stack.start_double("worker")
    held = submit(http, "gated")
    eventually(lambda: ran(connection) == ["gated"])
    jobs = submit(http, *texts), submit(http, *other)
    eventually(lambda: connection.llen("submitted") == 1 + len(texts) + len(other))
    connection.rpush("open", "it")
    assert_right(http, held, "gated")

    job = finished(http, jobs[0])
    assert (job["status"], job["completed"], job["failed"]) == ("completed", 3, 2)
    result = http.get(f"/jobs/{jobs[0]}/result").json()
    assert_rows([rows for rows in result["embeddings"] if rows], "a", "c", "e")
    failed = [(error["index"], error["code"]) for error in result["errors"]]
    assert failed == [(1, "out_of_device_memory"), (3, "model_failed")]
    assert_right(http, jobs[1], *other)
    assert connection.lrange("ran", 0, -1).count(b"huge b") > 1, "it was halved out of a larger batch"


# The real api, killed once where it hands a job to the queue.
API_THAT_DIES = """
import os, signal
import api.service
from api.__main__ import main

publish = api.service.publish
def dying(*arguments):
    {before_it_dies}
    os.kill(os.getpid(), signal.SIGKILL)
api.service.publish = dying
main()
"""


@pytest.mark.parametrize("before_it_dies", ["pass", "publish(*arguments)"], ids=["before queueing", "before answering"])
def test_a_key_repeated_after_the_api_died_over_it_makes_one_job(start_stack, before_it_dies):
    """The repeat finds the job and queues nothing; what was never queued is the reaper's to find."""
    stack = start_stack(COLQUEUE_REAP_AFTER_S="1")
    port = free_port()
    program = [sys.executable, "-c", API_THAT_DIES.format(before_it_dies=before_it_dies)]
    environment = clean_environment(**stack.settings | {"COLQUEUE_PORT": str(port)})
    dying = Process(program, stack.directory, "dying-api", environment)
    url = f"http://127.0.0.1:{port}"
    texts = [f"text {number}" for number in range(3 * TASK_TEXTS)]
    try:
        with stack.client(KEY, url=url) as http:

            def killed_by_a_submission():
                try:
                    submit(http, *texts, key="once")
                except httpx2.TransportError:
                    return not dying.running()
                return False

            eventually(killed_by_a_submission)
    finally:
        assert dying.stop() == -SIGKILL

    stack.start_api()
    stack.start_double("worker")
    with stack.client() as http:
        (made,) = http.get("/jobs").json()["jobs"]
        assert submit(http, *texts, key="once") == made["id"]
        assert_right(http, made["id"], *texts)
        assert submit(http, *texts, key="once") == made["id"]
        assert len(http.get("/jobs").json()["jobs"]) == 1
