"""The scripts on a real server, through both sides of the store: what lies in Redis after each, and for how long."""

import threading
import time

import pytest
import redis
from doubles import OWNER, SERVED, ask_api, read_job, read_result, rows_of, submit_texts

from shared import keys
from shared.errors import InputError, QueueFullError, ResultExpiredError, TextInvalidError
from shared.jobs import JobStatus
from shared.settings import StoreSettings
from worker.store import Store

FAILURE = TextInvalidError("cannot be read")
# Different numbers, so that each key's time to live tells which it was given.
JOB_TTL_S, RESULT_TTL_S, RECORD_TTL_S = 1000, 100, 500


@pytest.fixture
def settings(redis_url):
    return StoreSettings(
        _env_file=None, redis_url=redis_url, job_ttl_s=JOB_TTL_S, result_ttl_s=RESULT_TTL_S, record_ttl_s=RECORD_TTL_S
    )


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


def outcomes(*indices):
    return {index: rows_of(b"%d" % index) for index in indices}


def cancel(settings, job_id):
    return ask_api(settings, lambda api: api.cancel(job_id))


def result(settings, job_id):
    return ask_api(settings, lambda api: _result(api, job_id))


async def _result(api, job_id):
    return await read_result(api, job_id)


def in_parallel(*calls):
    """Call all at the same moment, each on its own thread; return what they returned."""
    barrier, returned = threading.Barrier(len(calls)), {}

    def call(number):
        barrier.wait(60)
        returned[number] = calls[number]()

    threads = [threading.Thread(target=call, args=(number,)) for number in range(len(calls))]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(120)
    return [returned[number] for number in range(len(calls))]


def announced(connection, job_id):
    return sum(fields[b"job"] == job_id.encode() for _, fields in connection.xrange(keys.ANNOUNCEMENTS))


def endless(connection):
    return {key.decode() for key in connection.scan_iter() if connection.ttl(key) == -1}


def created(settings, _):
    return submit_texts(settings, "a", "b", "c")


def created_with_a_key(settings, _):
    submit_texts(settings, "a", "b", "c", key="k")
    return submit_texts(settings, "a", "b", "c", key="k")


def running(settings, store):
    job_id = created(settings, store)
    store.begin(job_id, [0], SERVED)
    return job_id


def half_done(settings, store):
    job_id = running(settings, store)
    store.save(job_id, outcomes(0) | {1: FAILURE})
    return job_id


def saved_without_beginning(settings, store):
    job_id = created(settings, store)
    store.save(job_id, outcomes(0))
    return job_id


def completed(settings, store):
    job_id = half_done(settings, store)
    store.save(job_id, outcomes(2))
    return job_id


def failed(settings, store):
    job_id = created(settings, store)
    store.save(job_id, dict.fromkeys(range(3), FAILURE))
    return job_id


def fetched(settings, store):
    job_id = completed(settings, store)
    job = read_job(settings, job_id)
    ask_api(settings, lambda api: api.forget(job, OWNER))
    return job_id


def cancelled(settings, store):
    job_id = created(settings, store)
    cancel(settings, job_id)
    return job_id


def cancelled_half_done(settings, store):
    job_id = half_done(settings, store)
    cancel(settings, job_id)
    return job_id


def finished_and_touched_again(settings, store):
    job_id = completed(settings, store)
    store.save(job_id, outcomes(0, 1, 2))
    cancel(settings, job_id)
    store.begin(job_id, [0, 1, 2], SERVED)
    return job_id


def cancelled_and_touched_again(settings, store):
    job_id = cancelled(settings, store)
    store.save(job_id, outcomes(0, 1, 2))
    store.begin(job_id, [0, 1, 2], SERVED)
    return job_id


def unknown(settings, store):
    store.save("unknown", outcomes(0))
    store.begin("unknown", [0], SERVED)
    cancel(settings, "unknown")
    return "unknown"


def a_worker_that_beats(_, store):
    store.beat("worker-1", {"state": "ready", "model": "fake", "model_id": "fa4e00000001"}, 15)
    store.beat("worker-2", {"state": "ready"}, 15)
    store.leave("worker-2")


@pytest.mark.parametrize(
    "scenario",
    [
        created,
        created_with_a_key,
        running,
        half_done,
        saved_without_beginning,
        completed,
        failed,
        fetched,
        cancelled,
        cancelled_half_done,
        finished_and_touched_again,
        cancelled_and_touched_again,
        unknown,
        a_worker_that_beats,
    ],
)
def test_no_key_lives_for_ever(settings, store, connection, scenario):
    """But the stream of announcements, which has a bound of its own."""
    scenario(settings, store)
    assert endless(connection) <= {keys.ANNOUNCEMENTS}
    assert scenario is unknown or connection.dbsize() > 0


def test_the_stream_of_announcements_is_bounded(settings, store, connection):
    job_id = created(settings, store)
    with connection.pipeline(transaction=False) as pipe:
        for _ in range(11_000):
            pipe.xadd(keys.ANNOUNCEMENTS, {"job": "x"})
        pipe.execute()
    store.save(job_id, outcomes(0))
    assert 9_000 < connection.xlen(keys.ANNOUNCEMENTS) <= 10_100


def times_to_live(connection, job_id):
    names = {"job": keys.job, "payloads": keys.payloads, "results": keys.results, "failures": keys.failures}
    return {name: connection.ttl(key(job_id)) for name, key in names.items() if connection.exists(key(job_id))}


FORGOTTEN_S = JOB_TTL_S + RESULT_TTL_S + RECORD_TTL_S


@pytest.mark.parametrize(
    ("scenario", "expected"),
    [
        (created, {"job": FORGOTTEN_S, "payloads": JOB_TTL_S}),
        (running, {"job": FORGOTTEN_S, "payloads": JOB_TTL_S}),
        (half_done, {"job": FORGOTTEN_S, "payloads": JOB_TTL_S, "results": JOB_TTL_S, "failures": JOB_TTL_S}),
        (completed, {"job": RESULT_TTL_S + RECORD_TTL_S, "results": RESULT_TTL_S, "failures": RESULT_TTL_S}),
        (failed, {"job": RESULT_TTL_S + RECORD_TTL_S, "failures": RESULT_TTL_S}),
        (fetched, {}),
        (cancelled, {"job": RECORD_TTL_S}),
        (cancelled_half_done, {"job": RECORD_TTL_S}),
        (finished_and_touched_again, {"job": 600, "results": RESULT_TTL_S, "failures": RESULT_TTL_S}),
        (cancelled_and_touched_again, {"job": RECORD_TTL_S}),
        (unknown, {}),
    ],
)
def test_everything_is_kept_for_as_long_as_the_settings_say_and_no_longer(
    settings, store, connection, scenario, expected
):
    job_id = scenario(settings, store)
    kept = times_to_live(connection, job_id)
    assert set(kept) == set(expected)
    assert all(expected[name] - 10 <= kept[name] <= expected[name] for name in kept), kept


def test_payloads_go_with_their_outcome_and_not_before(settings, store, connection):
    job_id = running(settings, store)
    assert connection.hgetall(keys.payloads(job_id)) == {b"0": b"a", b"1": b"b", b"2": b"c"}
    store.save(job_id, outcomes(1) | {2: FAILURE})
    assert connection.hgetall(keys.payloads(job_id)) == {b"0": b"a"}


def test_a_job_goes_through_its_states_and_each_change_is_announced_once(settings, store, connection):
    started = time.time()
    job_id = created(settings, store)
    job = read_job(settings, job_id)
    assert (job.status, job.total, job.completed, job.failed) == (JobStatus.QUEUED, 3, 0, 0)
    assert started - 1 < job.created_at.timestamp() < time.time() + 1
    assert job.expires_at.timestamp() == pytest.approx(job.created_at.timestamp() + JOB_TTL_S, abs=1)
    assert announced(connection, job_id) == 0

    store.begin(job_id, [0], SERVED)
    store.begin(job_id, [1, 2], SERVED)
    job = read_job(settings, job_id)
    assert job.status is JobStatus.RUNNING
    assert job.created_at <= job.started_at
    assert announced(connection, job_id) == 1

    store.save(job_id, outcomes(0) | {1: FAILURE})
    job = read_job(settings, job_id)
    assert (job.status, job.completed, job.failed) == (JobStatus.RUNNING, 1, 1)
    assert job.finished_at is None
    assert announced(connection, job_id) == 2

    store.save(job_id, outcomes(2))
    job = read_job(settings, job_id)
    assert (job.status, job.completed, job.failed) == (JobStatus.COMPLETED, 2, 1)
    assert job.started_at <= job.finished_at
    assert (job.expires_at - job.finished_at).total_seconds() == pytest.approx(RESULT_TTL_S, abs=0.001)
    assert announced(connection, job_id) == 3


def test_a_job_without_any_success_has_failed(settings, store):
    assert read_job(settings, failed(settings, store)).status is JobStatus.FAILED


def test_saving_twice_counts_once_and_keeps_the_first_outcome(settings, store, connection):
    job_id = running(settings, store)
    assert store.save(job_id, outcomes(0) | {1: FAILURE}) == 2
    assert store.save(job_id, {0: FAILURE} | outcomes(1)) == 0
    assert announced(connection, job_id) == 2  # began, and the first save
    assert store.save(job_id, outcomes(0, 1, 2)) == 1
    kept = result(settings, job_id)
    assert kept.embeddings[0].tobytes() == rows_of(b"0").tobytes()
    assert kept.embeddings[1] is None
    assert [(failure.index, failure.code, failure.message) for failure in kept.failures] == [
        (1, "text_invalid", "cannot be read")
    ]


def test_eight_threads_that_save_the_same_inputs_count_each_once(settings, store):
    texts = [str(number) for number in range(50)]
    job_id = submit_texts(settings, *texts)
    counted = in_parallel(*[lambda: [store.save(job_id, outcomes(index)) for index in range(50)] for _ in range(8)])
    assert sum(map(sum, counted)) == 50
    job = read_job(settings, job_id)
    assert (job.status, job.completed, job.failed) == (JobStatus.COMPLETED, 50, 0)


def test_one_thread_fails_what_another_embeds_and_each_input_is_one_or_the_other(settings, store):
    job_id = submit_texts(settings, *map(str, range(100)))
    in_parallel(
        lambda: [store.save(job_id, outcomes(index)) for index in range(100)],
        lambda: [store.save(job_id, {index: FAILURE}) for index in reversed(range(100))],
    )
    job = read_job(settings, job_id)
    assert job.status is JobStatus.COMPLETED
    assert job.completed + job.failed == 100
    kept = result(settings, job_id)
    assert sum(rows is not None for rows in kept.embeddings) == job.completed
    assert len(kept.failures) == job.failed


def test_a_cancelled_job_takes_nothing_more(settings, store, connection):
    job_id = cancelled_half_done(settings, store)
    before = connection.hgetall(keys.job(job_id))
    assert store.save(job_id, outcomes(0, 1, 2)) == 0
    assert store.begin(job_id, [0], SERVED) is None
    assert cancel(settings, job_id) is False
    assert connection.hgetall(keys.job(job_id)) == before
    assert read_job(settings, job_id).status is JobStatus.CANCELLED


def test_a_finished_job_is_not_cancelled_and_keeps_its_result(settings, store, connection):
    job_id = completed(settings, store)
    before = connection.hgetall(keys.job(job_id)), connection.hgetall(keys.results(job_id))
    assert cancel(settings, job_id) is False
    assert store.save(job_id, dict.fromkeys(range(3), FAILURE)) == 0
    assert store.begin(job_id, [0], SERVED) is None
    assert (connection.hgetall(keys.job(job_id)), connection.hgetall(keys.results(job_id))) == before


def test_a_job_cancelled_while_it_is_saved_is_wholly_one_or_the_other(settings, store, connection):
    statuses = set()
    for number in range(60):
        job_id = submit_texts(settings, "a", "b")
        store.begin(job_id, [0, 1], SERVED)
        saves = [
            lambda job_id=job_id: store.save(job_id, outcomes(0)),
            lambda job_id=job_id: store.save(job_id, outcomes(1)),
        ]
        stop = [lambda job_id=job_id: cancel(settings, job_id)]
        in_parallel(*(stop + saves if number % 2 else saves + stop))
        job = read_job(settings, job_id)
        statuses.add(job.status)
        left = set(times_to_live(connection, job_id))
        if job.status is JobStatus.CANCELLED:
            assert left == {"job"}
        else:
            assert (job.status, job.completed) == (JobStatus.COMPLETED, 2)
            assert left == {"job", "results"}
    assert statuses <= {JobStatus.CANCELLED, JobStatus.COMPLETED}


def test_a_payload_that_expired_fails_its_input_in_place_of_leaving_it_for_ever(settings, store, connection):
    job_id = created(settings, store)
    connection.delete(keys.payloads(job_id))
    shard = store.begin(job_id, [0, 1, 2], SERVED)
    assert shard.payloads == {0: None, 1: None, 2: None}


def test_the_result_of_a_job_that_expired_is_gone_and_the_record_says_so(settings, store, connection):
    job_id = completed(settings, store)
    connection.delete(keys.results(job_id), keys.failures(job_id))
    assert read_job(settings, job_id).status is JobStatus.COMPLETED
    with pytest.raises(ResultExpiredError):
        result(settings, job_id)


def test_a_result_of_which_a_part_is_gone_is_gone(settings, store, connection):
    job_id = completed(settings, store)
    connection.delete(keys.failures(job_id))
    with pytest.raises(ResultExpiredError):
        result(settings, job_id)


def test_an_error_without_a_code_of_its_own_is_kept_as_what_it_is(settings, store):
    job_id = submit_texts(settings, "a")
    store.save(job_id, {0: InputError("wörter \0 and more")})
    (failure,) = result(settings, job_id).failures
    assert (failure.code, failure.message) == ("input_failed", "wörter \0 and more")


@pytest.fixture
def full(connection):
    """Call it to let Redis take no more."""

    def fill():
        connection.config_set("maxmemory", 1)
        with pytest.raises(redis.OutOfMemoryError):
            connection.set("more", "x")

    connection.config_set("maxmemory", 0)
    yield fill
    connection.config_set("maxmemory", 0)


def test_a_full_store_refuses_new_jobs_and_leaves_nothing_of_them(settings, connection, full):
    full()
    with pytest.raises(QueueFullError):
        submit_texts(settings, "a")
    assert connection.dbsize() == 0


def test_a_full_store_can_be_emptied_by_cancelling(settings, store, connection, full):
    job_id = created(settings, store)
    full()
    assert cancel(settings, job_id) is True
    assert read_job(settings, job_id).status is JobStatus.CANCELLED
    assert not connection.exists(keys.payloads(job_id))


def test_a_full_store_is_emptied_by_the_work_that_is_in_it(settings, store, full):
    """What comes is as a rule smaller than the payload that goes, so finishing jobs must stay possible."""
    job_id = created(settings, store)
    full()
    assert store.begin(job_id, [0, 1, 2], SERVED) is not None
    assert store.save(job_id, outcomes(0, 1, 2)) == 3
    assert read_job(settings, job_id).status is JobStatus.COMPLETED
