"""The reaper on a real Redis with real messages: what it queues again, what it ends, what it leaves alone.

Nothing waits for time to pass: a job and its messages are made older than they are.
"""

import base64
import json
import time
from contextlib import contextmanager

import msgpack
import pytest
import redis
from doubles import OWNER, SERVED, ask_api, read_job, read_result, rows_of, submit_texts
from stack import eventually

from api.submission import JobOptions, Submission
from shared import keys
from shared.errors import TextInvalidError
from shared.jobs import InputType, JobStatus, Lane
from shared.models import KnownModel, ServedModel
from shared.queue import celery_app, publish
from shared.settings import StoreSettings
from worker.reaper import Reaper
from worker.store import Store

TEXTS = [f"text {number}" for number in range(10)]
TASK_TOKENS = 80  # four inputs of these tests
TASK_TEXTS = 4
LONG_AGO_S = 600


@pytest.fixture
def settings(redis_url):
    return StoreSettings(_env_file=None, redis_url=redis_url, reap_after_s=60, task_tokens=TASK_TOKENS)


@pytest.fixture
def connection(redis_url):
    with redis.Redis.from_url(redis_url) as connection:
        yield connection


@pytest.fixture
def app(settings):
    app = celery_app(settings)
    yield app
    app.close()


@pytest.fixture
def open_store(settings):
    opened = []

    def open_store(kind=Store):
        opened.append(kind(settings))
        return opened[-1]

    yield open_store
    for store in opened:
        for client in (store._redis, store._impatient):  # noqa: SLF001  # a worker's store lives as long as its process
            client.close()


@pytest.fixture
def store(open_store):
    return open_store()


@pytest.fixture
def look(app, store, settings):
    return Reaper(app, store, settings).look


@pytest.fixture
def registered(settings, connection):
    """Call to register a job as if `ago_s` before now, without any task."""

    def registered(*texts, ago_s=LONG_AGO_S, **options):
        job_id = submit_texts(settings, *texts, **options)
        then = time.time() - ago_s
        connection.hset(keys.job(job_id), "created_at", then)
        connection.zadd(keys.UNFINISHED, {job_id: then})
        return job_id

    return registered


@pytest.fixture
def published(app, settings):
    """Call to queue a job's tasks as if `ago_s` before now."""

    def published(job_id, ago_s=LONG_AGO_S):
        job = read_job(settings, job_id)
        publish(app, settings, job, range(job.total), queued_at=time.time() - ago_s)
        return job_id

    return published


@pytest.fixture
def grown_quiet(connection):
    """Call to make the last sign of life of a job so old that the reaper takes it up."""
    return lambda job_id: connection.zadd(keys.UNFINISHED, {job_id: time.time() - LONG_AGO_S}, xx=True)


def queued(connection, lane=Lane.BULK):
    """The tasks in a queue, next in turn first: (job, inputs)."""
    messages = map(json.loads, reversed(connection.lrange(lane.value, 0, -1)))
    return [tuple(msgpack.unpackb(base64.b64decode(message["body"]))[0]) for message in messages]


def open_jobs(connection):
    return {job_id.decode() for job_id in connection.zrange(keys.UNFINISHED, 0, -1)}


@contextmanager
def taken(app, lane=Lane.BULK):
    """Hold the task next in turn as a worker does: taken and not acknowledged; on leaving it goes back."""
    with app.connection_for_read() as held, held.channel() as channel:
        message = channel.basic_get(lane.value)
        assert message is not None
        yield


def test_inputs_that_the_broker_lost_are_queued_again_and_no_other(look, store, registered, connection):
    job_id = registered(*TEXTS)
    store.save(job_id, {0: rows_of(b"a"), 5: rows_of(b"b"), 7: TextInvalidError("cannot be read")})
    connection.zadd(keys.UNFINISHED, {job_id: time.time() - LONG_AGO_S})
    assert look() == 7
    tasks = queued(connection)
    assert {job for job, _ in tasks} == {job_id}
    assert [index for _, indices in tasks for index in indices] == [1, 2, 3, 4, 6, 8, 9]
    assert all(len(indices) <= TASK_TEXTS for _, indices in tasks)
    assert queued(connection, Lane.INTERACTIVE) == []


def test_a_lost_job_goes_back_to_its_own_lane(look, registered, connection):
    job_id = registered("a", lane=Lane.INTERACTIVE)
    assert look() == 1
    assert queued(connection, Lane.INTERACTIVE) == [(job_id, [0])]
    assert queued(connection) == []


def test_a_task_that_vanished_after_it_was_published_is_queued_again(look, registered, published, connection):
    """As when a worker is killed between taking it and recording that it did."""
    job_id = published(registered("a", "b"))
    assert look() == 0
    assert connection.brpop(["bulk"])
    assert look() == 2
    assert queued(connection) == [(job_id, [0, 1])]


def test_a_job_whose_task_waits_in_the_queue_is_left_alone(look, registered, published, connection):
    job_id = published(registered(*TEXTS))
    before = queued(connection)
    assert look() == 0
    assert queued(connection) == before
    assert open_jobs(connection) == {job_id}


def test_a_job_whose_task_waits_behind_those_of_others_is_left_alone(look, registered, published, connection):
    published(registered(*TEXTS, ago_s=2 * LONG_AGO_S), ago_s=2 * LONG_AGO_S)
    published(registered(*TEXTS))
    before = queued(connection)
    assert look() == 0
    assert queued(connection) == before


def test_a_lost_job_among_older_tasks_is_queued_again_once_those_are_taken(look, registered, published, connection):
    """Until then nothing tells it from one that waits behind them."""
    published(registered("older", ago_s=2 * LONG_AGO_S), ago_s=2 * LONG_AGO_S)
    lost = registered("lost")
    published(registered("younger", ago_s=LONG_AGO_S / 2), ago_s=LONG_AGO_S / 2)
    assert look() == 0
    assert connection.rpop("bulk")
    connection.zrem(keys.UNFINISHED, *(open_jobs(connection) - {lost}))
    assert look() == 1
    assert queued(connection)[-1] == (lost, [0])


def test_a_job_that_a_worker_holds_is_left_alone_also_when_its_task_goes_back(
    app, look, registered, published, connection
):
    job_id = published(registered("a"))
    with taken(app):
        assert connection.hlen("unacked") == 1
        assert queued(connection) == []
        assert look() == 0
        assert queued(connection) == []
    assert queued(connection) == [(job_id, [0])]
    assert look() == 0
    assert queued(connection) == [(job_id, [0])]


def test_what_a_worker_holds_of_a_job_is_left_to_it_and_the_rest_is_queued_again(
    app, look, registered, published, connection
):
    job_id = published(registered(*TEXTS))
    (_, held), *_ = queued(connection)
    with taken(app):
        connection.delete("bulk")
        assert look() == len(TEXTS) - len(held)
        again = {index for job, indices in queued(connection) if job == job_id for index in indices}
        assert again == set(range(len(TEXTS))) - set(held)


def test_a_job_with_a_recent_sign_of_life_is_left_alone(look, store, registered, connection):
    """Its api may still be publishing, or a worker has just begun or saved something."""
    fresh, begun = registered("a", ago_s=0), registered("b")
    store.begin(begun, [0], SERVED)
    assert look() == 0
    assert queued(connection) == []
    assert open_jobs(connection) == {fresh, begun}


def test_two_looks_in_a_row_queue_nothing_twice(look, registered, grown_quiet, connection):
    """Neither at once nor when the job has been quiet for long again: then its tasks are seen in the queue."""
    job_id = registered(*TEXTS)
    assert look() == len(TEXTS)
    before = queued(connection)
    assert look() == 0
    grown_quiet(job_id)
    assert look() == 0
    assert queued(connection) == before


def test_what_is_lost_a_second_time_is_queued_a_second_time(look, registered, grown_quiet, connection):
    job_id = registered("a")
    assert look() == 1
    connection.delete("bulk")
    grown_quiet(job_id)
    assert look() == 1
    assert queued(connection) == [(job_id, [0])]


def finish(store, job_id):
    store.save(job_id, {0: rows_of(b"a")})


def cancel(store, job_id):
    ask_api(store._settings, lambda api: api.cancel(job_id))  # noqa: SLF001


def forget(store, job_id):
    store._redis.delete(keys.job(job_id))  # noqa: SLF001


@pytest.mark.parametrize("end", [finish, cancel, forget])
def test_a_job_that_is_no_longer_open_is_struck_off(end, look, store, registered, connection):
    job_id = registered("a")
    end(store, job_id)
    connection.zadd(keys.UNFINISHED, {job_id: time.time() - LONG_AGO_S})
    assert look() == 0
    assert open_jobs(connection) == set()
    assert queued(connection) == []


def test_a_job_past_its_deadline_is_ended(settings, look, store, registered, connection):
    job_id = registered("a", "b", "c", deadline_s=1e-6)
    store.save(job_id, {1: rows_of(b"b")})
    connection.zadd(keys.UNFINISHED, {job_id: time.time() - LONG_AGO_S})
    assert look() == 2
    job = read_job(settings, job_id)
    assert (job.status, job.completed, job.failed) == (JobStatus.COMPLETED, 1, 2)

    async def ask(api):
        return await read_result(api, job_id)

    failures = [(failure.index, failure.code) for failure in ask_api(settings, ask).failures]
    assert failures == [(0, "deadline_exceeded"), (2, "deadline_exceeded")]
    assert queued(connection) == []
    assert not connection.exists(keys.UNFINISHED, keys.payloads(job_id))


def test_a_job_past_its_deadline_is_ended_also_while_its_task_waits(settings, look, registered, published, connection):
    job_id = published(registered("a", deadline_s=1e-6))
    assert look() == 1
    assert read_job(settings, job_id).status is JobStatus.FAILED
    assert queued(connection) == [(job_id, [0])]


def test_one_worker_at_a_time_looks_and_another_takes_over(open_store, connection):
    first, second = open_store(), open_store()
    assert first.take_reaping(300)
    assert not second.take_reaping(300)
    assert 0 < connection.pttl(keys.REAPER) <= 300_000
    connection.pexpire(keys.REAPER, 1)  # as if the first had not looked again in time
    eventually(lambda: second.take_reaping(300))
    assert not first.take_reaping(300)


def test_the_list_of_open_jobs_is_empty_when_all_are_done_and_expires_in_any_case(
    settings, store, registered, connection
):
    done, failed, cancelled = registered("a"), registered("b"), registered("c")
    assert 0 < connection.ttl(keys.UNFINISHED) <= settings.job_ttl_s + settings.result_ttl_s + settings.record_ttl_s
    assert open_jobs(connection) == {done, failed, cancelled}
    store.save(done, {0: rows_of(b"a")})
    store.save(failed, {0: TextInvalidError("cannot be read")})
    ask_api(settings, lambda api: api.cancel(cancelled))
    assert not connection.exists(keys.UNFINISHED)


class FinishedMeanwhile(Store):
    """The job is finished while the reaper looks at it."""

    def undone(self, job):
        self.save(job.id, {index: rows_of(b"a") for index in range(job.total)})
        return super().undone(job)


class ForgottenMeanwhile(Store):
    """The job is finished, fetched and forgotten while the reaper looks at it."""

    def undone(self, job):
        self.save(job.id, {index: rows_of(b"a") for index in range(job.total)})
        ask_api(self._settings, lambda api: api.forget(job, OWNER))
        return super().undone(job)


def test_a_job_that_finishes_while_it_is_looked_at_does_not_end_the_reaper(
    app, settings, open_store, registered, connection
):
    registered("a", "b")
    assert Reaper(app, open_store(FinishedMeanwhile), settings).look() == 0
    assert queued(connection) == []


def test_a_job_that_is_forgotten_while_it_is_looked_at_leaves_no_key(app, settings, open_store, registered, connection):
    job_id = registered("a", "b")
    Reaper(app, open_store(ForgottenMeanwhile), settings).look()
    assert not connection.exists(keys.job(job_id), keys.UNFINISHED)


def test_a_backlog_that_waits_hides_neither_lost_work_nor_a_deadline(  # noqa: PLR0913, PLR0917 each is a fixture
    look, registered, published, connection, settings, monkeypatch
):
    """The quietest jobs merely wait; behind them, one has lost its tasks and one is late."""
    monkeypatch.setattr("worker.reaper.QUIET_JOBS", 10)
    monkeypatch.setattr("worker.store.QUIET_JOBS", 10)
    for number in range(35):
        age_s = LONG_AGO_S + 100 - number
        published(registered("a", ago_s=age_s), ago_s=age_s)
    lost = registered("b", owner="unlucky", ago_s=LONG_AGO_S)
    late = registered("c", owner="late", ago_s=LONG_AGO_S - 1)
    connection.zadd(keys.DEADLINES, {late: 1})
    assert look() == 1
    assert read_job(settings, late, "late").status is JobStatus.FAILED
    assert sum(look() for _ in range(4)) == 1
    assert connection.hexists(keys.job(lost), "queued_at")
    assert sum(look() for _ in range(4)) == 0


def test_a_job_whose_record_cannot_be_read_hides_no_other(look, registered, connection, settings):
    broken, lost = registered("a", ago_s=LONG_AGO_S + 1), registered("b")
    connection.hdel(keys.job(broken), "input_type")
    assert look() == 1
    assert connection.hexists(keys.job(lost), "queued_at")
    connection.zadd(keys.DEADLINES, {broken: 1, lost: 2})
    assert look() == 1
    assert read_job(settings, lost).status is JobStatus.FAILED


def test_the_list_of_deadlines_holds_unfinished_jobs_only(look, store, settings, connection):
    done, cancelled, late = (submit_texts(settings, "a", deadline_s=300) for _ in range(3))
    assert connection.zcard(keys.DEADLINES) == 3
    assert connection.zscore(keys.DEADLINES, late) == pytest.approx(time.time() + 300, abs=20)
    assert connection.ttl(keys.DEADLINES) > 0
    store.save(done, {0: rows_of(b"a")})
    ask_api(settings, lambda api: api.cancel(cancelled))
    assert connection.zrange(keys.DEADLINES, 0, -1) == [late.encode()]
    connection.zadd(keys.DEADLINES, {late: 1, "gone": 1})
    assert look() == 1
    assert not connection.exists(keys.DEADLINES)


def announce_model(connection, model, *, silent_s):
    seen_at = time.time() - silent_s
    known = KnownModel(**model.model_dump(), first_ready_at=seen_at, last_ready_at=seen_at)
    connection.hset(keys.MODELS, model.model_id, known.model_dump_json())


def cancel_with_its_task_in_the_queue(settings, app, model):
    """Return the queue of a cancelled job whose task nobody has taken."""
    submission = Submission(InputType.TEXT, [b"a"], JobOptions(), model=model)
    job = ask_api(settings, lambda api: api.create(submission, Lane.BULK, OWNER))
    publish(app, settings, job, [0])
    ask_api(settings, lambda api: api.cancel(job.id))
    return job.queue


def test_tasks_for_a_model_that_is_gone_for_good_do_not_stay_in_its_queues(look, app, settings, connection):
    gone, served = ServedModel(name="m", model_id="901e"), ServedModel(name="m", model_id="5e12ed")
    announce_model(connection, gone, silent_s=7200)
    announce_model(connection, served, silent_s=0)
    left, kept = (cancel_with_its_task_in_the_queue(settings, app, model) for model in (gone, served))
    look()
    assert connection.llen(left) == 1, "its workers may come back"
    connection.set(keys.model_gone_since(gone.model_id), time.time() - settings.model_gone_s - 60)
    look()
    assert connection.llen(left) == 0
    assert connection.llen(kept) == 1
