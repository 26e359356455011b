"""Machines whose clocks differ by hours around one Redis: nothing is done twice, given up too early, or locked out."""

from datetime import datetime
from signal import SIGKILL

import pytest
import redis
from stack import Stack, eventually, skewed_clock

VISIBILITY_TIMEOUT_S = 3
HOUR_S = 3600
SKEWS_S = {"right": 0, "ahead": HOUR_S, "behind": -HOUR_S}


@pytest.fixture
def stack(redis_program, tmp_path):
    del redis_program
    settings = {
        "COLQUEUE_VISIBILITY_TIMEOUT_S": str(VISIBILITY_TIMEOUT_S),
        "COLQUEUE_REAP_AFTER_S": "2",
        "COLQUEUE_TASK_TOKENS": "1",
        "COLQUEUE_THREADS": "4",
        "COLQUEUE_BULK_TASKS": "3",
    }
    with Stack(tmp_path, **settings) as stack:
        yield stack


@pytest.fixture
def connection(stack):
    with redis.Redis.from_url(stack.redis.url, socket_timeout=None) as connection:
        yield connection


def metric(http, name):
    return [line.rsplit(" ", 1)[1] for line in http.get("/metrics").text.splitlines() if line.startswith(name)]


def last_claims(connection):
    return [score for _, score in connection.zrange("unacked_index", 0, -1, withscores=True)]


def test_workers_whose_clocks_differ_by_hours_do_each_task_once_and_all_are_seen(stack, connection):
    stack.start_api()
    for name, skew_s in SKEWS_S.items():
        stack.start_double(name, **skewed_clock(skew_s))
    with stack.client() as http:
        eventually(lambda: metric(http, "colqueue_worker_ready") == ["1.0"] * 3)
        connection.set("hold", "it")
        body = {"input_type": "text", "inputs": ["a", "b", "c", "d", "e", "f"], "lane": "bulk", "deadline_s": 600}
        job = http.post("/jobs", json=body).json()
        eventually(lambda: connection.llen("runs") == 6)
        # Every task is held for longer than the visibility timeout, and its lease is renewed all the while.
        until = max(last_claims(connection)) + 2 * VISIBILITY_TIMEOUT_S
        eventually(lambda: len(claims := last_claims(connection)) == 6 and min(claims) > until)
        assert metric(http, "colqueue_worker_ready") == ["1.0"] * 3
        connection.delete("hold")
        connection.rpush("go", *range(6))
        job = eventually(lambda: (now := http.get(f"/jobs/{job['id']}").json())["finished_at"] and now)
    assert (job["status"], job["completed"], job["failed"]) == ("completed", 6, 0)
    assert connection.llen("runs") == 6
    assert connection.llen("ran") == 6


@pytest.mark.parametrize("skew_s", [HOUR_S, -HOUR_S])
def test_the_work_of_a_killed_worker_is_taken_over_by_one_whose_clock_is_an_hour_off(stack, connection, skew_s):
    stack.start_api()
    killed = stack.start_double("killed", **skewed_clock(-skew_s))
    with stack.client() as http:
        connection.set("hold", "it")
        job = http.post("/jobs", json={"input_type": "text", "inputs": ["a"], "lane": "bulk"}).json()
        eventually(lambda: connection.llen("runs") == 1)
        killed.signal(SIGKILL)
        connection.delete("hold")
        stack.start_double("heir", **skewed_clock(skew_s))
        job = eventually(lambda: (now := http.get(f"/jobs/{job['id']}").json())["finished_at"] and now)
    assert (job["status"], job["completed"]) == ("completed", 1)


@pytest.mark.parametrize("skew_s", [HOUR_S, -HOUR_S])
def test_an_api_whose_clock_is_an_hour_off_locks_nobody_out_and_dates_a_job_like_any_other(stack, skew_s):
    right = stack.start_api(COLQUEUE_KEY_SUBMISSIONS_PER_MINUTE="60")
    off = stack.start_api("off", COLQUEUE_KEY_SUBMISSIONS_PER_MINUTE="60", **skewed_clock(skew_s))
    stack.start_double("worker")
    body = {"input_type": "text", "inputs": ["a"], "deadline_s": 60}
    with stack.client(url=right) as http, stack.client(url=off) as other:
        jobs = [client.post("/jobs", json=body) for client in (http, other, http, other)]
        assert [answer.status_code for answer in jobs] == [202] * 4
        dates = [datetime.fromisoformat(answer.json()["created_at"]).timestamp() for answer in jobs]
        assert dates == sorted(dates)
        for answer in jobs:
            url = f"/jobs/{answer.json()['id']}"
            job = eventually(lambda url=url: (now := other.get(url).json())["finished_at"] and now)
            assert (job["status"], job["completed"]) == ("completed", 1)
        eventually(lambda: metric(other, "colqueue_worker_ready") == ["1.0"])
        assert other.get("/ready").status_code == 200
        assert [float(age) < HOUR_S / 2 for age in metric(other, "colqueue_queue_oldest_seconds{")] == [True, True]
