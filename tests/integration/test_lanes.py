"""Which lane a job goes to: what it asks for, as far as the interactive lane has room for its cost."""

import pytest
import redis
from doubles import ask_api, rows_of

from api.store import Budget
from api.submission import JobOptions, Submission
from shared import keys
from shared.errors import QueueFullError
from shared.jobs import InputType, Lane
from shared.settings import StoreSettings
from worker.store import Store

# Jobs of up to 1,000 tokens are interactive, 4,000 altogether.
BUDGET = Budget(max_inputs=10**6, max_bytes=10**9, interactive_max_tokens=1000)


@pytest.fixture
def settings(redis_url):
    return StoreSettings(_env_file=None, redis_url=redis_url)


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
    """Call to submit one text of so many tokens to the interactive lane; returns the job."""

    def submit(tokens, owner="owner", *, inputs=1, kind=InputType.TEXT, budget=BUDGET):
        payloads = [b"x" * (tokens - 10)] * inputs
        submission = Submission(kind, payloads, JobOptions(lane=Lane.INTERACTIVE))
        return ask_api(settings, lambda api: api.create(submission, Lane.INTERACTIVE, owner), budget)

    return submit


def tokens_counted(connection):
    counted = connection.hgetall(keys.BACKLOG)
    return {name.decode(): int(value) for name, value in counted.items() if name.endswith(b" tokens")}


def test_a_text_is_interactive_by_its_cost_like_a_page(submit):
    assert submit(1000).lane is Lane.INTERACTIVE
    assert submit(1001, "second").lane is Lane.BULK
    assert submit(100, "third", inputs=11).lane is Lane.BULK
    assert submit(10, "fourth", kind=InputType.IMAGE).lane is Lane.INTERACTIVE
    assert submit(10, "fifth", kind=InputType.IMAGE, inputs=2).lane is Lane.BULK


def test_a_job_that_was_put_into_bulk_waits_there_in_every_respect(submit, settings, connection):
    job = submit(5000)
    assert job.queue == "bulk"
    backlogs = ask_api(settings, lambda api: api.backlogs())
    assert (backlogs[Lane.INTERACTIVE].inputs, backlogs[Lane.BULK].inputs) == (0, 1)
    assert tokens_counted(connection) == {"bulk tokens": 5000, "bulk owner tokens": 5000, "bulk * tokens": 5000}


def test_one_owner_alone_uses_half_of_the_interactive_lane_and_the_rest_goes_to_bulk(submit):
    lanes = [submit(500).lane for _ in range(6)]
    assert lanes == [Lane.INTERACTIVE] * 4 + [Lane.BULK] * 2


def test_many_owners_leave_room_for_a_newcomers_query(submit):
    """However many owners send jobs of 500 tokens, a short query of another finds the interactive lane open."""
    lanes = [submit(500, f"owner {number % 40}").lane for number in range(120)]
    assert lanes.count(Lane.INTERACTIVE) == 7
    assert submit(40, "newcomer").lane is Lane.INTERACTIVE


def test_room_in_the_interactive_lane_comes_back_when_a_job_ends_and_not_before(submit, store, settings, connection):
    first, second = submit(300, inputs=3), submit(800)
    assert submit(400).lane is Lane.BULK
    store.save(first.id, {0: rows_of(b"a"), 1: rows_of(b"b")})
    assert submit(400).lane is Lane.BULK
    store.save(first.id, {2: rows_of(b"c")})
    third = submit(400)
    assert third.lane is Lane.INTERACTIVE
    for job in (second, third):
        ask_api(settings, lambda api, job=job: api.cancel(job.id))
    assert {name for name in tokens_counted(connection) if name.startswith("interactive")} == set()


def test_tokens_are_counted_anew_with_the_rest_of_the_backlog(submit, store, connection):
    gone, kept = submit(300), submit(500, "other")
    connection.delete(keys.job(gone.id))
    connection.zadd(keys.UNFINISHED, {gone.id: 1})
    assert store.open_job(gone.id) is None
    counted = {f"{kept.queue} tokens": 500, "interactive other tokens": 500, "interactive * tokens": 500}
    assert tokens_counted(connection) == counted
    store.save(kept.id, {0: rows_of(b"a")})
    assert tokens_counted(connection) == {}


def test_nothing_is_interactive_where_the_operator_says_so(submit):
    assert submit(10, budget=Budget(10**6, 10**9, interactive_max_tokens=0)).lane is Lane.BULK


def test_a_job_that_was_put_into_bulk_needs_room_in_bulk(submit):
    budget = Budget(max_inputs=4, max_bytes=10**6, interactive_max_tokens=1000)
    submit(5000, "heavy", inputs=4, budget=budget)
    with pytest.raises(QueueFullError):
        submit(5000, "other", budget=budget)
    assert submit(500, "other", budget=budget).lane is Lane.INTERACTIVE


def test_jobs_that_were_registered_before_costs_were_counted_end_as_they_did(submit, store, connection):
    job = submit(300)
    connection.hdel(keys.job(job.id), "tokens")
    for holder in ("interactive owner", job.queue):
        connection.hdel(keys.BACKLOG, f"{holder} tokens")
    store.save(job.id, {0: rows_of(b"a")})
    assert not connection.exists(keys.BACKLOG)
