"""Inputs that worker processes die of, and those that only were there: who runs alone, who is given up.

First a worker without Celery, whose deaths are simulated by what they leave in Redis; then real processes that die.
"""

import sys
import threading

import numpy as np
import pytest
import redis
from doubles import SERVED, FakeModel, ask_api, read_job, read_result, rows_of, submit_texts
from stack import ROOT, Process, clean_environment, eventually
from structlog.testing import capture_logs

from shared import keys
from shared.errors import StoreUnavailableError
from shared.jobs import JobStatus, Lane
from shared.queue import celery_app, publish
from shared.settings import StoreSettings
from worker.batcher import Batcher, BatcherClosedError
from worker.shard import ShardRunner
from worker.store import Store

SOON_S = 120
MAX_ATTEMPTS = 3
# Long enough for a thread that may go on to have gone on; shorter only hides a fault, it never reports one.
A_WHILE_S = 0.15


@pytest.fixture
def settings(redis_url):
    return StoreSettings(_env_file=None, redis_url=redis_url, visibility_timeout_s=3, reap_after_s=2, task_tokens=80)


@pytest.fixture
def connection(redis_url):
    with redis.Redis.from_url(redis_url) as connection:
        yield connection


class AwayStore(Store):
    """Redis goes away just before results are kept, `outages` times."""

    outages = 0

    def save(self, job_id, outcomes):
        if self.outages:
            self.outages -= 1
            raise StoreUnavailableError("away")
        return super().save(job_id, outcomes)


class Gated(FakeModel):
    """Waits in a batch that holds "gated..." until told to `go`."""

    def __init__(self):
        super().__init__(self._wait)
        self.inside, self.go = threading.Event(), threading.Event()

    def _wait(self, payloads):
        if any(payload.startswith(b"gated") for payload in payloads):
            self.inside.set()
            assert self.go.wait(SOON_S)


class Shop:
    """One worker process without Celery."""

    def __init__(self, settings):
        self.store, self.model = AwayStore(settings), Gated()
        self.batcher = Batcher(self.model.start, max_tokens=1000, unfinished=self.store.unfinished)
        self.runner = ShardRunner(self.store, self.model, self.batcher, max_attempts=MAX_ATTEMPTS)
        self._runs = []
        self._model_thread = threading.Thread(target=self.batcher.run, daemon=True)
        self._model_thread.start()

    def run(self, job_id, *indices):
        return self.runner.run(job_id, list(indices), Lane.BULK)

    def start(self, job_id, *indices):
        """Run these on a thread; the list returned gets what it returned or raised."""
        told = []

        def run():
            try:
                told.append(self.run(job_id, *indices))
            except (BatcherClosedError, StoreUnavailableError) as error:
                told.append(error)

        thread = threading.Thread(target=run, daemon=True)
        self._runs.append(thread)
        thread.start()
        return told

    def end_of_runs(self):
        for thread in self._runs:
            thread.join(SOON_S)
            assert not thread.is_alive()

    def close(self):
        self.model.go.set()
        self.batcher.close()
        self._model_thread.join(SOON_S)
        for client in (self.store._redis, self.store._impatient):  # noqa: SLF001  # it lives as long as a worker
            client.close()


@pytest.fixture
def open_shop(settings):
    opened = []

    def open_shop():
        opened.append(Shop(settings))
        return opened[-1]

    with capture_logs():
        yield open_shop
        for shop in opened:
            shop.close()


@pytest.fixture
def shop(open_shop):
    return open_shop()


def died(shop, job_id, *indices, times=1):
    """Leave what workers leave that die while they work on these inputs."""
    shop.store.begin(job_id, indices, SERVED)
    for index in indices:
        for _ in range(times - 1):
            shop.store.count_attempt(job_id, index)


def attempts(connection, job_id):
    return {int(index): int(count) for index, count in connection.hgetall(keys.attempts(job_id)).items()}


def failures(settings, job_id):
    async def ask(api):
        return await read_result(api, job_id)

    return [(failure.index, failure.code) for failure in ask_api(settings, ask).failures]


def test_an_input_begun_before_runs_with_nothing_else_in_the_process(settings, shop, connection):
    first, suspect, last = (submit_texts(settings, text) for text in ("gated one", "gated suspect", "last"))
    died(shop, suspect, 0)
    shop.start(first, 0)
    assert shop.model.inside.wait(SOON_S)
    shop.start(suspect, 0)
    eventually(shop.runner._gate._alone.locked, SOON_S)  # noqa: SLF001  # it wants to be alone
    shop.start(last, 0)
    eventually(lambda: attempts(connection, last), SOON_S)
    threading.Event().wait(A_WHILE_S)
    assert shop.batcher.waiting == 0
    assert attempts(connection, suspect) == {0: 1}

    shop.model.inside.clear()
    shop.model.go.set()
    assert shop.model.inside.wait(SOON_S)
    shop.end_of_runs()
    assert shop.model.batches == [[b"gated one"], [b"gated suspect"], [b"last"]]
    for job_id in (first, suspect, last):
        assert read_job(settings, job_id).status is JobStatus.COMPLETED


def test_while_a_suspect_is_in_the_model_nothing_else_enters_the_batcher(settings, shop, connection):
    suspect, other = submit_texts(settings, "gated suspect"), submit_texts(settings, "other")
    died(shop, suspect, 0)
    shop.start(suspect, 0)
    assert shop.model.inside.wait(SOON_S)
    assert attempts(connection, suspect) == {0: 2}
    shop.start(other, 0)
    eventually(lambda: attempts(connection, other), SOON_S)
    threading.Event().wait(A_WHILE_S)
    assert shop.batcher.waiting == 0
    shop.model.go.set()
    shop.end_of_runs()
    assert read_job(settings, other).status is JobStatus.COMPLETED


def test_suspects_of_one_shard_run_one_by_one_after_its_other_inputs(settings, shop):
    job_id = submit_texts(settings, "a", "suspect 1", "b", "suspect 2")
    died(shop, job_id, 1, 3)
    shop.run(job_id, 0, 1, 2, 3)
    alone = [batch for batch in shop.model.batches if any(payload.startswith(b"suspect") for payload in batch)]
    assert alone == shop.model.batches[-2:] == [[b"suspect 1"], [b"suspect 2"]]
    assert read_job(settings, job_id).completed == 4


def test_after_the_last_attempt_an_input_is_given_up_and_its_neighbours_complete(settings, shop):
    job_id = submit_texts(settings, "a", "poison", "b")
    died(shop, job_id, 1, times=MAX_ATTEMPTS)
    shop.run(job_id, 0, 1, 2)
    job = read_job(settings, job_id)
    assert (job.status, job.completed, job.failed) == (JobStatus.COMPLETED, 2, 1)
    assert failures(settings, job_id) == [(1, "worker_killed")]
    assert not any(b"poison" in batch for batch in shop.model.batches)


def test_before_the_last_attempt_an_input_is_tried_again(settings, shop, connection):
    job_id = submit_texts(settings, "innocent")
    died(shop, job_id, 0, times=MAX_ATTEMPTS - 1)
    shop.run(job_id, 0)
    assert read_job(settings, job_id).status is JobStatus.COMPLETED
    assert not connection.exists(keys.attempts(job_id))


@pytest.mark.parametrize("before", [0, 1])
def test_what_a_stopping_worker_hands_back_does_not_count(before, settings, open_shop, connection):
    shop = open_shop()
    job_id = submit_texts(settings, "a", "b")
    if before:
        died(shop, job_id, 0, 1)
    shop.batcher.close()
    with pytest.raises(BatcherClosedError):
        shop.run(job_id, 0, 1)
    assert attempts(connection, job_id) == {0: before, 1: before}
    if not before:
        another = open_shop()
        another.run(job_id, 0, 1)
        assert read_job(settings, job_id).completed == 2


@pytest.mark.parametrize("before", [0, 1])
def test_work_done_while_the_store_is_away_does_not_count(before, settings, shop, connection):
    job_id = submit_texts(settings, "a")
    if before:
        died(shop, job_id, 0)
    for _ in range(2 * MAX_ATTEMPTS):
        shop.store.outages = 1
        with pytest.raises(StoreUnavailableError):
            shop.run(job_id, 0)
        assert attempts(connection, job_id) == {0: before}
    shop.run(job_id, 0)
    assert read_job(settings, job_id).status is JobStatus.COMPLETED


def test_duplicates_of_a_task_neither_count_nor_give_up(settings, shop, connection):
    """However many, while the first is under way and after."""
    job_id = submit_texts(settings, "gated", "of another task")
    told = [shop.start(job_id, 0)]
    assert shop.model.inside.wait(SOON_S)
    told += [shop.start(job_id, 0) for _ in range(2 * MAX_ATTEMPTS)]
    eventually(shop.runner._gate._alone.locked, SOON_S)  # noqa: SLF001  # a duplicate wants to be alone
    assert attempts(connection, job_id) == {0: 1}
    shop.model.go.set()
    shop.end_of_runs()
    assert sum("1 counted" in line for (line,) in told) == 1
    assert sum("done before" in line for (line,) in told) == 2 * MAX_ATTEMPTS
    assert shop.model.batches == [[b"gated"]]
    job = read_job(settings, job_id)
    assert (job.status, job.completed, job.failed) == (JobStatus.RUNNING, 1, 0)
    assert not connection.exists(keys.failures(job_id))


def test_a_duplicate_that_is_handed_back_after_its_original_does_not_count(settings, shop, connection):
    gated, job_id = submit_texts(settings, "gated"), submit_texts(settings, "a")
    shop.start(gated, 0)
    assert shop.model.inside.wait(SOON_S)
    told = [shop.start(job_id, 0)]
    eventually(lambda: shop.batcher.waiting == 1, SOON_S)
    told.append(shop.start(job_id, 0))
    eventually(shop.runner._gate._alone.locked, SOON_S)  # noqa: SLF001  # the duplicate wants to be alone
    shop.batcher.close()
    shop.model.go.set()
    shop.end_of_runs()
    assert all(isinstance(each, BatcherClosedError) for (each,) in told)
    assert attempts(connection, job_id) == {0: 0}


@pytest.fixture
def keep_worker_alive(settings, tmp_path):
    """Call again and again: starts the worker where none runs, as its supervisor does; counts the deaths."""
    started = []

    def keep_worker_alive():
        if not started or not started[-1].running():
            environment = {
                "COLQUEUE_REDIS_URL": settings.redis_dsn,
                "COLQUEUE_VISIBILITY_TIMEOUT_S": str(settings.visibility_timeout_s),
                "COLQUEUE_REAP_AFTER_S": str(settings.reap_after_s),
                "COLQUEUE_MAX_ATTEMPTS": str(MAX_ATTEMPTS),
                "COLQUEUE_BATCH_TOKENS": "1000",
                "PYTHONPATH": f"{ROOT}:{ROOT / 'tests'}",
            }
            command = [sys.executable, str(ROOT / "tests" / "double_worker.py")]
            name = f"worker-{len(started)}"
            started.append(Process(command, tmp_path, name, clean_environment() | environment))
        return len(started) - 1

    yield keep_worker_alive
    for process in started:
        process.stop()


@pytest.mark.parametrize("poison", ["abort", "kill"])
def test_poison_that_kills_the_process_is_given_up_and_every_other_input_completes(
    poison, settings, keep_worker_alive, connection
):
    app = celery_app(settings)
    texts = [f"text {number}" for number in range(8)]
    jobs = [submit_texts(settings, *texts) for _ in range(3)]
    poisoned = submit_texts(settings, "a", poison, "b", *texts)
    jobs += [submit_texts(settings, *texts, lane=lane) for lane in Lane]
    for job_id in [*jobs[:3], poisoned, *jobs[3:]]:
        job = read_job(settings, job_id)
        publish(app, settings, job, range(job.total))
    app.close()

    def all_finished():
        keep_worker_alive()
        return not connection.exists(keys.UNFINISHED)

    eventually(all_finished)
    assert keep_worker_alive() == MAX_ATTEMPTS
    assert connection.lrange("ran", 0, -1).count(poison.encode()) == MAX_ATTEMPTS
    job = read_job(settings, poisoned)
    assert (job.status, job.completed, job.failed) == (JobStatus.COMPLETED, 10, 1)
    assert failures(settings, poisoned) == [(1, "worker_killed")]
    for job_id in jobs:
        job = read_job(settings, job_id)
        assert (job.status, job.completed, job.failed) == (JobStatus.COMPLETED, 8, 0)

        async def ask(api, job_id=job_id):
            return await read_result(api, job_id)

        for rows, text in zip(ask_api(settings, ask).embeddings, texts, strict=True):
            np.testing.assert_array_equal(rows, rows_of(text.encode()))
    eventually(lambda: not connection.exists("unacked", "unacked_index", *Lane))
