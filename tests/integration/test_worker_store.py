import socket
import threading
import time

import pytest
import redis
from doubles import OWNER, SERVED, ask_api, rows_of, submit_texts

from colqueue_client.launch.local_redis import LocalRedis
from colqueue_client.launch.ports import free_port
from shared import keys
from shared.errors import StoreFullError, StoreUnavailableError
from shared.jobs import InputType, OutputDtype
from shared.settings import StoreSettings
from worker.store import Store


@pytest.fixture
def settings(redis_url):
    return StoreSettings(_env_file=None, redis_url=redis_url)


@pytest.fixture
def connection(redis_url):
    with redis.Redis.from_url(redis_url) as connection:
        yield connection


@pytest.fixture
def store_of():
    stores = []

    def store_of(settings):
        stores.append(Store(settings))
        return stores[-1]

    yield store_of
    for store in stores:
        for client in (store._redis, store._impatient):  # noqa: SLF001  # a worker's store lives as long as its process
            client.close()


@pytest.fixture
def store(settings, store_of):
    return store_of(settings)


def test_a_shard_holds_what_the_worker_needs_to_know(settings, store):
    job_id = submit_texts(settings, "a", "b", "ü", output_dtype="float16", deadline_s=50)
    shard = store.begin(job_id, [2, 0], SERVED)
    assert (shard.job_id, shard.owner, shard.input_type) == (job_id, OWNER, InputType.TEXT)
    assert (shard.output_dtype, shard.pool_factor) == (OutputDtype.FLOAT16, 1)
    assert shard.payloads == {2: "ü".encode(), 0: b"a"}
    assert shard.deadline_at == pytest.approx(time.monotonic() + 50, abs=10)


def test_without_a_deadline_a_job_ends_with_its_payloads_and_no_later_deadline_is_taken(redis_url, store):
    settings = StoreSettings(_env_file=None, redis_url=redis_url, job_ttl_s=200)
    for options in ({}, {"deadline_s": 5000}):
        shard = store.begin(submit_texts(settings, "a", **options), [0], SERVED)
        assert shard.output_dtype is None
        assert shard.deadline_at == pytest.approx(time.monotonic() + 200, abs=10)


def test_there_is_nothing_to_begin_of_a_job_that_is_unknown(store):
    assert store.begin("unknown", [0], SERVED) is None
    assert store.save("unknown", {0: rows_of(b"x")}) == 0


def test_saving_nothing_changes_nothing(settings, store, connection):
    job_id = submit_texts(settings, "a")
    before = connection.hgetall(keys.job(job_id))
    assert store.save(job_id, {}) == 0
    assert connection.hgetall(keys.job(job_id)) == before


def test_unfinished_are_the_queued_and_running_ones(settings, store):
    queued, running, cancelled, done = (submit_texts(settings, "a") for _ in range(4))
    store.begin(running, [0], SERVED)
    ask_api(settings, lambda api: api.cancel(cancelled))
    store.save(done, {0: rows_of(b"a")})
    assert store.unfinished({queued, running, cancelled, done, "unknown"}) == {queued, running}
    assert store.unfinished(set()) == set()


def test_where_redis_is_away_every_job_counts_as_unfinished_and_that_at_once(store_of):
    store = store_of(StoreSettings(_env_file=None, redis_url=f"redis://127.0.0.1:{free_port()}/0"))
    started = time.monotonic()
    assert store.unfinished({"a", "b"}) == {"a", "b"}
    assert time.monotonic() - started < 20


def test_where_redis_does_not_reply_every_job_counts_as_unfinished_and_that_soon(store_of, monkeypatch):
    monkeypatch.setattr("worker.store._IMPATIENCE_S", 0.25)
    with socket.create_server(("127.0.0.1", 0)) as silent:
        store = store_of(StoreSettings(_env_file=None, redis_url=f"redis://127.0.0.1:{silent.getsockname()[1]}/0"))
        started = time.monotonic()
        assert store.unfinished({"a"}) == {"a"}
        assert time.monotonic() - started < 20


def test_whatever_redis_answers_the_models_thread_gets_its_jobs(settings, store, connection):
    """An exception here would end the thread, and every task would hang."""
    job_id = submit_texts(settings, "a")
    connection.set(keys.job("odd"), "not a record")
    assert job_id in store.unfinished({job_id, "odd"})


def test_a_short_absence_of_redis_is_waited_out(tmp_path, store_of):
    """First nobody answers, then the server starts: the call that waited meanwhile returns."""
    server = LocalRedis(tmp_path)
    store = store_of(StoreSettings(_env_file=None, redis_url=server.url))
    returned = []
    with socket.create_server(("127.0.0.1", server.port)) as nobody:
        nobody.settimeout(10)
        calling = threading.Thread(target=lambda: returned.append(store.begin("unknown", [0], SERVED)))
        calling.start()
        for _ in range(3):  # it came back after it was turned away
            nobody.accept()[0].close()
    with server:
        calling.join(30)
        assert returned == [None]


def test_a_restart_that_forgot_the_scripts_is_not_noticed(tmp_path, store_of):
    with LocalRedis(tmp_path) as server:
        settings = StoreSettings(_env_file=None, redis_url=server.url)
        store = store_of(settings)
        job_id = submit_texts(settings, "a")
        assert store.begin(job_id, [0], SERVED).payloads == {0: b"a"}
        server.stop()
        server.start()
        assert store.begin(job_id, [0], SERVED).payloads == {0: b"a"}
        assert store.save(job_id, {0: rows_of(b"a")}) == 1


def test_once_the_retries_are_used_up_the_store_is_said_to_be_away(store_of, monkeypatch):
    monkeypatch.setattr("worker.store._PATIENCE_S", 0.2)
    store = store_of(StoreSettings(_env_file=None, redis_url=f"redis://127.0.0.1:{free_port()}/0"))
    with pytest.raises(StoreUnavailableError):
        store.begin("job", [0], SERVED)
    with pytest.raises(StoreUnavailableError):
        store.save("job", {0: rows_of(b"x")})


def test_a_full_store_is_said_to_be_full_and_workers_are_seen_all_the_same(settings, store, connection):
    submitted = submit_texts(settings, "a")
    connection.config_set("maxmemory", 1)
    try:
        with pytest.raises(StoreFullError):
            store.requeue(submitted)
        store.beat("worker", {"state": "ready"}, 15)
        assert set(ask_api(settings, lambda api: api.workers(10))) == {"worker"}
    finally:
        connection.config_set("maxmemory", 0)


def test_a_worker_is_seen_until_it_leaves(settings, store):
    store.beat("one", {"state": "ready", "model": "m"}, 15)
    store.beat("two", {"state": "loading"}, 15)
    assert ask_api(settings, lambda api: api.workers(10)) == {
        "one": {"state": "ready", "model": "m"},
        "two": {"state": "loading"},
    }
    store.leave("one")
    assert set(ask_api(settings, lambda api: api.workers(10))) == {"two"}


def test_a_worker_that_fell_silent_is_not_seen_and_in_time_forgotten(settings, store, connection):
    store.beat("gone", {"state": "ready"}, 15)
    connection.zadd(keys.WORKERS, {"gone": time.time() - 3600})
    connection.delete(keys.worker("gone"))
    store.beat("here", {"state": "ready"}, 15)
    assert set(ask_api(settings, lambda api: api.workers(10))) == {"here"}
    assert connection.zrange(keys.WORKERS, 0, -1) == [b"here"]
