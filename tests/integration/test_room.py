"""Redis's memory is reserved for what a job will hold, and taken back exactly, whatever becomes of the job."""

import random
import time

import numpy as np
import pytest
import redis
from doubles import OWNER, ask_api, read_job, read_result

from api.submission import JobOptions, Submission
from shared import keys
from shared.errors import (
    QueueFullError,
    ResultExpiredError,
    StoreUnavailableError,
    TextInvalidError,
    TooLargeError,
)
from shared.jobs import InputType, JobStatus, Lane, OutputDtype
from shared.queue import celery_app
from shared.room import FIELD_BYTES, expected_result_bytes
from shared.settings import StoreSettings
from worker.reaper import Reaper
from worker.store import Store

FAILURE = TextInvalidError("cannot be read")
TEXT = b"a text of some length"
ROWS = np.ones((len(TEXT) + 10, 128), np.float32)


@pytest.fixture
def settings(redis_url):
    return StoreSettings(_env_file=None, redis_url=redis_url)


@pytest.fixture
def connection(redis_url):
    with redis.Redis.from_url(redis_url) as connection:
        yield connection
        connection.config_set("maxmemory", 0)


@pytest.fixture
def store(settings):
    store = Store(settings)
    yield store
    for client in (store._redis, store._impatient):  # noqa: SLF001  # a worker's store lives as long as its process
        client.close()


@pytest.fixture
def look(settings, store):
    app = celery_app(settings)
    yield Reaper(app, store, settings).look
    app.close()


@pytest.fixture
def submit(settings):
    """Call to submit a number of equal texts; returns the job's id."""

    def submit(number=1, owner=OWNER, lane=Lane.BULK, **options):
        submission = Submission(InputType.TEXT, [TEXT] * number, JobOptions.model_validate(options))
        return ask_api(settings, lambda api: api.create(submission, lane, owner)).id

    return submit


def held(connection):
    """Return the bytes that each owner holds, and those to come."""
    return {field.decode(): int(value) for field, value in connection.hgetall(keys.HELD).items()}


def expected_held(connection, owners):
    """Count anew what `held` should say, from the jobs and what is kept of them."""
    counted = {}
    for job_id, owner in owners.items():
        record = connection.hgetall(keys.job(job_id))
        is_open = record.get(b"status") in {b"queued", b"running"}
        expected, kept = int(record.get(b"expected", 0)), int(record.get(b"kept", 0))
        payloads = sum(map(len, connection.hvals(keys.payloads(job_id))))
        there = [*connection.hvals(keys.results(job_id)), *connection.hvals(keys.failures(job_id))]
        assert kept == sum(map(len, there)) + FIELD_BYTES * len(there) or not there
        if is_open or there:
            counted[owner] = counted.get(owner, 0) + payloads + expected + kept
            counted[" to come"] = counted.get(" to come", 0) + expected
    return {name: count for name, count in counted.items() if count}


def drop_record_and_results(connection, job_id):
    connection.delete(keys.job(job_id), keys.results(job_id), keys.failures(job_id))


@pytest.mark.parametrize(
    ("output_dtype", "row_bytes"), [(None, 512), ("float32", 512), ("float16", 256), ("int8", 128), ("binary", 16)]
)
def test_what_a_job_reserves_is_its_payloads_and_its_results_at_their_largest(
    submit, connection, output_dtype, row_bytes
):
    submit(3, output_dtype=output_dtype)
    expected = 3 * (FIELD_BYTES + round(len(ROWS) * row_bytes * 1.25))
    assert held(connection) == {OWNER: 3 * len(TEXT) + expected, " to come": expected}
    assert connection.ttl(keys.HELD) > 0


def test_pooling_reserves_less():
    assert expected_result_bytes([779], None, 3) == FIELD_BYTES + round(259 * 512 * 1.25)
    assert expected_result_bytes([779, 2], OutputDtype.BINARY, 1000) == 2 * (FIELD_BYTES + 20)


def test_a_result_takes_the_place_of_what_was_expected_and_what_is_left_over_goes_with_the_last(
    submit, store, connection
):
    job_id = submit(2)
    before = held(connection)
    store.save(job_id, {0: ROWS[:2]})
    size = 16 + ROWS[:2].nbytes + FIELD_BYTES
    assert held(connection) == {OWNER: before[OWNER] - len(TEXT), " to come": before[" to come"] - size}
    store.save(job_id, {1: FAILURE})
    assert set(held(connection)) == {OWNER}
    assert held(connection) == expected_held(connection, {job_id: OWNER})


def test_after_any_mixture_of_ends_what_is_held_is_that_of_what_is_left_and_then_nothing(
    settings, submit, store, look, connection
):
    choose = random.Random(3)  # noqa: S311  # a schedule, not a secret
    owners = {}
    for _ in range(60):
        owner = choose.choice("abcd")
        owners[submit(choose.randint(1, 5), owner, choose.choice(list(Lane)))] = owner
    for job_id in owners:
        total = int(connection.hget(keys.job(job_id), "total"))
        for index in choose.sample(range(total), choose.choice([0, total, choose.randint(0, total)])):
            store.save(job_id, {index: choose.choice([FAILURE, ROWS, ROWS[:1]])})
        end = choose.random()
        if end < 0.2:
            ask_api(settings, lambda api, job_id=job_id: api.cancel(job_id))
        elif end < 0.5:
            ask_api(settings, lambda api, job_id=job_id: api.release(job_id))
    assert held(connection) == expected_held(connection, owners)

    gone = next(job_id for job_id in owners if connection.zscore(keys.UNFINISHED, job_id))
    connection.zadd(keys.UNFINISHED, {gone: 1})
    connection.delete(keys.job(gone))
    look()
    del owners[gone]
    assert held(connection) == expected_held(connection, owners)

    for job_id in owners:
        connection.hset(keys.job(job_id), "deadline_at", 1)
        connection.zadd(keys.UNFINISHED, {job_id: 1}, xx=True)
    look()
    assert held(connection) == expected_held(connection, owners)
    for member, _ in connection.zscan_iter(keys.KEPT):
        connection.zadd(keys.KEPT, {member: 1})
    look()
    assert not connection.exists(keys.HELD, keys.KEPT)


def test_what_expired_is_swept_also_by_the_next_job_and_where_records_are_long_gone(submit, store, connection):
    connection.config_set("maxmemory", 10**9)
    job_id = submit()
    store.save(job_id, {0: ROWS})
    ((member, expires_at),) = connection.zrange(keys.KEPT, 0, -1, withscores=True)
    assert expires_at == pytest.approx(time.time() + 3600, abs=60)
    connection.zadd(keys.KEPT, {member: 1})
    drop_record_and_results(connection, job_id)
    submit(1, "other")
    assert OWNER not in held(connection)


def test_a_result_that_its_caller_got_at_once_holds_nothing(settings, submit, store, connection):
    job_id = submit()
    store.save(job_id, {0: ROWS})
    ask_api(settings, lambda api: forget(api, job_id))
    assert not connection.exists(keys.HELD, keys.KEPT, keys.job(job_id), keys.owned_jobs(OWNER))


async def forget(api, job_id):
    await api.forget(await api.job(job_id, OWNER), OWNER)


def test_results_cannot_fill_redis_and_one_owner_leaves_room_to_the_next(settings, submit, store, connection):
    """2.3 MB of texts became 569 MB of results, and the workers died of a full Redis."""
    used = connection.info("memory")["used_memory"]
    connection.config_set("maxmemory", int((used + 8 * 2**20) / 0.8))
    done = []

    def fill(owner):
        with pytest.raises(QueueFullError) as caught:  # noqa: PT012  # the job that is refused is the one that matters
            for _ in range(1000):
                done.append(submit(10, owner))
                store.save(done[-1], dict.fromkeys(range(10), ROWS))
        return caught.value.retry_after_s

    assert 1 <= fill(OWNER) <= 60
    first = len(done)
    assert connection.info("memory")["used_memory"] < used + 8 * 2**20
    fill("newcomer")
    assert len(done) > first + 3
    assert connection.info("memory")["used_memory"] < used + 8 * 2**20
    for job_id in done[:first]:
        ask_api(settings, lambda api, job_id=job_id: api.release(job_id))
    submit(10)


def test_what_is_to_come_counts_before_any_of_it_is_there(submit, connection):
    used = connection.info("memory")["used_memory"]
    connection.config_set("maxmemory", int((used + 8 * 2**20) / 0.8))
    with pytest.raises(QueueFullError):  # noqa: PT012  # likewise
        for _ in range(1000):
            submit(10)
    assert connection.info("memory")["used_memory"] < used + 2**20


def test_a_job_that_will_never_have_room_is_too_large(submit, connection):
    used = connection.info("memory")["used_memory"]
    connection.config_set("maxmemory", int((used + 2**20) / 0.8))
    with pytest.raises(TooLargeError):
        submit(500)
    submit(10)


def test_payloads_without_a_job_expire_soon_and_those_of_a_job_stay(settings, submit, connection):
    job_id = submit()
    assert connection.ttl(keys.payloads(job_id)) > 80_000

    async def die(api):
        ask = api._ask  # noqa: SLF001

        async def ask_for_room_only(names, asked, record):
            if not asked["only_room"]:
                raise InterruptedError
            return await ask(names, asked, record)

        api._ask = ask_for_room_only  # noqa: SLF001
        with pytest.raises(InterruptedError):
            await api.create(Submission(InputType.TEXT, [TEXT], JobOptions()), Lane.BULK, OWNER)

    ask_api(settings, die)
    left = {key.decode() for key in connection.scan_iter("colqueue:job:*:payloads")} - {keys.payloads(job_id)}
    assert [0 < connection.ttl(key) <= 60 for key in left] == [True]


def test_payloads_stay_where_a_call_is_repeated_that_registers_the_job_only_then(settings, connection):
    """The reply to the first call was lost, and Redis ran it after it had told the repeat that there is no such job."""
    submission = Submission(InputType.TEXT, [TEXT], JobOptions())

    async def repeat(api):
        job = await api.create(submission, Lane.BULK, OWNER)
        ask = api._ask  # noqa: SLF001

        async def ask_as_if_too_early(names, asked, record):
            return None if asked["only_room"] else await ask(names, asked, record)

        api._ask = ask_as_if_too_early  # noqa: SLF001
        assert await api.create(submission, Lane.BULK, OWNER, job_id=job.id) == job
        return job.id

    job_id = ask_api(settings, repeat)
    assert connection.ttl(keys.payloads(job_id)) > 60
    assert connection.hgetall(keys.payloads(job_id)) == {b"0": TEXT}


def test_a_job_whose_payloads_have_expired_before_it_was_registered_is_refused(settings, connection):
    async def be_slow(api):
        ask = api._ask  # noqa: SLF001

        async def ask_late(names, asked, record):
            if not asked["only_room"]:
                connection.delete(names[1])
            return await ask(names, asked, record)

        api._ask = ask_late  # noqa: SLF001
        await api.create(Submission(InputType.TEXT, [TEXT], JobOptions()), Lane.BULK, OWNER)

    with pytest.raises(StoreUnavailableError):
        ask_api(settings, be_slow)
    assert connection.dbsize() == 0


def test_a_released_result_is_gone_and_the_job_says_so(settings, submit, store):
    job_id = submit(2)
    ask_api(settings, lambda api: api.release(job_id))
    assert not read_job(settings, job_id).released
    store.save(job_id, {0: ROWS, 1: FAILURE})
    assert len(ask_api(settings, lambda api: read_result(api, job_id)).embeddings) == 2
    for _ in range(2):
        ask_api(settings, lambda api: api.release(job_id))
        job = read_job(settings, job_id)
        assert (job.status, job.completed, job.failed, job.released) == (JobStatus.COMPLETED, 1, 1, True)
        with pytest.raises(ResultExpiredError):
            ask_api(settings, lambda api: read_result(api, job_id))


def test_a_job_of_an_older_release_ends_without_taking_anything_off(submit, store, connection):
    old, new = submit(), submit()
    connection.hdel(keys.job(old), "expected", "kept")
    connection.delete(keys.HELD)
    connection.hset(keys.HELD, mapping={OWNER: 100, " to come": 50})
    store.save(old, {0: ROWS})
    assert held(connection) == {OWNER: 100, " to come": 50}
    assert not connection.exists(keys.KEPT)
    store.save(new, {0: ROWS})
