"""What waits is counted exactly, bounds what is taken, and is taken off whatever becomes of it."""

import asyncio
import random
from dataclasses import replace

import pytest
import redis
from doubles import OWNER, ROOM, ask_api, read_job, rows_of

from api.store import Budget
from api.submission import JobOptions, Submission
from shared import keys
from shared.errors import QueueFullError, RateLimitedError, TextInvalidError
from shared.jobs import InputType, Lane
from shared.queue import celery_app
from shared.settings import StoreSettings
from worker.reaper import Reaper
from worker.store import Store

FAILURE = TextInvalidError("cannot be read")
TEN = Budget(max_inputs=10, max_bytes=10**6)


@pytest.fixture
def settings(redis_url):
    return StoreSettings(_env_file=None, redis_url=redis_url, reap_after_s=60)


@pytest.fixture
def connection(redis_url):
    with redis.Redis.from_url(redis_url) as connection:
        yield connection


@pytest.fixture
def store(settings):
    store = Store(settings)
    yield store
    for client in (store._redis, store._impatient):  # noqa: SLF001  # a worker's store lives as long as its process
        client.close()


@pytest.fixture
def submit(settings):
    """Call to submit a number of texts; returns the job."""

    def submit(number, owner=OWNER, *, lane=Lane.BULK, budget=ROOM, key=None, text=b"text"):  # noqa: PLR0913 all have defaults but the first
        submission = Submission(InputType.TEXT, [text] * number, JobOptions())
        return ask_api(settings, lambda api: api.create(submission, lane, owner, key), budget)

    return submit


@pytest.fixture
def backlog(settings):
    """Call to read inputs and bytes of the lanes, interactive first."""

    def backlog():
        lanes = ask_api(settings, lambda api: api.backlogs())
        return [(lanes[lane].inputs, lanes[lane].bytes) for lane in Lane]

    return backlog


@pytest.fixture
def look(settings, store):
    app = celery_app(settings)
    yield Reaper(app, store, settings).look
    app.close()


@pytest.fixture
def drained(connection):
    """Call to make it seem that a lane drains so many inputs and bytes a second, in the last minute and in the next."""

    def drained(lane, inputs, n_bytes):
        now = connection.time()[0] // 5
        for period in range(now - 12, now + 13):
            connection.hset(keys.drained(period), mapping={f"{lane} inputs": inputs * 5, f"{lane} bytes": n_bytes * 5})

    return drained


def refused(call, error=QueueFullError):
    """Return the seconds after which the refused caller is told to come back."""
    with pytest.raises(error) as caught:
        call()
    return caught.value.retry_after_s


def nothing_counted(connection):
    return not connection.exists(keys.BACKLOG)


def test_what_waits_is_counted_by_lane_until_it_is_done(submit, store, backlog, connection):
    pages, queries = submit(3, text=b"0123456789"), submit(2, lane=Lane.INTERACTIVE)
    assert backlog() == [(2, 8), (3, 30)]
    store.save(pages.id, {0: rows_of(b"a"), 2: FAILURE})
    assert backlog() == [(2, 8), (1, 10)]
    store.save(pages.id, {0: rows_of(b"a"), 1: rows_of(b"b")})
    assert backlog() == [(2, 8), (0, 0)]
    store.save(queries.id, dict.fromkeys(range(2), FAILURE))
    assert nothing_counted(connection)


def test_a_cancelled_job_takes_off_what_it_still_lacked(submit, settings, store, backlog, connection):
    first, second = submit(5), submit(7)
    store.save(first.id, {4: rows_of(b"a")})
    assert ask_api(settings, lambda api: api.cancel(first.id))
    assert backlog() == [(0, 0), (7, 28)]
    assert not ask_api(settings, lambda api: api.cancel(first.id))
    store.save(first.id, {0: rows_of(b"a")})
    assert backlog() == [(0, 0), (7, 28)]
    ask_api(settings, lambda api: api.cancel(second.id))
    assert nothing_counted(connection)


def test_bytes_of_payloads_that_expired_are_taken_off_with_their_job(submit, store, backlog, connection):
    job, other = submit(3), submit(1)
    store.save(job.id, {0: rows_of(b"a")})
    connection.delete(keys.payloads(job.id))
    store.save(job.id, {1: FAILURE})
    store.save(job.id, {2: FAILURE})
    assert backlog() == [(0, 0), (1, 4)]
    store.save(other.id, {0: FAILURE})
    assert nothing_counted(connection)


def test_a_job_past_its_deadline_is_taken_off_by_the_reaper(settings, submit, look, connection):
    job = submit(3)
    connection.hset(keys.job(job.id), "deadline_at", 1)
    connection.zadd(keys.UNFINISHED, {job.id: 1})
    assert look() == 3
    assert read_job(settings, job.id).finished
    assert nothing_counted(connection)


def test_a_record_that_expired_unfinished_is_taken_off_once_a_worker_looks_again(
    submit, look, store, backlog, connection
):
    """Where no worker ran for longer than a record is kept."""
    gone, kept = submit(3), submit(4, owner="other", lane=Lane.INTERACTIVE)
    store.save(kept.id, {0: rows_of(b"a")})
    before = connection.hgetall(keys.BACKLOG)
    connection.zadd(keys.UNFINISHED, {gone.id: 1})
    connection.delete(keys.job(gone.id))
    look()
    assert backlog() == [(3, 12), (0, 0)]
    assert connection.hgetall(keys.BACKLOG).items() < before.items()
    assert connection.ttl(keys.BACKLOG) > 0
    store.save(kept.id, dict.fromkeys(range(4), FAILURE))
    assert nothing_counted(connection)


def test_a_reply_that_was_lost_and_asked_for_again_counts_once(settings, backlog, monkeypatch):
    """The driver repeats the call over a fresh connection."""
    submission = Submission(InputType.TEXT, [b"text"] * 3, JobOptions())

    async def ask(api):
        once = api._create  # noqa: SLF001

        async def twice(**call):
            await once(**call)
            return await once(**call)

        monkeypatch.setattr(api, "_create", twice)
        return await api.create(submission, Lane.BULK, OWNER)

    job = ask_api(settings, ask)
    assert read_job(settings, job.id) == job
    assert backlog() == [(0, 0), (3, 12)]


def test_after_any_mixture_of_ends_the_count_is_that_of_what_is_left_and_then_nothing(  # noqa: PLR0913, PLR0917
    settings, submit, store, look, backlog, connection
):
    choose = random.Random(7)  # noqa: S311
    jobs = [
        submit(choose.randint(1, 6), owner=choose.choice("abcdefghijk"), lane=choose.choice(list(Lane)))
        for _ in range(60)
    ]
    for job in jobs:
        for index in choose.sample(range(job.total), choose.randint(0, job.total)):
            store.save(job.id, {index: choose.choice([FAILURE, rows_of(b"a")])})
        if choose.random() < 0.3:
            ask_api(settings, lambda api, job=job: api.cancel(job.id))
    left = [job for job in (read_job_of(settings, connection, job) for job in jobs) if not job.finished]
    assert [inputs for inputs, _ in backlog()] == [
        sum(job.total - job.completed - job.failed for job in left if job.lane is lane) for lane in Lane
    ]
    for job in left:
        connection.hset(keys.job(job.id), "deadline_at", 1)
        connection.zadd(keys.UNFINISHED, {job.id: 1})
    look()
    assert nothing_counted(connection)


def read_job_of(settings, connection, job):
    owner = connection.hget(keys.job(job.id), "owner").decode()
    return ask_api(settings, lambda api: api.job(job.id, owner))


def test_beyond_the_budget_of_inputs_a_job_is_refused_and_nothing_of_it_stays(submit, store, connection):
    first = submit(5, budget=TEN)
    before = set(connection.scan_iter())
    refused(lambda: submit(1, budget=TEN))
    assert set(connection.scan_iter()) == before
    store.save(first.id, dict.fromkeys(range(5), FAILURE))
    assert submit(5, budget=TEN).total == 5


def test_beyond_the_budget_of_bytes_likewise(submit):
    budget = replace(TEN, max_inputs=1000, max_bytes=100)
    submit(2, budget=budget, text=bytes(20))
    refused(lambda: submit(1, budget=budget, text=bytes(21)))
    submit(1, budget=budget, text=bytes(20))


def test_redis_filling_up_refuses_a_backfill_before_it_refuses_queries(submit, connection):
    submit(1)
    connection.config_set("maxmemory", int(connection.info("memory")["used_memory"] / 0.85))
    try:
        refused(lambda: submit(1))
        submit(1, lane=Lane.INTERACTIVE)
    finally:
        connection.config_set("maxmemory", 0)


def test_a_lane_without_work_takes_any_one_job(submit):
    assert submit(11, budget=TEN).total == 11


def test_a_full_lane_leaves_the_other_one_open(submit):
    submit(10, budget=TEN)
    refused(lambda: submit(1, "other", budget=TEN))
    assert submit(1, budget=TEN, lane=Lane.INTERACTIVE).total == 1


def test_an_owner_may_hold_as_much_as_is_free_so_that_a_newcomer_finds_room(submit):
    submit(5, "heavy", budget=TEN)
    refused(lambda: submit(1, "heavy", budget=TEN))
    submit(2, "light", budget=TEN)
    refused(lambda: submit(1, "light", budget=replace(TEN, max_inputs=9)))
    submit(3, "newcomer", budget=TEN)


def test_a_flood_cannot_race_past_the_budget_and_the_refused_leave_nothing(settings, backlog, connection):
    """All have asked for room before the first is registered."""
    budget = Budget(max_inputs=40, max_bytes=10**6)
    submission = Submission(InputType.TEXT, [b"text"], JobOptions())

    async def ask(api):
        async def submit(owner):
            try:
                return await api.create(submission, Lane.BULK, owner)
            except QueueFullError:
                return None

        return await asyncio.gather(*(submit(owner) for owner in "ab" * 200))

    taken = [job for job in ask_api(settings, ask, budget) if job is not None]
    assert 20 <= len(taken) <= 40
    assert backlog()[1] == (len(taken), 4 * len(taken))
    kept = {key.decode() for key in connection.scan_iter("colqueue:job:*")}
    assert kept == {name(job.id) for job in taken for name in (keys.job, keys.payloads)}


def test_an_idempotency_key_seen_before_is_answered_also_by_a_full_queue(submit):
    first = submit(10, budget=TEN, key="k")
    refused(lambda: submit(10, budget=TEN))
    assert submit(10, budget=TEN, key="k").id == first.id


def test_who_is_refused_is_told_to_come_back_when_enough_has_drained_at_the_measured_rate(submit, drained):
    budget = Budget(max_inputs=100, max_bytes=1000)
    submit(100, budget=budget, text=b"")
    assert refused(lambda: submit(20, "other", budget=budget, text=b"")) == 5
    drained(Lane.BULK, 2, 50)
    assert refused(lambda: submit(20, "other", budget=budget, text=b"")) == 10
    assert refused(lambda: submit(2, "other", budget=budget, text=bytes(750))) == 10
    assert refused(lambda: submit(1, "other", budget=budget, text=b"")) == 1
    assert refused(lambda: submit(1000, "other", budget=budget, text=b"")) == 60


def test_what_is_done_is_what_the_rate_is_measured_by(submit, store, connection):
    budget = Budget(max_inputs=400, max_bytes=10**6)
    first = submit(200, budget=budget)
    store.save(first.id, {index: rows_of(b"a") for index in range(100)})
    (period,) = connection.scan_iter(keys.drained("*"))
    assert connection.hgetall(period) == {b"bulk inputs": b"100", b"bulk bytes": b"400"}
    assert 0 < connection.ttl(period) <= 120
    # 100 in one or more periods of five seconds; 100 + 250 of 400 are there, 50 of 300 have no room.
    assert refused(lambda: submit(400, "other", budget=budget)) in range(5, 61, 5)


def test_a_cancelled_flood_is_no_measure_of_how_fast_a_lane_drains(settings, submit, connection):
    job = submit(200)
    ask_api(settings, lambda api: api.cancel(job.id))
    assert list(connection.scan_iter(keys.drained("*"))) == []


def test_a_key_may_have_so_many_inputs_unfinished_in_each_lane(submit, store):
    budget = replace(ROOM, key_max_inputs=5)
    first = submit(4, budget=budget)
    refused(lambda: submit(2, budget=budget), RateLimitedError)
    submit(1, budget=budget)
    submit(1, budget=budget, lane=Lane.INTERACTIVE)
    submit(5, "other", budget=budget)
    store.save(first.id, dict.fromkeys(range(4), FAILURE))
    submit(4, budget=budget)


def test_a_key_may_submit_so_often_a_minute_and_is_told_when_again(submit, connection):
    budget = replace(ROOM, key_per_minute=1)
    submit(1, budget=budget)
    assert 1 <= refused(lambda: submit(1, budget=budget), RateLimitedError) <= 60
    submit(1, "other", budget=budget)
    # A minute later there is room for one more, and for one only.
    used_until = float(connection.get(keys.submission_rate(OWNER)))
    assert 0 < used_until - connection.time()[0] <= 61
    connection.set(keys.submission_rate(OWNER), used_until - 60)
    submit(1, budget=budget)
    refused(lambda: submit(1, budget=budget), RateLimitedError)


def test_a_repeat_under_an_idempotency_key_counts_against_the_rate(submit):
    budget = replace(ROOM, key_per_minute=2)
    first = submit(1, budget=budget, key="k")
    assert submit(1, budget=budget, key="k").id == first.id
    refused(lambda: submit(1, budget=budget, key="k"), RateLimitedError)
    refused(lambda: submit(1, budget=budget), RateLimitedError)


def test_a_reply_that_was_lost_and_asked_for_again_does_not_count_against_the_rate(settings, monkeypatch):
    submission = Submission(InputType.TEXT, [b"text"], JobOptions())

    async def ask(api):
        once = api._create  # noqa: SLF001

        async def twice(**call):
            await once(**call)
            return await once(**call)

        monkeypatch.setattr(api, "_create", twice)
        return [(await api.create(submission, Lane.BULK, OWNER, f"key {number}")).id for number in range(3)]

    budget = replace(ROOM, key_per_minute=3)
    assert len(set(ask_api(settings, ask, budget))) == 3


def test_owners_with_work_have_a_queue_each_and_keep_it_while_they_have_some(submit, store):
    first = submit(9, "a")
    others = [submit(1, owner) for owner in "bcdefgh"]
    assert sorted({first.queue, *(job.queue for job in others)}) == sorted(Lane.BULK.queues)
    assert submit(1, "a").queue == first.queue
    # The ninth shares with one that has little to do, never with the heavy one while others have less.
    assert submit(1, "i").queue != first.queue
    store.save(others[0].id, {0: FAILURE})
    assert submit(1, "j").queue == others[0].queue


def test_a_newcomer_does_not_wait_behind_the_tasks_of_cancelled_jobs(settings, submit, connection):
    job = submit(2)
    connection.lpush(job.queue, "task", "task")
    ask_api(settings, lambda api: api.cancel(job.id))
    assert submit(1, "other").queue != job.queue


def test_a_queue_belongs_to_the_jobs_lane(submit):
    assert submit(1, lane=Lane.INTERACTIVE).queue == "interactive"
    assert submit(1).queue == "bulk"
    assert submit(1, "other").queue == "bulk.1"
