"""Results by content on a real Redis, through the runner that asks for them."""

import threading
import time
from dataclasses import replace

import numpy as np
import pytest
import redis
from doubles import OWNER, FakeModel, ask_api, read_job, read_result, rows_of, submit_pages, submit_texts

from colqueue_client.launch.ports import free_port
from shared import keys
from shared.codecs import pack_rows
from shared.errors import ModelError
from shared.jobs import InputType, JobStatus, Lane, OutputDtype
from shared.settings import StoreSettings
from worker.batcher import Batcher
from worker.cache import ContentCache
from worker.shard import ShardRunner
from worker.store import Shard, Store

KEPT, USED = keys.CACHE, keys.CACHE_USED
TTL_S = 1000
PAGE = b"a page"
SHARD = Shard("job", OWNER, InputType.IMAGE, None, 1, time.time() + 3600, {}, {})


@pytest.fixture
def settings(redis_url):
    return StoreSettings(_env_file=None, redis_url=redis_url)


@pytest.fixture
def connection(redis_url):
    with redis.Redis.from_url(redis_url) as connection:
        yield connection


@pytest.fixture
def cache_of(settings):
    caches = []

    def cache_of(settings=settings, model="a model", max_bytes=10**6):
        caches.append(ContentCache(settings, model, max_bytes=max_bytes, ttl_s=TTL_S))
        return caches[-1]

    yield cache_of
    for cache in caches:
        cache._redis.close()  # noqa: SLF001  # it lives as long as a worker


@pytest.fixture
def shop(settings):
    """Call it for a worker without Celery: `(run, model)`, where `run` runs a job of one input to its end."""
    closing = []

    def shop(cache, during=lambda _: None):
        store, model = Store(settings), FakeModel(during)
        batcher = Batcher(model.start, max_tokens=1000, unfinished=store.unfinished)
        runner = ShardRunner(store, model, batcher, max_attempts=3, cache=cache)
        thread = threading.Thread(target=batcher.run, daemon=True)
        thread.start()
        closing.append((batcher, thread, store))

        def run(job_id):
            runner.run(job_id, [0], Lane.BULK)
            return read_job(settings, job_id)

        return run, model

    yield shop
    for batcher, thread, store in closing:
        batcher.close()
        thread.join(120)
        assert not thread.is_alive()
        for client in (store._redis, store._impatient):  # noqa: SLF001  # likewise
            client.close()


def rows(settings, job_id):
    async def ask(api):
        return await read_result(api, job_id)

    (embedding,) = ask_api(settings, ask).embeddings
    return embedding


def shard_of(*payloads):
    return replace(SHARD, payloads=dict(enumerate(payloads)))


def keep(cache, *payloads):
    """Keep three rows each."""
    shard = shard_of(*payloads)
    cache.keep(shard, dict.fromkeys(shard.payloads, BLOCK))


def known(cache, *payloads):
    return set(cache.find(shard := shard_of(*payloads), list(shard.payloads)))


BLOCK = np.ones((3, 128), np.float32)
BLOCK_BYTES = len(pack_rows(BLOCK))


def held(connection):
    """The bytes that are held, checked against what the cache says of them."""
    values = connection.hgetall(KEPT)
    said = int(values.pop(b"bytes", 0))
    assert said == sum(map(len, values.values()))
    assert set(connection.zrange(USED, 0, -1)) == set(values)
    return said


def test_the_same_page_again_is_answered_without_the_model(settings, cache_of, shop):
    cache = cache_of()
    run, model = shop(cache)
    first, again = (submit_pages(settings, PAGE, output_dtype="int8") for _ in range(2))
    assert run(first).completed == 1
    job = run(again)
    assert (job.status, job.completed, job.failed) == (JobStatus.COMPLETED, 1, 0)
    assert model.batches == [[PAGE]]
    assert (cache.hits, cache.misses) == (1, 1)
    np.testing.assert_array_equal(rows(settings, again), rows(settings, first))
    assert rows(settings, again).dtype == np.int8


@pytest.mark.parametrize(
    "other",
    [
        lambda settings: submit_pages(settings, PAGE, output_dtype="float16"),
        lambda settings: submit_pages(settings, PAGE, pool_factor=2),
        lambda settings: submit_pages(settings, PAGE + b"."),
        lambda settings: submit_texts(settings, PAGE.decode()),
    ],
    ids=["precision", "pooling", "bytes", "kind of input"],
)
def test_what_is_not_the_same_is_embedded(settings, cache_of, shop, other):
    cache = cache_of()
    run, model = shop(cache)
    run(submit_pages(settings, PAGE))
    run(other(settings))
    assert len(model.batches) == 2
    assert cache.hits == 0


def test_another_models_results_are_not_this_ones(cache_of):
    keep(cache_of(model="a model"), PAGE)
    assert known(cache_of(model="a model"), PAGE) == {0}
    assert known(cache_of(model="another"), PAGE) == set()


def test_an_owner_cannot_learn_what_another_has_sent(cache_of):
    cache = cache_of()
    keep(cache, PAGE)
    assert cache.find(replace(shard_of(PAGE), owner="another"), [0]) == {}


def test_no_two_wishes_have_one_name(cache_of):
    """Neither by where an option ends and the payload begins."""
    cache = cache_of()
    shards = [
        replace(shard_of(payload), output_dtype=dtype, pool_factor=factor)
        for payload in (b"", b"\n", b"1\n", b"int8\n1\n")
        for dtype in (None, OutputDtype.INT8)
        for factor in (1, 11)
    ]
    assert len({cache._name(shard, 0) for shard in shards}) == len(shards)  # noqa: SLF001  # collisions have no symptom


def test_a_failure_is_not_kept(settings, cache_of, shop, connection):
    def during(_):
        raise ModelError("not today")

    run, model = shop(cache_of(), during)
    for _ in range(2):
        assert run(submit_pages(settings, PAGE)).status is JobStatus.FAILED
    assert len(model.batches) == 2
    assert run(submit_pages(settings, b"unreadable")).status is JobStatus.FAILED
    assert not connection.exists(KEPT, USED)


def test_a_result_that_is_known_comes_too_late_after_the_deadline(settings, cache_of, shop):
    run, _ = shop(cache_of())
    run(submit_pages(settings, PAGE))
    job_id = submit_pages(settings, PAGE, deadline_s=1e-6)
    assert (run(job_id).failed, run(job_id).completed) == (1, 0)


def test_without_a_cache_nothing_is_kept_by_content(settings, shop, connection):
    run, model = shop(None)
    for _ in range(2):
        run(submit_pages(settings, PAGE))
    assert len(model.batches) == 2
    assert not connection.exists(KEPT, USED)


def test_the_bound_holds_and_what_was_not_used_for_longest_goes_first(cache_of, connection):
    cache = cache_of(max_bytes=3 * BLOCK_BYTES)
    for page in (b"a", b"b", b"c"):
        keep(cache, page)
    assert held(connection) == 3 * BLOCK_BYTES
    assert known(cache, b"a") == {0}
    keep(cache, b"d", b"e")
    assert held(connection) == 3 * BLOCK_BYTES
    assert known(cache, b"a", b"b", b"c", b"d", b"e") == {0, 3, 4}


def test_what_is_larger_than_the_bound_is_not_kept_and_drives_nobody_out(cache_of, connection):
    cache = cache_of(max_bytes=BLOCK_BYTES)
    keep(cache, b"a")
    cache.keep(shard_of(b"large"), {0: np.ones((4, 128), np.float32)})
    assert known(cache, b"a", b"large") == {0}
    assert held(connection) == BLOCK_BYTES


def test_a_lower_bound_holds_from_the_next_result_on(cache_of, connection):
    keep(cache_of(), *(b"%d" % number for number in range(10)))
    keep(cache_of(max_bytes=2 * BLOCK_BYTES), b"new")
    assert held(connection) == 2 * BLOCK_BYTES


def test_the_same_result_kept_twice_counts_once(cache_of, connection):
    keep(cache_of(), b"a", b"a")
    keep(cache_of(), b"a")
    assert held(connection) == BLOCK_BYTES


def test_what_was_not_used_for_long_is_not_found_and_makes_room(cache_of, connection):
    cache = cache_of()
    keep(cache, b"old", b"used")
    (old,) = connection.zrange(USED, 0, 0)
    connection.zadd(USED, {old: time.time() - TTL_S - 1})
    assert len(known(cache, b"old", b"used")) == 1
    keep(cache, b"new")
    assert held(connection) == 2 * BLOCK_BYTES
    assert not connection.hexists(KEPT, old)


def test_nothing_of_it_lives_for_ever(cache_of, connection):
    cache = cache_of()
    keep(cache, b"a")
    for key in (KEPT, USED):
        assert TTL_S - 10 < connection.ttl(key) <= TTL_S
        connection.expire(key, 10)
    assert known(cache, b"a") == {0}
    assert connection.ttl(KEPT) == connection.ttl(USED) > 10


def test_many_workers_at_once_keep_the_count_right(cache_of, connection):
    pages = [b"%d" % number for number in range(40)]
    caches = [cache_of(max_bytes=20 * BLOCK_BYTES) for _ in range(4)]

    def work(cache, turn):
        for page in pages[turn:] + pages[:turn]:
            known(cache, page)
            keep(cache, page)

    threads = [threading.Thread(target=work, args=(cache, 10 * turn)) for turn, cache in enumerate(caches)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(120)
    assert held(connection) == 20 * BLOCK_BYTES


@pytest.fixture
def memory(connection):
    """Call it with the share of Redis's memory that is to be in use."""
    yield lambda share: connection.config_set("maxmemory", int(connection.info("memory")["used_memory"] / share))
    connection.config_set("maxmemory", 0)


def test_where_redis_fills_the_cache_gives_way(cache_of, connection, memory):
    cache = cache_of(max_bytes=10**8)
    keep(cache, *(b"%d" % number for number in range(1000)))
    memory(0.5)
    keep(cache, b"more")
    assert held(connection) == 1001 * BLOCK_BYTES
    memory(0.7)
    keep(cache, b"even more")
    assert held(connection) < 1001 * BLOCK_BYTES
    memory(3)
    keep(cache, b"no more")
    assert not connection.exists(KEPT, USED)


def test_a_full_redis_takes_the_result_and_keeps_nothing_by_content(settings, cache_of, shop, connection, memory):
    run, _ = shop(cache_of())
    job_id = submit_pages(settings, PAGE)
    memory(10**6)
    with pytest.raises(redis.OutOfMemoryError):
        connection.set("more", "x")
    assert run(job_id).status is JobStatus.COMPLETED
    assert not connection.exists(KEPT, USED)


def test_where_redis_is_away_nothing_is_known_and_nobody_is_hurt(cache_of):
    away = StoreSettings(_env_file=None, redis_url=f"redis://127.0.0.1:{free_port()}/0")
    cache = cache_of(away)
    keep(cache, PAGE)
    assert known(cache, PAGE) == set()
    assert (cache.hits, cache.misses) == (0, 0)


def test_whatever_redis_answers_the_job_goes_on(settings, cache_of, shop, connection):
    """As where somebody else's key has the name, or a user of Redis may not run a script."""
    connection.set(KEPT, "something else")
    run, _ = shop(cache_of())
    job_id = submit_pages(settings, PAGE)
    assert run(job_id).status is JobStatus.COMPLETED
    np.testing.assert_array_equal(rows(settings, job_id), rows_of(PAGE))


def test_a_payload_that_expired_is_not_looked_for(cache_of):
    cache = cache_of()
    assert cache.find(shard_of(None), [0]) == {}
    assert cache.misses == 0
