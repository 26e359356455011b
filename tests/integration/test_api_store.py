import asyncio
import socket
import time

import numpy as np
import pytest
import redis
from celery.signals import after_task_publish
from doubles import OWNER, ask_api, read_job, read_result, rows_of, submit_texts
from proxy import SilentProxy

from api.submission import JobOptions, Submission
from colqueue_client.launch.local_redis import LocalRedis
from colqueue_client.launch.ports import free_port
from shared import keys
from shared.errors import (
    IdempotencyKeyReusedError,
    JobCancelledError,
    JobNotFoundError,
    QueueFullError,
    StoreUnavailableError,
    UnavailableError,
)
from shared.jobs import InputType, JobStatus, Lane, OutputDtype
from shared.queue import celery_app, publish
from shared.settings import StoreSettings
from worker.store import Store as WorkerStore


@pytest.fixture
def settings(redis_url):
    return StoreSettings(_env_file=None, redis_url=redis_url)


@pytest.fixture
def connection(redis_url):
    with redis.Redis.from_url(redis_url) as connection:
        yield connection


@pytest.fixture
def worker(settings):
    store = WorkerStore(settings)
    yield store
    for client in (store._redis, store._impatient):  # noqa: SLF001  # a worker's store lives as long as its process
        client.close()


def texts(number):
    return Submission(InputType.TEXT, [b"%d" % index for index in range(number)], JobOptions())


def finished(settings, worker, rows, **options):
    job_id = submit_texts(settings, *map(str, range(len(rows))), **options)
    worker.save(job_id, dict(enumerate(rows)))
    return read_job(settings, job_id)


def test_a_job_is_what_was_asked_for(settings):
    options = JobOptions(output_dtype=OutputDtype.FLOAT16, pool_factor=3)
    submission = Submission(InputType.IMAGE, [b"\0\xff", b""], options)
    job = ask_api(settings, lambda api: api.create(submission, Lane.INTERACTIVE, OWNER, None, "request-7"))
    assert read_job(settings, job.id) == job
    assert (job.status, job.input_type, job.lane, job.request_id) == ("queued", "image", "interactive", "request-7")
    assert (job.output_dtype, job.pool_factor, job.total) == ("float16", 3, 2)


def test_a_job_is_visible_to_its_owner_only(settings):
    job_id = submit_texts(settings, "a")
    for owner in ("other", "", "owner:jobs"):
        with pytest.raises(JobNotFoundError):
            ask_api(settings, lambda api, owner=owner: api.job(job_id, owner))
        assert ask_api(settings, lambda api, owner=owner: api.jobs(owner, after=None, limit=9)) == []
    with pytest.raises(JobNotFoundError):
        read_job(settings, "unknown")


def commands_of(connection, settings, job_id, owner):
    """Which commands Redis runs when a job is asked for that this owner must not see."""
    connection.config_resetstat()
    with pytest.raises(JobNotFoundError):
        ask_api(settings, lambda api: api.job(job_id, owner))
    return {name.removeprefix("cmdstat_") for name in connection.info("commandstats")}


@pytest.mark.parametrize("text", ["{id}:payloads", "{id}\n", "{id} ", " {id}", "{ID}", "", "*", "é" * 32, "0" * 10_000])
def test_what_is_no_job_id_is_not_looked_for(settings, connection, text):
    job_id = submit_texts(settings, "a")
    connection.hset(keys.job(text.format(id=job_id, ID=job_id.upper())), "owner", OWNER)

    ran = commands_of(connection, settings, text.format(id=job_id, ID=job_id.upper()), OWNER)

    assert not ran & {"hget", "hgetall", "evalsha", "eval"}


def test_of_anothers_job_nothing_but_its_owner_is_read(settings, connection):
    """So that the time of the answer does not tell whether the job exists."""
    assert "hgetall" not in commands_of(connection, settings, submit_texts(settings, "a"), "other")
    assert "hgetall" not in commands_of(connection, settings, "0" * 32, "other")


@pytest.mark.parametrize("asked", [None, "float32", "float16"])
@pytest.mark.parametrize("stored", [np.float32, np.float16])
def test_rows_come_back_at_the_precision_that_was_asked_for_else_the_models(settings, worker, asked, stored):
    rows = [rows_of(b"0").astype(stored), rows_of(b"1").astype(stored)]
    job = finished(settings, worker, rows, **({"output_dtype": asked} if asked else {}))
    got = ask_api(settings, lambda api: read_result(api, job.id))
    assert [embedding.dtype for embedding in got.embeddings] == [np.dtype(asked or stored)] * 2
    for embedding, expected in zip(got.embeddings, rows, strict=True):
        np.testing.assert_array_equal(embedding, expected.astype(asked or stored))
    assert got.failures == []


@pytest.mark.parametrize(("asked", "stored"), [("int8", np.int8), ("binary", np.uint8)])
def test_whole_numbers_come_back_as_the_worker_left_them(settings, worker, asked, stored):
    rows = np.arange(256).astype(stored).reshape(2, -1)
    job = finished(settings, worker, [rows], output_dtype=asked)
    (embedding,) = ask_api(settings, lambda api: read_result(api, job.id)).embeddings
    assert embedding.dtype == stored
    np.testing.assert_array_equal(embedding, rows)


def test_results_of_many_inputs_come_back_in_their_order(settings, worker):
    job_id = submit_texts(settings, *map(str, range(120)))
    for index in reversed(range(120)):
        worker.save(job_id, {index: rows_of(b"%d" % index)})
    got = ask_api(settings, lambda api: _result(api, job_id))
    for index, rows in enumerate(got.embeddings):
        np.testing.assert_array_equal(rows, rows_of(b"%d" % index))


async def _result(api, job_id):
    return await read_result(api, job_id)


def test_a_cancelled_job_has_no_result(settings):
    job_id = submit_texts(settings, "a")
    assert ask_api(settings, lambda api: api.cancel(job_id)) is True
    with pytest.raises(JobCancelledError):
        ask_api(settings, lambda api: _result(api, job_id))


def test_cancelling_what_does_not_exist_changes_nothing(settings, connection):
    assert ask_api(settings, lambda api: api.cancel("unknown")) is False
    assert connection.dbsize() == 0


def test_an_idempotency_key_makes_one_job_however_many_ask_at_once_and_the_losers_payloads_go(settings, connection):
    async def ask(api):
        return await asyncio.gather(*(api.create(texts(2), Lane.BULK, OWNER, "the key") for _ in range(40)))

    ids = {job.id for job in ask_api(settings, ask)}
    assert len(ids) == 1
    assert {key.decode() for key in connection.scan_iter("colqueue:job:*")} == {
        keys.job(*ids),
        keys.payloads(*ids),
    }
    assert connection.zcard(keys.owned_jobs(OWNER)) == 1


def test_an_idempotency_key_is_its_owners_and_another_key_another_job(settings):
    async def ask(api):
        return [
            (await api.create(texts(1), Lane.BULK, owner, key)).id
            for owner, key in [(OWNER, "k"), ("other", "k"), (OWNER, "l"), (OWNER, None), (OWNER, None), (OWNER, "k")]
        ]

    ids = ask_api(settings, ask)
    assert ids[0] == ids[-1]
    assert len(set(ids)) == 5


def test_an_idempotency_key_whose_job_is_forgotten_makes_a_new_one(settings, connection):
    """A job that was cancelled is forgotten long before its key would be: the caller's next try may not end in 404."""
    first = submit_texts(settings, "a", key="k")
    connection.delete(keys.job(first))
    again = submit_texts(settings, "a", key="k")
    assert again != first
    assert read_job(settings, again).status is JobStatus.QUEUED


def test_an_idempotency_key_sent_with_something_else_is_refused_and_nothing_of_it_stays(settings, connection):
    first = submit_texts(settings, "a", "b", key="k")
    before = set(connection.scan_iter())
    for texts_sent, options in [(("a",), {}), (("a", "c"), {}), (("ab", ""), {}), (("a", "b"), {"pool_factor": 2})]:
        with pytest.raises(IdempotencyKeyReusedError):
            submit_texts(settings, *texts_sent, key="k", **options)
    assert set(connection.scan_iter()) == before
    assert submit_texts(settings, "a", "b", key="k") == first


def test_a_key_of_a_job_that_an_older_release_registered_is_taken_as_it_was(settings, connection):
    first = submit_texts(settings, "a", key="k")
    connection.hdel(keys.job(first), "fingerprint")
    assert submit_texts(settings, "b", key="k") == first


def pages(settings, limit):
    async def ask(api):
        after, ids = None, []
        while page := await api.jobs(OWNER, after=after, limit=limit):
            ids.append([job.id for job in page])
            after = page[-1].id
        return ids

    return ask_api(settings, ask)


def submit_many(settings, number):
    async def ask(api):
        return [(await api.create(texts(1), Lane.BULK, OWNER)).id for _ in range(number)]

    return ask_api(settings, ask)


def test_jobs_are_listed_newest_first_page_by_page(settings):
    newest_first = submit_many(settings, 7)[::-1]
    assert pages(settings, 3) == [newest_first[:3], newest_first[3:6], newest_first[6:]]
    assert pages(settings, 100) == [newest_first]
    assert ask_api(settings, lambda api: api.jobs(OWNER, after="unknown", limit=3)) == []


def test_jobs_that_are_forgotten_leave_no_short_page(settings, connection):
    """A page shorter than asked tells the caller that it is the last."""
    newest_first = submit_many(settings, 9)[::-1]
    connection.delete(*(keys.job(job_id) for job_id in newest_first[1:4]))
    page = ask_api(settings, lambda api: api.jobs(OWNER, after=None, limit=3))
    assert [job.id for job in page] == [newest_first[0], *newest_first[4:6]]


def test_thousands_of_expired_jobs_cost_a_list_little_and_are_struck_off(settings, connection):
    """100,000 of them took 36 s."""
    alive = submit_texts(settings, "a")
    expired = {f"{number:032x}": time.time() + number for number in range(20_000)}
    connection.zadd(keys.owned_jobs(OWNER), expired)
    calls = connection.info("commandstats")["cmdstat_evalsha"]["calls"]
    assert [job.id for job in ask_api(settings, lambda api: api.jobs(OWNER, after=None, limit=1))] == [alive]
    assert connection.info("commandstats")["cmdstat_evalsha"]["calls"] - calls <= 15
    assert connection.zrange(keys.owned_jobs(OWNER), 0, -1) == [alive.encode()]


def test_pages_neither_repeat_nor_miss_a_job_while_others_come(settings):
    before = submit_many(settings, 60)[::-1]

    async def ask(api):
        enough, listed, after = asyncio.Event(), [], None

        async def keep_coming():
            while not enough.is_set():
                await api.create(texts(1), Lane.BULK, OWNER, None)

        coming = [asyncio.create_task(keep_coming()) for _ in range(4)]
        while page := await api.jobs(OWNER, after=after, limit=2):
            listed += [job.id for job in page]
            after = page[-1].id
        enough.set()
        await asyncio.gather(*coming)
        return listed

    listed = ask_api(settings, ask)
    assert len(listed) == len(set(listed))
    assert [job_id for job_id in listed if job_id in set(before)] == before


def test_nothing_is_kept_of_a_job_whose_caller_has_the_result(settings, worker, connection):
    """Synchronous callers come by the million: whatever stayed of each would fill Redis."""
    job = finished(settings, worker, [rows_of(b"0")])
    ask_api(settings, lambda api: api.forget(job, OWNER))
    assert [key for key in connection.scan_iter() if job.id in key.decode()] == []
    assert ask_api(settings, lambda api: api.jobs(OWNER, after=None, limit=9)) == []
    assert connection.zcard(keys.owned_jobs(OWNER)) == 0


def test_nothing_is_kept_of_a_job_that_finishes_while_its_caller_hangs_up(settings, worker, connection):
    job = finished(settings, worker, [rows_of(b"a")])
    ask_api(settings, lambda api: api.withdraw(job.id, OWNER))
    assert not connection.exists(keys.job(job.id), keys.results(job.id), keys.KEPT, keys.HELD)
    with pytest.raises(JobNotFoundError):
        read_job(settings, job.id)


def test_a_job_is_cancelled_when_its_caller_hangs_up(settings):
    job_id = submit_texts(settings, "a")
    ask_api(settings, lambda api: api.withdraw(job_id, OWNER))
    assert read_job(settings, job_id).status is JobStatus.CANCELLED


def test_a_nearly_full_store_takes_no_new_work_and_says_so(settings, connection):
    """Short of full: a worker that finds Redis full loses tasks and ends."""
    connection.config_set("maxmemory", int(connection.info("memory")["used_memory"] / 0.8) + 2**20)
    try:
        submit_texts(settings, "a")
        with pytest.raises(QueueFullError):
            submit_texts(settings, "a" * 3000)
    finally:
        connection.config_set("maxmemory", 0)


def test_many_callers_at_once_are_all_answered(settings):
    """As many as may wait in one api process when a batch of short jobs is done."""
    job_id = submit_texts(settings, "a")

    async def ask(api):
        return await asyncio.gather(*(api.job(job_id, OWNER) for _ in range(1000)))

    assert {job.id for job in ask_api(settings, ask)} == {job_id}


def test_many_callers_at_once_take_a_bounded_number_of_connections(settings, connection):
    job_id, before = submit_texts(settings, "a"), len(connection.client_list())

    async def ask(api):
        await asyncio.gather(*(api.job(job_id, OWNER) for _ in range(1000)), return_exceptions=True)
        return len(await asyncio.to_thread(connection.client_list))

    assert ask_api(settings, ask) - before <= 128


CALLS = {
    "ping": lambda api: api.ping(),
    "create": lambda api: api.create(texts(1), Lane.BULK, OWNER, None),
    "job": lambda api: api.job("0" * 32, OWNER),
    "jobs": lambda api: api.jobs(OWNER, after=None, limit=1),
    "cancel": lambda api: api.cancel("id"),
    "backlogs": lambda api: api.backlogs(),
    "workers": lambda api: api.workers(10),
}


@pytest.mark.parametrize("call", CALLS.values(), ids=CALLS)
def test_where_redis_is_away_every_call_says_so_at_once(call):
    settings = StoreSettings(_env_file=None, redis_url=f"redis://127.0.0.1:{free_port()}/0")
    started = time.monotonic()
    with pytest.raises(StoreUnavailableError):
        ask_api(settings, call)
    assert time.monotonic() - started < 60


def test_where_redis_does_not_reply_the_caller_is_told_before_it_gives_up():
    with socket.create_server(("127.0.0.1", 0)) as silent:
        settings = StoreSettings(_env_file=None, redis_url=f"redis://127.0.0.1:{silent.getsockname()[1]}/0")
        started = time.monotonic()
        with pytest.raises(StoreUnavailableError):
            ask_api(settings, CALLS["job"])
        assert time.monotonic() - started < 60


def test_a_connection_that_was_cut_is_replaced_without_the_caller_noticing(settings, connection):
    job_id = submit_texts(settings, "a")

    async def ask(api):
        await api.job(job_id, OWNER)
        for client in connection.client_list():
            if client["id"] != str(connection.client_id()):
                connection.client_kill_filter(_id=client["id"])
        return await api.job(job_id, OWNER)

    assert ask_api(settings, ask).id == job_id


@pytest.fixture
def app(settings):
    app = celery_app(settings)
    yield app
    app.close()


def job_of(settings, number, lane=Lane.BULK):
    return ask_api(settings, lambda api: api.create(texts(number), lane, OWNER))


@pytest.mark.parametrize("lane", Lane)
def test_a_job_is_published_to_its_lane_in_shards_without_its_payloads(settings, connection, app, lane):
    job = job_of(settings, 70, lane)
    publish(app, settings.model_copy(update={"task_tokens": 300}), job, range(job.total))
    (other,) = set(Lane) - {lane}
    backlogs = ask_api(settings, lambda api: api.backlogs())
    assert (backlogs[lane].tasks, backlogs[lane].inputs, backlogs[lane].bytes) == (3, 70, 130)
    assert backlogs[lane].oldest_s < 60
    assert (backlogs[other].tasks, backlogs[other].inputs, backlogs[other].oldest_s) == (0, 0, None)
    assert all(len(message) < 3000 for message in connection.lrange(lane.value, 0, -1))


def test_publishing_where_redis_is_away_says_so_soon(settings):
    job = job_of(settings, 1)
    nowhere = StoreSettings(_env_file=None, redis_url=f"redis://127.0.0.1:{free_port()}/0")
    app = celery_app(nowhere)
    started = time.monotonic()
    with pytest.raises(StoreUnavailableError):
        publish(app, nowhere, job, [0])
    assert time.monotonic() - started < 60
    app.close()


def test_publishing_to_a_full_store_says_so(settings, connection, app):
    """503, and `Service.submit` cancels the job: anything else would leave it queued for ever."""
    publish(app, settings, job_of(settings, 1), [0])
    job = job_of(settings, 1)
    connection.config_set("maxmemory", 1)
    try:
        with pytest.raises(UnavailableError):
            publish(app, settings, job, range(job.total))
    finally:
        connection.config_set("maxmemory", 0)


def test_publishing_to_a_queue_for_the_first_time_survives_a_connection_that_died_in_silence(settings, redis_server):
    """One that was used before and does not answer any more, while new ones do."""
    with SilentProxy(redis_server.port) as proxy:
        proxied = StoreSettings(_env_file=None, redis_url=f"redis://127.0.0.1:{proxy.port}/0")
        app = celery_app(proxied)
        publish(app, proxied, job_of(settings, 1, Lane.BULK), [0])
        proxy.freeze()
        proxy.thaw()
        publish(app, proxied, job_of(settings, 1, Lane.INTERACTIVE), [0])
        app.close()
    backlogs = ask_api(settings, lambda api: api.backlogs())
    assert (backlogs[Lane.BULK].tasks, backlogs[Lane.INTERACTIVE].tasks) == (1, 1)


def test_publishing_says_so_where_redis_goes_away_between_two_tasks(settings, redis_program, tmp_path):
    """Celery announces each task to Flower after it is sent, and tries to connect again for that."""
    del redis_program
    with LocalRedis(tmp_path) as server:
        leaving = StoreSettings(_env_file=None, redis_url=server.url, task_tokens=1)
        app = celery_app(leaving)

        def kill_redis(**_):
            server.kill()

        after_task_publish.connect(kill_redis)
        try:
            with pytest.raises(StoreUnavailableError):
                publish(app, leaving, job_of(settings, 2), range(2))
        finally:
            after_task_publish.disconnect(kill_redis)
            app.close()
