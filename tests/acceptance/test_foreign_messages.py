"""Messages that are not ours, in the queues, among the taken tasks and on the channel of remote control."""

import json
from itertools import count

import pytest
import redis
from foreign_messages import foreign
from stack import Stack, eventually

from shared import keys
from shared.jobs import Lane

VISIBILITY_TIMEOUT_S = 3


@pytest.fixture
def stack(redis_program, tmp_path):
    del redis_program
    settings = {"COLQUEUE_VISIBILITY_TIMEOUT_S": str(VISIBILITY_TIMEOUT_S), "COLQUEUE_REAP_AFTER_S": "1"}
    with Stack(tmp_path, **settings) as stack:
        stack.start_api()
        yield stack


@pytest.fixture
def http(stack):
    with stack.client() as http:
        yield http


@pytest.fixture
def connection(stack):
    with redis.Redis.from_url(stack.redis.url, socket_timeout=None) as connection:
        yield connection


@pytest.fixture
def task(http, connection):
    """A message of ours as it lies in its queue, of a job that is cancelled."""
    job_id = submit(http)
    message = json.loads(connection.rpop(connection.hget(keys.job(job_id), "queue")))
    http.delete(f"/jobs/{job_id}")
    return message


def submit(http, lane="bulk"):
    return http.post("/jobs", json={"input_type": "text", "inputs": ["a"], "lane": lane}).json()["id"]


def completed(http, job_id):
    job = eventually(lambda: (now := http.get(f"/jobs/{job_id}").json())["finished_at"] and now)
    return job["status"] == "completed"


def test_messages_that_are_not_ours_become_dead_letters_and_stop_nobody(stack, http, connection, task):
    worker = stack.start_double("worker")
    messages = foreign(task)
    for number, message in enumerate(messages):
        connection.lpush([Lane.BULK.value, Lane.INTERACTIVE.value][number % 2], message)
    jobs = [submit(http, lane.value) for lane in Lane]
    assert all(completed(http, job_id) for job_id in jobs)
    letters = eventually(lambda: (found := connection.lrange(keys.DEAD_LETTERS, 0, -1))[len(messages) - 1 :] and found)
    assert len(letters) == len(messages)
    for letter in map(json.loads, letters):
        assert set(letter) == {"found_in", "reason", "bytes", "message"}
        assert letter["reason"]
    assert worker.running()
    assert not connection.exists("unacked", "unacked_index")
    assert 0 < connection.ttl(keys.DEAD_LETTERS) <= 604_800
    expected = f'colqueue_worker_dead_letters_total{{worker="{worker_name(http)}"}} {float(len(messages))}'
    eventually(lambda: expected in http.get("/metrics").text)
    assert worker.log.read_text().count("message.foreign") == len(messages)


def worker_name(http):
    return http.get("/metrics").text.split('colqueue_worker_dead_letters_total{worker="')[1].split('"')[0]


def test_the_list_of_dead_letters_is_bounded_in_number_and_size(stack, connection):
    stack.start_double("worker")
    for number in range(150):
        connection.lpush(Lane.BULK.value, f"{number} " + "x" * 100_000)
    eventually(lambda: b'"149 ' in (connection.lindex(keys.DEAD_LETTERS, 0) or b""))
    letters = [json.loads(letter) for letter in connection.lrange(keys.DEAD_LETTERS, 0, -1)]
    assert len(letters) == 100
    assert {letter["bytes"] > 100_000 for letter in letters} == {True}
    assert max(len(letter["message"]) for letter in letters) == 4096


def test_messages_that_are_not_ours_and_merely_wait_disturb_neither_metrics_nor_readiness_nor_the_reaper(
    stack, http, connection, task
):
    """No worker takes them: this one stands before a full lane. The reaper still ends a job whose time is up."""
    worker = stack.start_double("worker", COLQUEUE_THREADS="3", COLQUEUE_BULK_TASKS="1")
    connection.set("hold", "it")
    held = submit(http)
    eventually(lambda: connection.llen("runs") == 1)
    for queue in Lane.BULK.queues:
        connection.rpush(queue, *foreign(task))
    late = http.post("/jobs", json={"input_type": "text", "inputs": ["b"], "lane": "bulk", "deadline_s": 1}).json()
    assert http.get("/metrics").status_code == 200
    job = eventually(lambda: (now := http.get(f"/jobs/{late['id']}").json())["finished_at"] and now)
    assert (job["status"], job["failed"]) == ("failed", 1)
    assert http.get("/ready").status_code == 200
    assert "thread.step_failed" not in worker.log.read_text()
    connection.delete("hold")
    connection.rpush("go", "it")
    assert completed(http, held)


def test_records_of_taken_tasks_that_are_not_ours_become_dead_letters(stack, http, connection, task):
    taken = [json.dumps([json.loads(text), "", "bulk"]) for text in map(to_text, foreign(task)) if is_json(text)]
    records = ["not JSON", "[]", "{}", "[1, 2, 3]", *taken]
    tags = count()
    for record in records:
        tag = f"foreign-{next(tags)}"
        connection.hset("unacked", tag, record)
        connection.zadd("unacked_index", {tag: 1})
    connection.zadd("unacked_index", {"of nothing": 1})
    connection.hset("unacked", "without a time", "not JSON")
    worker = stack.start_double("worker")
    assert completed(http, submit(http))
    eventually(lambda: connection.zcard("unacked_index") == 0)
    assert connection.llen(keys.DEAD_LETTERS) == len(records)
    assert worker.running()
    assert "thread.step_failed" not in worker.log.read_text()
    # What the broker lost is still found, although a record that nobody will ever look at lies there.
    find_lost_task(stack, http, connection)


def to_text(message):
    return message.decode(errors="replace") if isinstance(message, bytes) else message


def is_json(text):
    try:
        json.loads(text)
    except (ValueError, RecursionError):
        return False
    return True


def find_lost_task(stack, http, connection):
    """Take a job's task out of its queue, as a dying worker does, and see it done all the same."""
    connection.rpush("die_taking", "it")
    job_id = submit(http)
    stack.processes["worker"].wait()
    stack.start_double("worker")
    assert completed(http, job_id)


def test_foreign_messages_of_remote_control_end_no_worker(stack, http, connection):
    worker = stack.start_double("worker")
    assert completed(http, submit(http))
    odd = ["not JSON", "null", "[]", "7", "{}", '{"properties": 1}', '{"properties": {"delivery_tag": 1}, "body": "x"}']
    for channel in ("/0.celery.pidbox", "/0.celery.pidbox/x"):
        for message in odd:
            connection.publish(channel, message)
    assert completed(http, submit(http))
    assert worker.running()
