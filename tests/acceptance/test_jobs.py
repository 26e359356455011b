"""Jobs: submit, come back, cancel, list; seen by their own key only."""

import io
import json
import time
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, contextmanager
from datetime import datetime
from itertools import pairwise

import msgpack
import numpy as np
import pytest
import redis
from acceptance.pictures import A4, as_base64, jpeg, png
from stack import THIRD_KEY, eventually

from shared import keys

PAGE = as_base64(png())
LARGE_PAGE = as_base64(jpeg(*A4))
NO_IMAGE = as_base64(b"no image at all")
FIELDS = {
    "id",
    "status",
    "input_type",
    "lane",
    "output_dtype",
    "pool_factor",
    "model",
    "model_id",
    "total",
    "completed",
    "failed",
    "created_at",
    "started_at",
    "finished_at",
    "expires_at",
    "released",
}


def submit(http, inputs, input_type="image", headers=None, **options):
    answer = http.post("/jobs", json={"input_type": input_type, "inputs": inputs, **options}, headers=headers)
    assert answer.status_code == 202, answer.text
    return answer.json()


def read(http, job, **parameters):
    answer = http.get(f"/jobs/{job['id']}", params=parameters)
    assert answer.status_code == 200, answer.text
    return answer.json()


def finished(http, job):
    """Follow the job by long polls and return its last state; counts and status only ever move forward."""
    order = ["queued", "running", "completed", "failed", "cancelled"]
    while not job["finished_at"]:
        newer = read(http, job, wait=60)
        assert order.index(newer["status"]) >= order.index(job["status"])
        assert newer["completed"] >= job["completed"]
        assert newer["failed"] >= job["failed"]
        job = newer
    return job


def result(http, job, accept="application/json"):
    return http.get(f"/jobs/{job['id']}/result", headers={"Accept": accept})


def unfinished(http):
    """Return a job of this key that is not finished, where there is one."""
    return next((job for job in http.get("/jobs").json()["jobs"] if not job["finished_at"]), None)


def in_seconds(work):
    started = time.monotonic()
    value = work()
    return value, time.monotonic() - started


def test_a_submitted_job_is_accepted_with_its_place_and_when_to_ask(http, worker_paused):
    with worker_paused():
        answer = http.post("/jobs", json={"input_type": "image", "inputs": [PAGE, PAGE]})

    assert answer.status_code == 202
    job = answer.json()
    assert set(job) == FIELDS
    assert answer.headers["location"] == f"/jobs/{job['id']}"
    assert int(answer.headers["retry-after"]) > 0
    assert (job["status"], job["input_type"], job["lane"], job["total"]) == ("queued", "image", "bulk", 2)
    assert (job["completed"], job["failed"], job["started_at"], job["finished_at"]) == (0, 0, None, None)
    assert datetime.fromisoformat(job["created_at"]) < datetime.fromisoformat(job["expires_at"])
    finished(http, job)


def test_a_job_runs_to_the_end_and_says_when(http):
    job = finished(http, submit(http, [PAGE] * 9))

    assert (job["status"], job["completed"], job["failed"], job["total"]) == ("completed", 9, 0, 9)
    moments = [datetime.fromisoformat(job[name]) for name in ("created_at", "started_at", "finished_at", "expires_at")]
    assert moments == sorted(moments)
    assert len(result(http, job).json()["embeddings"]) == 9


def test_waiting_lasts_as_long_as_asked_while_nothing_changes(http, worker_paused):
    with worker_paused():
        job = submit(http, [PAGE])
        again, took_s = in_seconds(lambda: read(http, job, wait=1.5))

        assert took_s >= 1.5
        assert again == job
    finished(http, job)


def test_without_a_wait_the_job_is_read_at_once(http, worker_paused):
    """While another call waits for the same job."""
    with worker_paused(), ThreadPoolExecutor(1) as waiters:
        job = submit(http, [PAGE])
        waiting = waiters.submit(lambda: read(http, job, wait=60))
        assert read(http, job) == job
        assert not waiting.done()
        http.delete(f"/jobs/{job['id']}")


def test_waiting_ends_with_the_first_change_and_no_sooner(http, other_http, worker_paused):
    """Another job's end is no change of this one; its own cancellation is, long before the time is up."""
    with worker_paused(), ThreadPoolExecutor(1) as waiters:
        job, other = submit(http, [PAGE]), submit(other_http, [PAGE])
        waiting = waiters.submit(in_seconds, lambda: read(http, job, wait=50))
        other_http.delete(f"/jobs/{other['id']}")
        assert read(http, job, wait=1) == job
        assert not waiting.done()

        http.delete(f"/jobs/{job['id']}")
        seen, took_s = waiting.result(timeout=40)

    assert seen["status"] == "cancelled"
    assert took_s < 40


def test_waiting_for_a_finished_job_ends_at_once(http):
    job = finished(http, submit(http, [PAGE]))

    again, took_s = in_seconds(lambda: read(http, job, wait=60))

    assert again == job
    assert took_s < 20


def test_the_result_of_an_unfinished_job_is_not_there_yet(http, worker_paused):
    with worker_paused():
        job = submit(http, [PAGE])
        answer = result(http, job)

        assert answer.status_code == 202
        assert int(answer.headers["retry-after"]) > 0
        assert answer.headers["location"] == f"/jobs/{job['id']}"
        assert answer.json() == job
    finished(http, job)


def test_a_bad_input_fails_alone(http):
    """Its neighbours, also those of its own task, are embedded as if it were not there."""
    good = [as_base64(png(100, 140, seed)) for seed in range(4)]
    inputs = [good[0], NO_IMAGE, good[1], good[2], good[3], as_base64(png()[:100])]

    job = finished(http, submit(http, inputs))
    answer = result(http, job)

    assert (job["status"], job["completed"], job["failed"]) == ("completed", 4, 2)
    assert answer.status_code == 200
    body = answer.json()
    assert [error["index"] for error in body["errors"]] == [1, 5]
    assert {error["code"] for error in body["errors"]} == {"image_invalid"}
    assert all(error["message"] for error in body["errors"])
    assert [rows is None for rows in body["embeddings"]] == [False, True, False, False, False, True]
    alone = result(http, finished(http, submit(http, good))).json()["embeddings"]
    for rows, expected in zip(filter(None, body["embeddings"]), alone, strict=True):
        np.testing.assert_allclose(rows, expected, rtol=0, atol=1e-5)


def test_a_job_without_one_good_input_has_failed_and_says_why(http):
    job = finished(http, submit(http, [NO_IMAGE] * 5))

    assert (job["status"], job["completed"], job["failed"]) == ("failed", 0, 5)
    answer = result(http, job)
    assert answer.status_code == 200
    assert answer.json()["embeddings"] == [None] * 5
    assert [error["index"] for error in answer.json()["errors"]] == list(range(5))


def test_a_queued_job_that_is_cancelled_is_never_embedded(http, worker_paused, worker_counts, stack):
    wait_until_idle(http)
    before = worker_counts()
    with worker_paused():
        job = submit(http, [LARGE_PAGE] * 12)
        answer = http.delete(f"/jobs/{job['id']}")

        assert answer.status_code == 200
        assert answer.json()["status"] == "cancelled"
    wait_until_idle(http)
    assert worker_counts()["colqueue_worker_inputs_total"] == before["colqueue_worker_inputs_total"]
    assert_nothing_kept(stack, job)


def test_cancelling_twice_changes_nothing_and_there_is_no_result(http, worker_paused):
    with worker_paused():
        job = submit(http, [PAGE])
        first, second = (http.delete(f"/jobs/{job['id']}") for _ in range(2))
    answer = result(http, job)

    assert (first.status_code, second.status_code) == (200, 200)
    assert first.json() == second.json()
    assert (answer.status_code, answer.json()["code"]) == (409, "job_cancelled")


def test_deleting_a_finished_job_leaves_its_record_and_drops_its_result(http):
    job = finished(http, submit(http, [PAGE]))
    assert result(http, job).status_code == 200

    deleted = http.delete(f"/jobs/{job['id']}").json()
    assert deleted == job | {"released": True, "expires_at": deleted["expires_at"]}
    assert result(http, job).status_code == 410


def test_another_keys_job_does_not_exist(http, other_http, worker_paused):
    with worker_paused():
        unfinished = submit(http, [PAGE])
        for method, path in [("GET", ""), ("GET", "?wait=5"), ("GET", "/result"), ("GET", "/events"), ("DELETE", "")]:
            answer = other_http.request(method, f"/jobs/{unfinished['id']}{path}")
            unknown = other_http.request(method, f"/jobs/{'0' * 32}{path}")

            assert answer.status_code == unknown.status_code == 404
            assert answer.json() == unknown.json() == {"error": "No such job.", "code": "job_not_found"}
        assert read(http, unfinished) == unfinished, "the other key's DELETE must not have cancelled it"
    job = finished(http, unfinished)
    assert result(other_http, job).status_code == 404
    assert job["id"] not in {listed["id"] for listed in pages_of_jobs(other_http, 100)}
    assert job["id"] in {listed["id"] for listed in pages_of_jobs(http, 100)}


@pytest.fixture
def third_http(stack):
    """A client whose key no other test uses, and whose jobs are forgotten."""
    with stack.client(THIRD_KEY) as client:
        for job in pages_of_jobs(client, 100):
            with redis.Redis.from_url(stack.redis.url) as connection:
                connection.delete(keys.job(job["id"]))
        yield client


def pages_of_jobs(http, limit, between_pages=lambda: None):
    """Return all jobs that `GET /jobs` lists, page by page."""
    listed, after = [], {}
    while True:
        answer = http.get("/jobs", params={"limit": limit, **after})
        assert answer.status_code == 200, answer.text
        page = answer.json()
        assert set(page) == {"jobs", "next"}
        assert len(page["jobs"]) <= limit
        listed += page["jobs"]
        if page["next"] is None:
            return listed
        after = {"after": page["next"]}
        between_pages()


@pytest.mark.parametrize("limit", [1, 3, 7, 50])
def test_all_jobs_are_listed_newest_first_none_twice(third_http, limit):
    submitted = [finished(third_http, submit(third_http, ["x"], "text"))["id"] for _ in range(7)]

    assert [job["id"] for job in pages_of_jobs(third_http, limit)] == submitted[::-1]


def test_jobs_that_arrive_while_someone_turns_the_pages_upset_nothing(third_http):
    submitted = [submit(third_http, ["x"], "text")["id"] for _ in range(6)]

    listed = pages_of_jobs(third_http, 2, between_pages=lambda: submit(third_http, ["new"], "text"))

    assert [job["id"] for job in listed] == submitted[::-1]


def test_forgotten_jobs_do_not_hide_older_ones(third_http, stack):
    """A job's record ends some time after the job does, so an older, slower job can outlive newer ones."""
    submitted = [submit(third_http, ["x"], "text")["id"] for _ in range(6)]
    with redis.Redis.from_url(stack.redis.url) as connection:
        for forgotten in submitted[2:5]:
            connection.delete(keys.job(forgotten))

    for limit in (1, 2, 3, 10):
        assert [job["id"] for job in pages_of_jobs(third_http, limit)] == [submitted[5], submitted[1], submitted[0]]


@pytest.mark.parametrize("parameters", [{"limit": 0}, {"limit": 1001}, {"limit": "x"}, {"limit": -1}])
def test_a_page_of_a_size_nobody_can_have_is_refused(http, parameters):
    answer = http.get("/jobs", params=parameters)

    assert (answer.status_code, answer.json()["code"]) == (422, "invalid_job")


def test_a_repeated_idempotency_key_makes_one_job(http, other_http):
    headers = {"Idempotency-Key": "backfill 7, page 3"}
    first, second = (submit(http, [PAGE], headers=headers) for _ in range(2))
    others = submit(other_http, [PAGE], headers=headers)
    finished(http, first)
    third = submit(http, [PAGE], headers=headers)

    assert first["id"] == second["id"] == third["id"] != others["id"]
    assert third["status"] == "completed"
    assert submit(http, [PAGE], headers={"Idempotency-Key": "another"})["id"] != first["id"]


def test_an_idempotency_key_repeated_at_the_same_moment_makes_one_job(stack, third_http, worker_paused):
    """And its inputs are counted once, though the worker finds every task of it several times.

    The first task is quick and the others slow, so it is done again before the job is finished.
    """
    inputs = [PAGE, NO_IMAGE, PAGE, PAGE] + [as_base64(jpeg(420, 588))] * 8

    def send(_):
        with stack.client(THIRD_KEY) as client:
            return submit(client, inputs, headers={"Idempotency-Key": "at once"})

    payloads = keys.payloads("*")
    with redis.Redis.from_url(stack.redis.url) as connection:
        left_before = set(connection.scan_iter(payloads))
    with worker_paused(), ThreadPoolExecutor(6) as callers:
        submitted = list(callers.map(send, range(6)))

    assert len({job["id"] for job in submitted}) == 1
    job = finished(third_http, submitted[0])
    assert (job["completed"], job["failed"]) == (11, 1)
    assert [listed["id"] for listed in pages_of_jobs(third_http, 50)] == [job["id"]]
    with redis.Redis.from_url(stack.redis.url) as connection:
        eventually(lambda: set(connection.scan_iter(payloads)) <= left_before)  # the losers' too


@pytest.mark.parametrize("key", ["", "x" * 256, "tab\tinside", b"\xfcmlaut", b"\x7f"])
def test_an_idempotency_key_nobody_can_remember_is_refused(http, key):
    answer = http.post("/jobs", json={"input_type": "text", "inputs": ["x"]}, headers={"Idempotency-Key": key})

    assert (answer.status_code, answer.json()["code"]) == (422, "invalid_job")


@pytest.mark.parametrize(
    "query",
    [
        "after=x",
        "after=",
        "after=" + "0" * 31,
        "after=" + "0" * 32 + "%0a",
        "limit=0",
        "limit=1001",
        "limit=1e2",
        "limit=x",
    ],
)
def test_a_list_is_asked_for_with_a_jobs_id_and_a_small_number(http, query):
    answer = http.get(f"/jobs?{query}")

    assert (answer.status_code, answer.json()["code"]) == (422, "invalid_job")


@pytest.mark.parametrize("ending", ["", "/result", "/events", "?wait=1"])
@pytest.mark.parametrize("after_id", [":payloads", ":results", "%3Apayloads", "%0a", "%00", "0"])
def test_what_only_begins_like_a_job_is_no_job(http, after_id, ending):
    job = submit(http, ["x"], "text")

    answer = http.get(f"/jobs/{job['id']}{after_id}{ending}")

    assert (answer.status_code, answer.json()["code"]) == (404, "job_not_found")
    assert http.delete(f"/jobs/{job['id']}{after_id}").status_code == 404
    assert http.get(f"/jobs/{job['id']}").status_code == 200


@pytest.mark.parametrize("wait", ["nan", "inf", "-1", "61", "x"])
def test_a_wait_is_a_number_of_seconds_up_to_sixty(http, wait):
    job = submit(http, ["x"], "text")

    assert http.get(f"/jobs/{job['id']}", params={"wait": wait}).status_code == 422


@contextmanager
def events(http, job):
    """Open a job's event stream and give its (name, job) pairs as they come."""
    with http.stream("GET", f"/jobs/{job['id']}/events") as stream:
        assert stream.status_code == 200
        assert stream.headers["content-type"].startswith("text/event-stream")
        yield _parsed(stream.iter_lines())


def _parsed(lines):
    name = None
    for line in lines:
        field, _, value = line.partition(": ")
        if field == "event":
            name = value
        elif field == "data":
            yield name, json.loads(value)


def test_events_tell_the_progress_and_end_with_the_terminal_state(http, worker_paused):
    with ExitStack() as open_stream:
        with worker_paused():
            job = submit(http, [PAGE] * 10 + [NO_IMAGE] * 2)
            coming = open_stream.enter_context(events(http, job))
            told = [next(coming)]
        told += coming

    assert {name for name, _ in told[:-1]} == {"progress"}
    assert told[0] == ("progress", job)
    assert all(one != other for one, other in pairwise(told)), "an event a change"
    name, last = told[-1]
    assert (name, last["status"], last["completed"], last["failed"]) == ("completed", "completed", 10, 2)
    assert last == read(http, job)


def test_events_of_a_finished_job_are_its_state_alone(http):
    failed = finished(http, submit(http, [NO_IMAGE]))

    with events(http, failed) as told:
        assert list(told) == [("failed", failed)]


def test_events_of_a_cancelled_job_end(http, worker_paused):
    with worker_paused():
        job = submit(http, [PAGE])
        with events(http, job) as told:
            assert next(told) == ("progress", job)
            cancelled = http.delete(f"/jobs/{job['id']}").json()

            assert list(told) == [("cancelled", cancelled)]


@pytest.mark.parametrize("asked", ["float32", "float16"])
def test_the_result_has_the_precision_asked_for(http, asked):
    job = finished(http, submit(http, [PAGE], output_dtype=asked))
    full = finished(http, submit(http, [PAGE]))

    assert (job["output_dtype"], full["output_dtype"]) == (asked, None)
    expected = np.load(io.BytesIO(result(http, full, "application/x-npz").content))["emb_0"]
    archive = np.load(io.BytesIO(result(http, job, "application/x-npz").content))
    packed = msgpack.unpackb(result(http, job, "application/msgpack").content)["embeddings"][0]
    decimals = result(http, job).json()["embeddings"][0]

    assert expected.dtype == np.float32
    assert archive["emb_0"].dtype == asked
    assert (packed["dtype"], len(packed["data"])) == (asked, expected.size * np.dtype(asked).itemsize)
    tolerance = 1e-3 if asked == "float16" else 1e-6
    np.testing.assert_allclose(archive["emb_0"], expected, rtol=0, atol=tolerance)
    np.testing.assert_allclose(decimals, expected, rtol=0, atol=tolerance)


def test_a_pooled_page_of_sign_bits_is_a_small_part_of_the_page(http, stack):
    """And what is kept in Redis is no more than what is answered."""
    full = finished(http, submit(http, [PAGE]))
    small = finished(http, submit(http, [PAGE], output_dtype="binary", pool_factor=3))

    n_rows = len(result(http, full).json()["embeddings"][0])
    rows = np.load(io.BytesIO(result(http, small, "application/x-npz").content))["emb_0"]
    assert (rows.dtype, rows.shape) == (np.uint8, (n_rows // 3, 16))
    assert result(http, small).json()["embeddings"] == [rows.tolist()]
    with redis.Redis.from_url(stack.redis.url) as connection:
        assert connection.hstrlen(keys.results(small["id"]), 0) == 16 + rows.nbytes


def test_only_pages_are_pooled(http):
    answer = http.post("/jobs", json={"input_type": "text", "inputs": ["a query"], "pool_factor": 2})

    assert (answer.status_code, answer.json()["code"]) == (422, "invalid_job")


def test_inputs_not_embedded_by_the_deadline_fail(http, worker_paused):
    with worker_paused():
        job = submit(http, [PAGE] * 5, deadline_s=0.5)
        eventually(lambda: time.time() > datetime.fromisoformat(job["created_at"]).timestamp() + 0.6)
    job = finished(http, job)

    assert (job["status"], job["failed"]) == ("failed", 5)
    assert {error["code"] for error in result(http, job).json()["errors"]} == {"deadline_exceeded"}


def test_a_deadline_that_is_kept_changes_nothing(http):
    assert finished(http, submit(http, [PAGE], deadline_s=300))["status"] == "completed"


@pytest.mark.parametrize("lane", ["interactive", "bulk"])
def test_a_job_waits_in_the_lane_it_asked_for(http, worker_paused, worker_counts, lane):
    """Three jobs are three tasks, of which a worker that stands still may hold one."""
    del worker_counts
    wait_until_idle(http)
    with worker_paused():
        jobs = [submit(http, [PAGE], lane=lane) for _ in range(3)]
        waiting = queue_lengths(http)
    for job in jobs:
        finished(http, job)

    assert {job["lane"] for job in jobs} == {lane}
    assert waiting.pop(lane) >= 2
    assert set(waiting.values()) == {0}


@pytest.mark.parametrize(("inputs", "input_type"), [([PAGE] * 5, "image"), (["word " * 130] * 5, "text")])
def test_a_job_that_costs_too_much_for_the_interactive_lane_says_that_it_waits_in_bulk(http, inputs, input_type):
    job = submit(http, inputs, input_type, lane="interactive")
    assert job["lane"] == "bulk"
    assert finished(http, job)["lane"] == "bulk"


@pytest.mark.parametrize(("inputs", "lane"), [(["a question"], "interactive"), (["word " * 1200] * 16, "bulk")])
def test_a_synchronous_request_of_texts_waits_in_the_lane_of_its_cost(http, worker_paused, inputs, lane):
    wait_until_idle(http)
    body = {"input_type": "text", "inputs": inputs}
    with ThreadPoolExecutor() as pool:
        with worker_paused():
            answer = pool.submit(http.post, "/npz/embeddings", json=body)
            job = eventually(lambda: unfinished(http))
        assert answer.result().status_code == 200
    assert job["lane"] == lane


@pytest.mark.parametrize(
    "options",
    [
        {"lane": "fast"},
        {"lane": 1},
        {"output_dtype": "float64"},
        {"output_dtype": ["float32"]},
        {"deadline_s": 0},
        {"deadline_s": -1},
        {"deadline_s": "soon"},
        {"deadline_s": None, "lane": None},
    ],
)
def test_options_that_break_the_schema_are_refused(http, options):
    answer = http.post("/jobs", json={"input_type": "text", "inputs": ["x"], **options})

    assert (answer.status_code, answer.json()["code"]) == (422, "invalid_job")


@pytest.mark.parametrize("body", [{}, {"input_type": "text", "inputs": []}, {"input_type": "text", "inputs": None}])
def test_a_job_without_inputs_is_refused(http, body):
    answer = http.post("/jobs", json=body)

    assert (answer.status_code, answer.json()["code"]) == (422, "invalid_job")


def test_nothing_is_kept_of_a_synchronous_callers_job(http, stack):
    """They come by the million: whatever stayed of each would fill Redis."""
    wait_until_idle(http)
    with redis.Redis.from_url(stack.redis.url) as connection:
        before = set(connection.scan_iter("colqueue:job:*"))
        listed = http.get("/jobs").json()
        assert http.post("/embeddings", json={"input_type": "image", "inputs": [PAGE]}).status_code == 200
        assert set(connection.scan_iter("colqueue:job:*")) <= before
        assert http.get("/jobs").json() == listed


def test_a_finished_job_leaves_no_payload_behind(http, stack):
    job = finished(http, submit(http, [PAGE, NO_IMAGE]))

    with redis.Redis.from_url(stack.redis.url) as connection:
        assert not connection.exists(keys.payloads(job["id"]))
        assert connection.hkeys(keys.results(job["id"])) == [b"0"]
        assert connection.hkeys(keys.failures(job["id"])) == [b"1"]


def queue_lengths(http, unit="tasks"):
    lines = http.get("/metrics").text.splitlines()
    return {
        line.partition('lane="')[2].partition('"')[0]: float(line.rpartition(" ")[2])
        for line in lines
        if line.startswith(f"colqueue_queue_{unit}{{")
    }


def wait_until_idle(http):
    """Return once no task waits and every input of every job is done."""
    eventually(lambda: not any((*queue_lengths(http).values(), *queue_lengths(http, "inputs").values())))


def assert_nothing_kept(stack, job):
    names = [keys.payloads(job["id"]), keys.results(job["id"]), keys.failures(job["id"])]
    with redis.Redis.from_url(stack.redis.url) as connection:
        assert connection.exists(*names) == 0
