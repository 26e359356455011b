import threading

import numpy as np
import pytest
import redis
from doubles import FakeModel, ask_api, read_job, read_result, rows_of, submit_pages, submit_texts
from stack import eventually
from structlog.testing import capture_logs

from shared import keys
from shared.errors import DeviceMemoryError, ModelError
from shared.jobs import JobStatus, Lane, OutputDtype
from shared.settings import StoreSettings
from worker.batcher import Batcher, BatcherClosedError
from worker.precision import at_precision
from worker.shard import ShardRunner
from worker.store import Store

SOON_S = 120


@pytest.fixture
def settings(redis_url):
    return StoreSettings(_env_file=None, redis_url=redis_url)


@pytest.fixture
def connection(redis_url):
    with redis.Redis.from_url(redis_url) as connection:
        yield connection


@pytest.fixture(autouse=True)
def logs():
    with capture_logs() as logs:
        yield logs


class Workshop:
    """A worker without Celery."""

    def __init__(self, settings, model, max_tokens=1000):
        self.store, self.model = Store(settings), model
        self.batcher = Batcher(model.start, max_tokens=max_tokens, unfinished=self.store.unfinished)
        self.runner = ShardRunner(self.store, model, self.batcher, max_attempts=3)
        self._thread = threading.Thread(target=self.batcher.run, daemon=True)
        self._thread.start()

    def run(self, job_id, *indices):
        return self.runner.run(job_id, list(indices), Lane.BULK)

    def close(self):
        self.batcher.close()
        self._thread.join(SOON_S)
        assert not self._thread.is_alive()
        for client in (self.store._redis, self.store._impatient):  # noqa: SLF001  # it lives as long as a worker
            client.close()


@pytest.fixture
def workshop(settings):
    opened = []

    def workshop(during=lambda _: None, **options):
        opened.append(Workshop(settings, FakeModel(during), **options))
        return opened[-1]

    yield workshop
    for each in opened:
        each.close()


def result(settings, job_id):
    async def ask(api):
        return await read_result(api, job_id)

    return ask_api(settings, ask)


def in_threads(*calls):
    returned = {}

    def call(number):
        try:
            returned[number] = calls[number]()
        except BatcherClosedError as error:
            returned[number] = error

    threads = [threading.Thread(target=call, args=(number,)) for number in range(len(calls))]
    for thread in threads:
        thread.start()
    return threads, returned


def test_a_job_is_embedded_shard_by_shard(settings, workshop, connection):
    job_id = submit_texts(settings, "one", "two", "three", "four")
    shop = workshop()
    assert shop.run(job_id, 0, 1) == "2 embedded, 0 failed, 2 counted"
    job = read_job(settings, job_id)
    assert (job.status, job.completed) == (JobStatus.RUNNING, 2)
    shop.run(job_id, 2, 3)
    assert read_job(settings, job_id).status is JobStatus.COMPLETED
    for rows, text in zip(result(settings, job_id).embeddings, ["one", "two", "three", "four"], strict=True):
        np.testing.assert_array_equal(rows, rows_of(text.encode()))
    assert not connection.exists(keys.payloads(job_id))


def test_rows_are_narrowed_where_the_caller_wants_no_more(settings, workshop):
    job_id = submit_texts(settings, "one", output_dtype="float16")
    workshop().run(job_id, 0)
    (rows,) = result(settings, job_id).embeddings
    np.testing.assert_array_equal(rows, rows_of(b"one").astype(np.float16))


@pytest.mark.parametrize(
    ("asked", "bytes_a_row"), [(None, 512), ("float32", 512), ("float16", 256), ("int8", 128), ("binary", 16)]
)
def test_redis_carries_no_more_than_was_asked_for(settings, workshop, connection, asked, bytes_a_row):
    job_id = submit_texts(settings, "three", output_dtype=asked)
    workshop().run(job_id, 0)
    header = 16
    assert connection.hstrlen(keys.results(job_id), 0) == header + len(rows_of(b"three")) * bytes_a_row


def test_a_page_is_pooled_before_it_is_narrowed(settings, workshop):
    page = b"three"  # so many rows the fake model makes of it, and pools by dropping
    job_id = submit_pages(settings, page, output_dtype="int8", pool_factor=2)
    workshop().run(job_id, 0)
    (rows,) = result(settings, job_id).embeddings
    assert len(rows) == len(rows_of(page)) // 2
    np.testing.assert_array_equal(rows, at_precision(rows_of(page)[:1], OutputDtype.INT8))


@pytest.mark.parametrize(
    ("text", "error", "code"),
    [
        ("unreadable", None, "text_invalid"),
        ("bad", ModelError("not this"), "model_failed"),
        ("bad", ValueError("not this"), "model_failed"),
        ("bad", DeviceMemoryError("not this"), "out_of_device_memory"),
    ],
)
def test_a_bad_input_fails_alone(settings, workshop, text, error, code):
    def during(payloads):
        if b"bad" in payloads:
            raise error

    job_id = submit_texts(settings, "one", text, "three")
    workshop(during).run(job_id, 0, 1, 2)
    job = read_job(settings, job_id)
    assert (job.status, job.completed, job.failed) == (JobStatus.COMPLETED, 2, 1)
    kept = result(settings, job_id)
    assert [(failure.index, failure.code) for failure in kept.failures] == [(1, code)]
    np.testing.assert_array_equal(kept.embeddings[0], rows_of(b"one"))
    np.testing.assert_array_equal(kept.embeddings[2], rows_of(b"three"))


def test_an_input_that_preparation_stumbles_over_fails_alone(settings, workshop):
    """As when a library raises what nobody expected of it."""
    job_id = submit_texts(settings, "one", "puzzling", "three")
    workshop().run(job_id, 0, 1, 2)
    job = read_job(settings, job_id)
    assert (job.status, job.completed, job.failed) == (JobStatus.COMPLETED, 2, 1)


def test_what_is_logged_of_a_failed_input_holds_no_payload(settings, workshop, logs):
    job_id = submit_texts(settings, "unreadable SECRET")
    workshop().run(job_id, 0)
    assert "input.failed" in [entry["event"] for entry in logs]
    assert "SECRET" not in str(logs)


def test_a_shard_that_comes_again_does_no_harm_and_costs_no_forward_pass(settings, workshop, connection):
    job_id = submit_texts(settings, "one", "two", "three")
    shop = workshop()
    shop.run(job_id, 0, 1)
    before = connection.hgetall(keys.job(job_id)), connection.hgetall(keys.results(job_id))
    shop.run(job_id, 0, 1)
    assert (connection.hgetall(keys.job(job_id)), connection.hgetall(keys.results(job_id))) == before
    assert not connection.exists(keys.failures(job_id))
    assert shop.model.batches in ([[b"one", b"two"]], [[b"one"], [b"two"]])


def test_what_was_done_before_is_not_called_a_failure(settings, workshop, logs):
    """Operators read these lines, and Flower shows what the task returned."""
    job_id = submit_texts(settings, "one", "two", "three")
    shop = workshop()
    shop.run(job_id, 0, 1)
    told = shop.run(job_id, 0, 1, 2)
    assert "input.failed" not in [entry["event"] for entry in logs]
    assert "2 failed" not in told


def test_a_shard_of_a_finished_or_unknown_job_is_nothing_to_do(settings, workshop):
    shop = workshop()
    job_id = submit_texts(settings, "one")
    ask_api(settings, lambda api: api.cancel(job_id))
    assert shop.run(job_id, 0).startswith("nothing to do")
    assert shop.run("unknown", 0).startswith("nothing to do")
    assert shop.model.batches == []


def test_a_job_cancelled_while_its_shard_waits_never_reaches_the_model(settings, workshop):
    inside, go_on = threading.Event(), threading.Event()

    def during(payloads):
        if payloads == [b"first"]:
            inside.set()
            assert go_on.wait(SOON_S)

    shop = workshop(during)
    first, second = submit_texts(settings, "first"), submit_texts(settings, "second", "too")
    threads, told = in_threads(lambda: shop.run(first, 0), lambda: inside.wait(SOON_S) and shop.run(second, 0, 1))
    assert inside.wait(SOON_S)
    eventually(lambda: shop.batcher.waiting == 2, SOON_S)
    ask_api(settings, lambda api: api.cancel(second))
    go_on.set()
    for thread in threads:
        thread.join(SOON_S)
    assert told[0] == "1 embedded, 0 failed, 1 counted"
    assert told[1].startswith("dropped")
    assert shop.model.batches == [[b"first"]]
    assert read_job(settings, second).status is JobStatus.CANCELLED


def test_a_payload_that_expired_fails_its_input_in_place_of_leaving_it_for_ever(settings, workshop, connection):
    job_id = submit_texts(settings, "one", "two")
    connection.hdel(keys.payloads(job_id), 1)
    workshop().run(job_id, 0, 1)
    job = read_job(settings, job_id)
    assert (job.status, job.completed, job.failed) == (JobStatus.COMPLETED, 1, 1)
    assert [failure.code for failure in result(settings, job_id).failures] == ["deadline_exceeded"]


def test_a_deadline_that_passed_fails_every_input_without_the_model(settings, workshop):
    job_id = submit_texts(settings, "one", "two", deadline_s=1e-6)
    shop = workshop()
    shop.run(job_id, 0, 1)
    job = read_job(settings, job_id)
    assert (job.status, job.failed) == (JobStatus.FAILED, 2)
    assert shop.model.batches == []


def test_shards_of_one_job_on_many_threads_finish_it_once(settings, workshop):
    texts = [f"text {number}" for number in range(120)]
    job_id = submit_texts(settings, *texts)
    shop = workshop(max_tokens=40)
    shards = [range(start, start + 8) for start in range(0, 120, 8)]
    # Each twice, as after a redelivery.
    threads, told = in_threads(*(lambda shard=shard: shop.run(job_id, *shard) for shard in shards * 2))
    for thread in threads:
        thread.join(SOON_S)
    assert len(told) == 30
    job = read_job(settings, job_id)
    assert (job.status, job.completed, job.failed) == (JobStatus.COMPLETED, 120, 0)
    for rows, text in zip(result(settings, job_id).embeddings, texts, strict=True):
        np.testing.assert_array_equal(rows, rows_of(text.encode()))


def test_a_worker_that_stops_keeps_what_is_embedded_and_leaves_the_rest_unfinished(settings, workshop, connection):
    inside, go_on = threading.Event(), threading.Event()

    def during(_):
        inside.set()
        assert go_on.wait(SOON_S)

    shop = workshop(during, max_tokens=3)
    job_id = submit_texts(settings, "one", "two", "six")
    threads, told = in_threads(lambda: shop.run(job_id, 0, 1, 2))
    assert inside.wait(SOON_S)
    eventually(lambda: shop.batcher.waiting == 2, SOON_S)
    shop.runner.stop()
    go_on.set()
    threads[0].join(SOON_S)
    assert isinstance(told[0], BatcherClosedError)
    job = read_job(settings, job_id)
    assert (job.status, job.completed, job.failed) == (JobStatus.RUNNING, 1, 0)
    assert connection.hgetall(keys.payloads(job_id)) == {b"1": b"two", b"2": b"six"}
    with pytest.raises(BatcherClosedError):
        shop.run(job_id, 1, 2)

    workshop().run(job_id, 0, 1, 2)
    assert read_job(settings, job_id).status is JobStatus.COMPLETED
