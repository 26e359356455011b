"""Records of 0.1.0 are read, those of a newer release are refused, and odd ones stop nobody."""

import pytest
import redis
from doubles import OWNER, SERVED, ask_api, read_job, rows_of, submit_texts
from old_release import load_records
from structlog.testing import capture_logs

from shared import keys
from shared.errors import NewerRecordError, UnreadableRecordError
from shared.jobs import JobStatus
from shared.queue import celery_app
from shared.records import READ_RECORD, RECORD_VERSION, log_skipped
from shared.settings import StoreSettings
from worker.reaper import Reaper
from worker.store import Store

# The owner of the records of 0.1.0.
FIRST_KEY = "b69361667d0067fc"
# What the record of an unfinished job has in every release.
TEXT_FIELDS = ("id", "status", "owner", "lane", "queue", "input_type")
NUMBERS = ("total", "completed", "failed", "bytes", "pool_factor")
TIMES = ("created_at", "deadline_at", "expires_at")


@pytest.fixture
def settings(redis_url):
    return StoreSettings(_env_file=None, redis_url=redis_url, reap_after_s=1)


@pytest.fixture
def connection(redis_url):
    with redis.Redis.from_url(redis_url) as connection:
        yield connection


@pytest.fixture
def store(settings):
    log_skipped.cache_clear()
    store = Store(settings)
    yield store
    for client in (store._redis, store._impatient):  # noqa: SLF001  # a worker's store lives as long as its process
        client.close()


@pytest.fixture
def reaper(settings, store):
    return Reaper(celery_app(settings), store, settings)


def make_quiet(connection):
    """Let every unfinished job be one of which nothing was heard for a long time."""
    for job_id in connection.zrange(keys.UNFINISHED, 0, -1):
        connection.zadd(keys.UNFINISHED, {job_id: 1})


def everything(connection, job_id):
    """What Redis keeps of a job and of all jobs, but for when it was last looked at."""
    kept = [keys.job(job_id), keys.payloads(job_id), keys.results(job_id), keys.failures(job_id), keys.BACKLOG]
    return [connection.hgetall(name) for name in (*kept, keys.attempts(job_id), keys.HELD)]


# The previous release


def test_each_job_of_the_previous_release_is_read(settings, connection):
    jobs = load_records(connection)
    for state, job_id in jobs.items():
        assert read_job(settings, job_id, FIRST_KEY).status == JobStatus(state)
    listed = ask_api(settings, lambda api: api.jobs(FIRST_KEY, after=None, limit=50))
    assert {job.id for job in listed} == set(jobs.values())
    assert len(ask_api(settings, lambda api: api.workers(10**6))) == 1


def test_a_worker_finishes_the_jobs_of_the_previous_release(settings, connection, store):
    jobs = load_records(connection)
    for state, indices in (("running", [1, 2]), ("queued", [0, 1])):
        shard = store.begin(jobs[state], indices, SERVED)
        assert shard is not None
        assert set(shard.payloads) == set(indices)
        store.save(jobs[state], {index: rows_of(shard.payloads[index]) for index in indices})
        assert read_job(settings, jobs[state], FIRST_KEY).status is JobStatus.COMPLETED
    assert store.begin(jobs["completed"], [0], SERVED) is None
    assert not connection.zcard(keys.UNFINISHED)


def test_the_reaper_queues_what_a_worker_of_the_previous_release_held(settings, connection, reaper):
    jobs = load_records(connection)
    connection.delete("bulk", "unacked", "unacked_index")
    make_quiet(connection)
    assert reaper.look() == 4
    assert {read_job(settings, jobs[state], FIRST_KEY).status for state in ("running", "queued")} == {
        JobStatus.RUNNING,
        JobStatus.QUEUED,
    }


def test_the_result_of_a_job_of_the_previous_release_is_answered(settings, connection):
    jobs = load_records(connection)

    async def result(api):
        return await api.result(await api.job(jobs["completed"], FIRST_KEY))

    assert [failure.code for failure in ask_api(settings, result).failures] == ["model_failed"]


# A newer release


@pytest.fixture
def newer(settings, connection):
    """A job whose record a newer release wrote."""
    job_id = submit_texts(settings, "a", "b")
    connection.hset(keys.job(job_id), "version", RECORD_VERSION + 1)
    return job_id


def test_a_record_of_a_newer_release_is_refused_and_left_alone(settings, connection, store, newer):
    before = everything(connection, newer)
    with pytest.raises(NewerRecordError, match="upgrade this process"):
        read_job(settings, newer)
    for call in (
        lambda: store.begin(newer, [0], SERVED),
        lambda: store.save(newer, {0: rows_of(b"a")}),
        lambda: store.requeue(newer),
        lambda: ask_api(settings, lambda api: api.cancel(newer)),
        lambda: ask_api(settings, lambda api: api.release(newer)),
    ):
        with pytest.raises(NewerRecordError, match="upgrade this process"):
            call()
    assert everything(connection, newer) == before


# What stops nobody


def odd_records(settings, connection):
    """Jobs that each lack a field or have an odd one, by what is wrong with them."""
    jobs = {}
    for field in (*TEXT_FIELDS, *NUMBERS, *TIMES):
        jobs[f"no {field}"] = job_id = submit_texts(settings, "a", "b")
        connection.hdel(keys.job(job_id), field)
    for field in (*NUMBERS, *TIMES, "tokens", "expected", "kept", "version"):
        jobs[f"odd {field}"] = job_id = submit_texts(settings, "a", "b")
        connection.hset(keys.job(job_id), field, "odd")
    return jobs


def test_a_script_writes_nothing_where_a_record_lacks_something(settings, connection, store):
    jobs = odd_records(settings, connection)
    for odd, job_id in jobs.items():
        before = everything(connection, job_id)
        for call in (
            lambda job_id=job_id: store.begin(job_id, [0], SERVED),
            lambda job_id=job_id: store.save(job_id, {0: rows_of(b"a")}),
            lambda job_id=job_id: store.requeue(job_id),
            lambda job_id=job_id: ask_api(settings, lambda api: api.cancel(job_id)),
        ):
            if odd == "no status":  # as good as no record
                assert not call()
            elif odd not in {"no expires_at", "odd expires_at", "odd version"}:  # no script reads these
                with pytest.raises(UnreadableRecordError):
                    call()
                assert everything(connection, job_id) == before, odd


def test_the_reaper_lists_and_metrics_go_on_beside_odd_and_newer_records(settings, connection, store, reaper, newer):
    odd = odd_records(settings, connection)
    connection.hset(keys.MODELS, mapping={"1": "no JSON", "2": "[]", "3": "{}", "4": '{"version": 99}'})
    for name, facts in (("odd", {"model": "m"}), ("newer", {"state": "ready", "model": "m", "version": 99})):
        connection.hset(keys.worker(name), mapping=facts)
        connection.zadd(keys.WORKERS, {name: connection.time()[0]})
    sound = submit_texts(settings, "a", "b")
    gone = submit_texts(settings, "a")
    connection.delete(keys.job(gone))  # its record expired, so the backlog is counted anew
    connection.delete("bulk")
    make_quiet(connection)
    connection.zadd(keys.DEADLINES, {gone: 1, newer: 1, odd["no total"]: 1})
    store.beat("sound", {"state": "ready", "model": SERVED.name, "model_id": SERVED.model_id}, 60)

    with capture_logs() as logs:
        for _ in range(3):
            make_quiet(connection)
            reaper.look()
            listed = ask_api(settings, lambda api: api.jobs(OWNER, after=None, limit=100))
            workers = ask_api(settings, lambda api: api.workers(10))
            ask_api(settings, lambda api: api.backlogs())

    assert {job.id for job in listed} >= {sound}
    assert newer not in {job.id for job in listed}
    assert set(workers) == {"sound"}
    assert [model.model_id for model in store.known_models()] == [SERVED.model_id]
    assert connection.hexists(keys.MODELS, "4"), "a newer release knows what to make of it"
    assert connection.zscore(keys.UNFINISHED, newer) is not None
    assert connection.zscore(keys.UNFINISHED, gone) is None
    assert int(connection.hget(keys.BACKLOG, "bulk * inputs")) >= 2
    skipped = [(line["record"], line["reason"]) for line in logs if line["event"] == "record.skipped"]
    assert len(skipped) == len(set(skipped)), "one line for each"
    assert {f"job {newer}", "worker odd", "worker newer"} <= {record for record, _ in skipped}


def test_each_script_checks_the_record_before_it_writes(settings):
    """A script that is added later must do so, too."""
    del settings
    from shared import registry  # noqa: PLC0415  the names are looked up in the module

    for name in ("BEGIN", "SAVE", "CANCEL", "REQUEUE", "RELEASE", "RECOUNT"):
        assert READ_RECORD in getattr(registry, name), name
