"""The real worker killed again and again at full consumption: nothing is lost, nothing counted twice, nothing left."""

import threading
from concurrent.futures import ThreadPoolExecutor
from signal import SIGCONT, SIGKILL

import numpy as np
import pytest
import redis
from stack import Stack, eventually

from shared import keys
from shared.jobs import Lane

KILLS = 3
# So many jobs are unfinished at any time, until the last kill; between two kills so many inputs are done.
BACKLOG, BETWEEN = 40, 60
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


class Feeder:
    """Keeps the backlog at its size until told to stop, so that workers are always at full consumption."""

    def __init__(self, http, connection):
        self.jobs, self.enough = [], threading.Event()
        self._http, self._connection = http, connection

    def run(self):
        while not self.enough.is_set():
            if self._connection.zcard(keys.UNFINISHED) < BACKLOG:
                self.jobs.append(submit(self._http, len(self.jobs)))
            else:
                self.enough.wait(0.01)

    def done(self):
        """How many inputs have a result or a failure."""
        with self._connection.pipeline(transaction=False) as pipe:
            for job_id in list(self.jobs):
                pipe.hmget(keys.job(job_id), "completed", "failed")
            return sum(int(count) for counts in pipe.execute() for count in counts)


def kill_with_work_in_hand(worker, workers, connection):
    """Kill `worker` at a moment at which the workers have tasks in hand."""
    while True:
        eventually(lambda: connection.hlen("unacked"))
        for each in workers:
            assert each.freeze()
        if connection.hlen("unacked"):
            break
        for each in workers:
            each.signal(SIGCONT)
    worker.signal(SIGKILL)
    assert worker.wait() == -SIGKILL
    for each in workers:
        if each is not worker:
            each.signal(SIGCONT)


def test_workers_killed_at_full_consumption_lose_nothing_and_double_nothing(stack, workers, connection):
    with stack.client() as http, ThreadPoolExecutor(1) as pool:
        answer = http.post("/embeddings", json={"input_type": "text", "inputs": TEXTS})
        expected = dict(zip(TEXTS, answer.json()["embeddings"], strict=True))
        feeder = Feeder(http, connection)
        feeding = pool.submit(feeder.run)
        try:
            for number, worker in enumerate(workers):
                enough = feeder.done() + BETWEEN
                eventually(lambda enough=enough: feeder.done() >= enough)
                kill_with_work_in_hand(worker, workers[number:], connection)
                if number == 0:
                    stack.start_worker()
        finally:
            feeder.enough.set()
        feeding.result()
        jobs = feeder.jobs
        eventually(lambda: not connection.exists(keys.UNFINISHED), 240)

        for job_id in jobs:
            job = connection.hmget(keys.job(job_id), "status", "completed", "failed")
            assert job == [b"completed", str(INPUTS).encode(), b"0"]
            assert sorted(map(int, connection.hkeys(keys.results(job_id)))) == list(range(INPUTS))
        for number in range(0, len(jobs), 5):
            result = http.get(f"/jobs/{jobs[number]}/result", headers={"Accept": "application/json"}).json()
            for text, rows in zip(texts_of(number), result["embeddings"], strict=True):
                np.testing.assert_allclose(rows, expected[text], rtol=0, atol=1e-4)

    eventually(lambda: not connection.exists("unacked", "unacked_index", *Lane))
    endless = {key.decode() for key in connection.scan_iter() if connection.ttl(key) == -1}
    assert {key for key in endless if not key.startswith("_kombu.")} <= {keys.ANNOUNCEMENTS}
    for job_id in jobs:
        assert not connection.exists(keys.payloads(job_id), keys.attempts(job_id))
