"""The real worker killed again and again at full consumption: nothing is lost, nothing counted twice, nothing left."""

from concurrent.futures import ThreadPoolExecutor
from signal import SIGKILL

import numpy as np
import pytest
import redis
from stack import Stack, eventually

from shared import keys
from shared.jobs import Lane

KILLS = 4
JOBS = 200
# Of one job: it has three tasks.
INPUTS = 10
TEXTS = [f"what does page {number} say of {'very ' * (number % 7)}old maps?" for number in range(12)]


@pytest.fixture(scope="module")
def stack(redis_program, models_dir, tmp_path_factory):
    """A stack of this file's own, which gives a dead worker's tasks back and looks for lost ones soon."""
    del redis_program
    settings = {
        "COLQUEUE_CACHE_DIR": str(models_dir),
        "COLQUEUE_VISIBILITY_TIMEOUT_S": "3",
        "COLQUEUE_REAP_AFTER_S": "2",
        "COLQUEUE_TASK_TOKENS": "220",
        # Here it is never the input's fault, whichever happens to be alone in the worker at each kill.
        "COLQUEUE_MAX_ATTEMPTS": str(KILLS + 2),
        "COLQUEUE_LOG_LEVEL": "INFO",
        "OMP_NUM_THREADS": "1",
    }
    with Stack(tmp_path_factory.mktemp("kills"), **settings) as running:
        running.start_api()
        yield running


@pytest.fixture
def workers(stack, connection):
    """Several of them, all ready: on two cores a worker takes longer to start than these jobs to be embedded."""
    started = [stack.start_worker() for _ in range(KILLS)]
    eventually(lambda: sum(state == b"ready" for state in states(connection)) == KILLS, 150)
    yield started
    for worker in started:
        worker.stop()


def states(connection):
    return [connection.hget(keys.worker(name.decode()), "state") for name in connection.zrange(keys.WORKERS, 0, -1)]


@pytest.fixture
def connection(stack):
    with redis.Redis.from_url(stack.redis.url) as connection:
        yield connection


def texts_of(number):
    return [TEXTS[(number + place) % len(TEXTS)] for place in range(INPUTS)]


def submit(http, number):
    lane = list(Lane)[number % 2].value
    answer = http.post("/jobs", json={"input_type": "text", "inputs": texts_of(number), "lane": lane})
    assert answer.status_code == 202, answer.text
    return answer.json()["id"]


def done(connection, submitted):
    """How many inputs have a result or a failure."""
    with connection.pipeline(transaction=False) as pipe:
        for job_id in (future.result() for future in submitted if future.done()):
            pipe.hmget(keys.job(job_id), "completed", "failed")
        return sum(int(count) for counts in pipe.execute() for count in counts)


def test_workers_killed_at_full_consumption_lose_nothing_and_double_nothing(stack, workers, connection):
    with stack.client() as http:
        answer = http.post("/embeddings", json={"input_type": "text", "inputs": TEXTS})
        expected = dict(zip(TEXTS, answer.json()["embeddings"], strict=True))
        with ThreadPoolExecutor(8) as pool:
            submitted = [pool.submit(submit, http, number) for number in range(JOBS)]
            for number, worker in enumerate(workers, 1):
                enough = JOBS * INPUTS * number / (2 * KILLS)
                eventually(lambda enough=enough: done(connection, submitted) >= enough)
                assert connection.hlen("unacked") > 0
                worker.signal(SIGKILL)
                assert worker.wait() == -SIGKILL
                if number == 1:
                    stack.start_worker()
            assert done(connection, submitted) < JOBS * INPUTS
            jobs = [future.result() for future in submitted]
        eventually(lambda: not connection.exists(keys.UNFINISHED))

        for job_id in jobs:
            job = connection.hmget(keys.job(job_id), "status", "completed", "failed")
            assert job == [b"completed", str(INPUTS).encode(), b"0"]
            assert sorted(map(int, connection.hkeys(keys.results(job_id)))) == list(range(INPUTS))
        for number in range(0, JOBS, 5):
            result = http.get(f"/jobs/{jobs[number]}/result", headers={"Accept": "application/json"}).json()
            for text, rows in zip(texts_of(number), result["embeddings"], strict=True):
                np.testing.assert_allclose(rows, expected[text], rtol=0, atol=1e-4)

    eventually(lambda: not connection.exists("unacked", "unacked_index", *Lane))
    endless = {key.decode() for key in connection.scan_iter() if connection.ttl(key) == -1}
    assert {key for key in endless if not key.startswith("_kombu.")} <= {keys.ANNOUNCEMENTS}
    for job_id in jobs:
        assert not connection.exists(keys.payloads(job_id), keys.attempts(job_id))
