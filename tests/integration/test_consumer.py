"""Celery's side of the worker in real processes on a real Redis: the task, the order of the queues, the lease."""

import signal
import sys
from pathlib import Path

import pytest
import redis
from doubles import OWNER, ask_api, read_job, read_result, submit_job
from stack import ROOT, Process, clean_environment, eventually

from shared import keys
from shared.jobs import JobStatus, Lane
from shared.messages import TASK_NAME
from shared.queue import celery_app, publish
from shared.settings import StoreSettings

VISIBILITY_TIMEOUT_S = 3
THREADS, BULK_TASKS = 6, 3


@pytest.fixture
def settings(redis_url):
    return StoreSettings(_env_file=None, redis_url=redis_url, visibility_timeout_s=VISIBILITY_TIMEOUT_S, task_tokens=80)


@pytest.fixture
def connection(redis_url):
    with redis.Redis.from_url(redis_url) as connection:
        yield connection


@pytest.fixture
def start_worker(settings, tmp_path):
    started = []

    def start_worker(**more):
        environment = {
            "COLQUEUE_REDIS_URL": settings.redis_dsn,
            "COLQUEUE_VISIBILITY_TIMEOUT_S": str(VISIBILITY_TIMEOUT_S),
            "COLQUEUE_THREADS": str(THREADS),
            "COLQUEUE_BULK_TASKS": str(BULK_TASKS),
            "PYTHONPATH": f"{ROOT}:{ROOT / 'tests'}",
        }
        command = [sys.executable, str(ROOT / "tests" / "double_worker.py")]
        process = Process(command, tmp_path, f"worker-{len(started)}", clean_environment() | environment | more)
        started.append(process)
        return process

    yield start_worker
    for process in started:
        process.signal(signal.SIGKILL) if process.running() else None
        process.wait()


@pytest.fixture
def app(settings):
    app = celery_app(settings)
    yield app
    app.close()


@pytest.fixture
def submit(settings, app):
    def submit(*texts, lane=Lane.BULK, owner=OWNER):
        job = submit_job(settings, *texts, lane=lane, owner=owner)
        publish(app, settings, job, range(job.total))
        return job.id

    return submit


@pytest.fixture
def finished(settings):
    def finished(job_id, within_s=120):
        return eventually(lambda: (job := read_job(settings, job_id)).finished and job, within_s)

    return finished


def nothing_in_hand(connection):
    return not connection.exists("unacked", "unacked_index", *(queue for lane in Lane for queue in lane.queues))


def test_a_job_is_embedded_and_nothing_of_it_stays_with_celery(start_worker, submit, finished, connection):
    texts = [f"text no. {number}" for number in range(10)]
    job_id = submit(*texts)
    start_worker()
    job = finished(job_id)
    assert (job.status, job.completed) == (JobStatus.COMPLETED, 10)
    assert sorted(connection.lrange("ran", 0, -1)) == sorted(text.encode() for text in texts)
    assert connection.lrange("runs", 0, -1) == [f"bulk {job_id}".encode()] * 3
    eventually(lambda: nothing_in_hand(connection))


def test_no_key_of_ours_lives_for_ever_after_work_was_done(start_worker, submit, finished, connection):
    job_id = submit("a", "b")
    start_worker()
    finished(job_id)
    endless = {key.decode() for key in connection.scan_iter() if connection.ttl(key) == -1}
    assert {key for key in endless if key.startswith("colqueue:")} <= {keys.ANNOUNCEMENTS}


@pytest.mark.parametrize("error", ["away", "closed"])
def test_work_that_could_not_be_done_goes_back_and_is_done_later(start_worker, submit, finished, connection, error):
    connection.rpush("raise", error, error)
    job_id = submit("a")
    start_worker()
    assert finished(job_id).status is JobStatus.COMPLETED
    assert connection.llen("runs") == 3
    eventually(lambda: nothing_in_hand(connection))


def test_a_fault_of_ours_fails_the_inputs_of_its_task_and_no_other(
    start_worker, settings, submit, finished, connection
):
    connection.rpush("raise", "odd")
    job_id = submit(*(str(number) for number in range(8)))
    start_worker()
    job = finished(job_id)
    assert (job.status, job.completed, job.failed) == (JobStatus.COMPLETED, 4, 4)

    async def ask(api):
        return await read_result(api, job_id)

    assert {failure.code for failure in ask_api(settings, ask).failures} == {"input_failed"}
    assert connection.llen("runs") == 2
    eventually(lambda: nothing_in_hand(connection))


def test_bulk_leaves_threads_to_the_interactive_lane_and_is_taken_again_as_soon_as_it_may(
    start_worker, submit, finished, connection
):
    connection.set("hold", 1)
    flood = [submit("b") for _ in range(12)]
    start_worker()
    eventually(lambda: connection.llen("runs") == BULK_TASKS)
    queries = [submit("q", lane=Lane.INTERACTIVE) for _ in range(10)]
    for query in queries:
        assert finished(query).status is JobStatus.COMPLETED
    assert connection.llen("bulk") == len(flood) - BULK_TASKS
    connection.rpush("go", "one")
    eventually(lambda: connection.llen("bulk") == len(flood) - BULK_TASKS - 1)
    connection.rpush("go", *["each"] * len(flood))
    for job_id in flood:
        finished(job_id)
    eventually(lambda: nothing_in_hand(connection))


@pytest.fixture
def runs_of_all(connection):
    """Call to wait until every job is done; returns the job of each task in the order in which they were taken."""

    def runs_of_all():
        eventually(lambda: not connection.exists(keys.UNFINISHED))
        return [run.decode().split()[1] for run in connection.lrange("runs", 0, -1)]

    return runs_of_all


@pytest.mark.parametrize("lane", Lane)
def test_one_owners_flood_does_not_hold_up_anothers_work(start_worker, submit, runs_of_all, connection, lane):
    """Tasks are counted and not seconds: the light owner's run in turn with those of the heavy one, which was first."""
    for number in range(30):
        submit(*(f"flood {number}/{index}" for index in range(8)), lane=lane, owner="heavy")
    light = submit(*(f"light {index}" for index in range(20)), lane=lane, owner="light")
    start_worker(COLQUEUE_THREADS="4", COLQUEUE_BULK_TASKS="2")
    runs = runs_of_all()
    assert len(runs) == 60 + 5
    assert runs.count(light) == 5
    # Five turns of two, and what threads of one worker may swap.
    assert len(runs) - runs[::-1].index(light) <= 10 + 4
    assert connection.llen("ran") == 260


def test_two_floods_share_the_worker_and_neither_starves(start_worker, submit, runs_of_all):
    first = [submit(*(f"a {number}/{index}" for index in range(8)), owner="a") for number in range(15)]
    for number in range(15):
        submit(*(f"b {number}/{index}" for index in range(8)), owner="b")
    start_worker(COLQUEUE_THREADS="4", COLQUEUE_BULK_TASKS="2")
    of_first = [job_id in first for job_id in runs_of_all()]
    assert len(of_first) == 60
    assert all(3 <= sum(of_first[start : start + 10]) <= 7 for start in range(0, 60, 10))


def test_owners_share_the_worker_by_what_their_tasks_cost_and_not_by_their_number(start_worker, submit, runs_of_all):
    """Ten light tasks are taken for each heavy one, so the light ones are through when few heavy ones were taken."""
    heavy = [submit(f"{number:0150}", owner="a") for number in range(30)]
    for number in range(60):
        submit(f"{number:06}", owner="b")
    start_worker(COLQUEUE_THREADS="4", COLQUEUE_BULK_TASKS="2")
    runs = runs_of_all()
    assert len(runs) == 90
    assert sum(job_id in heavy for job_id in runs[:40]) <= 4 + 2


def test_a_query_is_taken_within_one_batch_of_a_saturating_bulk_load(start_worker, submit, finished, connection):
    """Forward passes are counted and not seconds: the one that runs, then the query's own."""
    flood = [submit(*(f"gated {number}/{index}" for index in range(8))) for number in range(20)]
    start_worker(COLQUEUE_BATCH_TOKENS="1")
    for number in range(8):
        eventually(lambda number=number: connection.llen("ran") == 2 * number + 1)  # bulk is in the model
        query = submit(f"query {number}", lane=Lane.INTERACTIVE)
        eventually(lambda number=number: b"query %d" % number in connection.lrange("submitted", 0, -1))
        connection.rpush("open", "it")
        assert finished(query).status is JobStatus.COMPLETED
    ran = connection.lrange("ran", 0, -1)
    places = [place for place, payload in enumerate(ran) if payload.startswith(b"query")]
    assert places == [1 + 2 * number for number in range(8)]
    assert len(ran) < 8 * len(flood)


def test_a_worker_told_to_stop_ends_its_batch_and_hands_back_what_waits(start_worker, submit, settings, connection):
    worker = start_worker(COLQUEUE_BATCH_TOKENS="1")
    running = submit("gated")
    eventually(lambda: connection.llen("ran") == 1)
    waiting = [submit("a"), submit("b", lane=Lane.INTERACTIVE)]
    eventually(lambda: connection.llen("runs") == 3)
    worker.signal(signal.SIGTERM)
    eventually(lambda: worker.log.read_text().count("task.handed_back") == 2)
    connection.rpush("open", "it")
    assert worker.wait() == 0
    assert read_job(settings, running).status is JobStatus.COMPLETED
    assert [connection.llen(lane) for lane in Lane] == [1, 1]
    start_worker()
    for job_id in waiting:
        eventually(lambda job_id=job_id: read_job(settings, job_id).finished)
    assert sorted(connection.lrange("ran", 0, -1)) == [b"a", b"b", b"gated"]


def test_many_jobs_in_both_lanes_lose_nothing(start_worker, submit, finished, connection):
    """And the event loop survives the tasks that end while it counts them."""
    jobs = [submit(*(f"{number}/{index}" for index in range(4)), lane=list(Lane)[number % 2]) for number in range(120)]
    worker = start_worker()
    for job_id in jobs:
        assert finished(job_id).completed == 4
    assert connection.llen("ran") == len(set(connection.lrange("ran", 0, -1))) == 480
    assert worker.running()


def test_work_longer_than_the_visibility_timeout_runs_once_and_so_does_what_waits_behind_it(
    start_worker, submit, finished, connection
):
    """What is prefetched, prepared or in the batcher was taken from the queue as well.

    The timeout leaves a busy machine time for the renewals, which come three times as often.
    """
    timeout_s = 10
    settings = {"COLQUEUE_VISIBILITY_TIMEOUT_S": str(timeout_s), "COLQUEUE_BATCH_TOKENS": "1"}
    worker = start_worker(COLQUEUE_BULK_TASKS="5", **settings)
    jobs = [submit("gated"), submit("second"), submit("third")]
    eventually(lambda: connection.hlen("unacked") == len(jobs))
    taken_at = connection.time()[0]
    eventually(lambda: connection.zcount("unacked_index", taken_at + 1.2 * timeout_s, "+inf") == len(jobs))
    connection.rpush("open", "it")
    for job_id in jobs:
        assert finished(job_id).status is JobStatus.COMPLETED
    eventually(lambda: nothing_in_hand(connection))
    assert connection.llen("runs") == 3
    assert connection.llen("ran") == 3
    assert worker.running()


def test_what_a_dead_worker_held_is_done_by_another_soon_after_the_timeout(start_worker, submit, finished, connection):
    first = start_worker()
    job_id = submit("gated")
    eventually(lambda: connection.llen("ran") == 1)
    first.signal(signal.SIGKILL)
    first.wait()
    second = start_worker()
    connection.rpush("open", "it")
    assert finished(job_id).status is JobStatus.COMPLETED
    assert connection.llen("runs") == 2
    assert second.running()


def test_a_worker_killed_while_it_looks_for_abandoned_tasks_keeps_no_other_from_it(
    start_worker, submit, finished, connection
):
    """A lock of kombu's lasts 300 s: until then tasks stayed unacknowledged, and three keys stayed in Redis."""
    first = start_worker()
    job_id = submit("gated")
    eventually(lambda: connection.llen("ran") == 1)
    first.signal(signal.SIGKILL)
    first.wait()
    connection.set("unacked_mutex", "of the one that was killed", ex=300)
    start_worker()
    connection.rpush("open", "it")
    assert finished(job_id).status is JobStatus.COMPLETED
    eventually(lambda: not connection.exists("unacked", "unacked_index"), 15)


class Mine:
    """Unpickled, it writes a file."""

    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return Path.touch, (self.path,)


def test_a_pickle_in_the_queue_is_refused_unread_and_the_worker_goes_on(
    start_worker, submit, finished, connection, app
):
    worker = start_worker()
    unpickled = worker.log.parent / "unpickled"
    for lane in Lane:
        app.send_task(TASK_NAME, (Mine(unpickled), [0]), queue=lane.value, serializer="pickle")
    job_id = submit("a")
    assert finished(job_id).status is JobStatus.COMPLETED
    eventually(lambda: nothing_in_hand(connection))
    assert worker.running()
    assert not unpickled.exists()
    assert connection.lrange("runs", 0, -1) == [f"bulk {job_id}".encode()]
