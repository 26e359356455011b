"""Several models behind one Redis: each job is answered by the one model that it was accepted for.

The workers are doubles whose rows depend on their model, so a row of the wrong model is seen.
"""

import numpy as np
import pytest
import redis
from doubles import rows_of
from stack import Stack, eventually

OLD, NEW = "01d000000001", "4e4000000001"
TEXTS = [f"text {number}" for number in range(12)]


@pytest.fixture
def stack(redis_program, tmp_path):
    """An api and Redis without any worker; each text is a task of its own."""
    del redis_program
    settings = {"COLQUEUE_TASK_TOKENS": "1", "COLQUEUE_REAP_AFTER_S": "1", "COLQUEUE_BATCH_TOKENS": "64"}
    with Stack(tmp_path, **settings) as stack:
        stack.start_api()
        yield stack


@pytest.fixture
def http(stack):
    with stack.client() as http:
        yield http


@pytest.fixture
def connection(stack):
    with redis.Redis.from_url(stack.redis.url) as connection:
        yield connection


def start(stack, name, model_id, model="m"):
    return stack.start_double(name, DOUBLE_MODEL=model, DOUBLE_MODEL_ID=model_id, COLQUEUE_ALIVE_FILE=f"{name}.alive")


def known(http, *names):
    """The api knows these models: it looks once a second at most."""
    return all(
        http.post("/embeddings", json={"input_type": "text", "inputs": ["x"], "model": name}).is_success
        for name in names
    )


def submit(http, **options):
    answer = http.post("/jobs", json={"input_type": "text", "inputs": TEXTS, "lane": "bulk"} | options)
    assert answer.status_code == 202, answer.text
    return answer.json()


def finished(http, job_id):
    return eventually(lambda: (job := http.get(f"/jobs/{job_id}?wait=5").json())["finished_at"] and job)


def models_of(rows):
    """The models whose rows these are; every row must be of one of the two."""
    by_model = {
        model_id: [
            np.allclose(row, rows_of(text.encode(), model_id), atol=1e-3) for row, text in zip(rows, TEXTS, strict=True)
        ]
        for model_id in (OLD, NEW)
    }
    assert all(old or new for old, new in zip(by_model[OLD], by_model[NEW], strict=True))
    return {model_id for model_id, own in by_model.items() if any(own)}


def answered_by(http, job_id):
    """The model that the answer's headers name, after every row was found to be its own."""
    answer = http.get(f"/jobs/{job_id}/result")
    assert answer.status_code == 200, answer.text
    assert models_of([np.array(rows) for rows in answer.json()["embeddings"]]) == {
        answer.headers["x-colqueue-model-id"]
    }
    return answer.headers["x-colqueue-model"], answer.headers["x-colqueue-model-id"]


def test_two_checkpoints_of_one_name_never_share_a_job(stack, http):
    start(stack, "old", OLD)
    eventually(lambda: known(http, OLD))
    first = [submit(http)["id"] for _ in range(10)]
    start(stack, "new", NEW)
    eventually(lambda: known(http, NEW))
    later = [submit(http) for _ in range(10)]
    assert {job["model_id"] for job in later} == {NEW}, "the newer checkpoint takes new jobs"
    for job_id in first + [job["id"] for job in later]:
        finished(http, job_id)
    assert {answered_by(http, job_id) for job_id in first} == {("m", OLD)}
    assert {answered_by(http, job["id"]) for job in later} == {("m", NEW)}


def test_a_request_may_name_its_model_and_is_told_which_answered(stack, http):
    start(stack, "a", OLD, model="a")
    start(stack, "b", NEW, model="b")
    eventually(lambda: known(http, "a", "b"))
    for name, model_id in (("a", OLD), ("b", NEW), (OLD, OLD)):
        answer = http.post("/npz/embeddings", json={"input_type": "text", "inputs": TEXTS, "model": name})
        assert answer.headers["x-colqueue-model-id"] == model_id
        answer = http.post("/embeddings", json={"input_type": "text", "inputs": TEXTS, "model": name})
        assert list(answer.json()) == ["embeddings"], "the contract's body has nothing else"
        assert models_of([np.array(rows) for rows in answer.json()["embeddings"]]) == {model_id}
    for path in ("/embeddings", "/jobs"):
        answer = http.post(path, json={"input_type": "text", "inputs": TEXTS, "model": "unheard of"})
        assert (answer.status_code, answer.json()["code"]) == (404, "model_not_found")


def test_work_that_came_before_any_worker_is_answered_by_one_model_whole(stack, http, connection):
    """Its tasks lie in queues that workers of every model read: whoever begins it first gets all of it."""
    jobs = [submit(http) for _ in range(6)]
    assert {job["model_id"] for job in jobs} == {None}
    start(stack, "old", OLD)
    start(stack, "new", NEW)
    for job in jobs:
        done = finished(http, job["id"])
        assert (done["completed"], done["failed"]) == (len(TEXTS), 0)
        assert answered_by(http, job["id"]) == ("m", done["model_id"])
    eventually(lambda: not connection.exists("colqueue:backlog"))


def test_while_its_model_is_away_a_job_waits_and_ready_says_so(stack, http):
    start(stack, "old", OLD)
    eventually(lambda: known(http, OLD))
    start(stack, "new", NEW)
    eventually(lambda: known(http, NEW))
    stack.stop("old")
    job = submit(http, model=OLD)
    other = submit(http)
    assert finished(http, other["id"])["model_id"] == NEW
    eventually(lambda: http.get("/ready").json().get("waiting"))
    ready = http.get("/ready")
    assert ready.status_code == 200
    assert ready.json()["waiting"] == [f"12 inputs wait for the model m ({OLD}), which no worker serves."]
    assert http.get(f"/jobs/{job['id']}").json()["status"] == "queued"
    start(stack, "old again", OLD)
    assert finished(http, job["id"])["status"] == "completed"
    assert answered_by(http, job["id"]) == ("m", OLD)
    assert "waiting" not in http.get("/ready").json()


def test_a_model_that_stays_away_fails_its_jobs_and_nobody_elses(redis_program, tmp_path):
    del redis_program
    with Stack(tmp_path, COLQUEUE_REAP_AFTER_S="1", COLQUEUE_MODEL_GONE_S="1") as stack:
        stack.start_api()
        with stack.client() as http:
            start(stack, "old", OLD)
            eventually(lambda: known(http, OLD))
            stack.stop("old")
            job = submit(http)
            assert job["model_id"] == OLD, "while no worker runs, its model is waited for"
            start(stack, "new", NEW)
            assert finished(http, job["id"])["status"] == "failed"
            answer = http.get(f"/jobs/{job['id']}/result").json()
            assert {error["code"] for error in answer["errors"]} == {"model_gone"}
            other = submit(http)
            assert finished(http, other["id"])["status"] == "completed"
