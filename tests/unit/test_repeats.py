"""How many log lines of one kind a client can cause."""

import logging

import pytest

from api.repeats import Repeats


class Clock:
    """A clock that stands still until it is set."""

    now = 1000.0

    def __call__(self):
        return self.now


@pytest.fixture
def clock():
    return Clock()


@pytest.fixture
def repeats(clock):
    return Repeats(clock)


def record(message, name="api.errors"):
    return logging.LogRecord(name, logging.INFO, __file__, 1, message, (), None)


def written(repeats, number, **fields):
    """Log a refusal so many times; return the lines that are written."""
    lines = [
        record({"event": "request.refused", "code": "too_large", "client": "10.0.0.1"} | fields) for _ in range(number)
    ]
    return [line.msg for line in lines if repeats.filter(line)]


def test_the_first_lines_of_a_kind_are_written_and_of_the_others_ever_fewer_with_their_number(repeats):
    lines = written(repeats, 100_000)

    assert [line.get("repeats") for line in lines] == [None] * 200 + [200 * 2**times for times in range(1, 3)] + [
        1000 * 2**times for times in range(1, 7)
    ]


def test_another_client_and_another_kind_are_not_held_back(repeats):
    written(repeats, 500)

    assert len(written(repeats, 100, client="10.0.0.2")) == 100
    assert len(written(repeats, 100, code="not_found")) == 100
    assert len(written(repeats, 100, event="request.failed")) == 100


def test_a_key_is_one_client_wherever_it_calls_from(repeats):
    lines = [line for number in range(300) for line in written(repeats, 1, owner="@alice", client=f"10.0.0.{number}")]

    assert len(lines) == 200


def test_many_clients_together_are_held_back_too(repeats):
    lines = [line for number in range(5000) for line in written(repeats, 1, client=f"10.0.{number}")]

    assert len(lines) == 1002, "the first 1000, the 2000th, the 4000th"


def test_after_a_minute_lines_are_written_again(repeats, clock):
    written(repeats, 500)
    clock.now += 60

    assert len(written(repeats, 100)) == 100


def test_jobs_are_always_written(repeats):
    assert len(written(repeats, 3000, event="job.queued")) == 3000


def test_the_servers_own_lines_are_counted_likewise(repeats):
    lines = [record("Invalid HTTP request received.", "uvicorn.error") for _ in range(401)]
    passed = [line.getMessage() for line in lines if repeats.filter(line)]

    assert passed[199:] == [
        "Invalid HTTP request received.",
        "Invalid HTTP request received. (number 400 within a minute)",
    ]


def test_what_is_counted_does_not_grow_without_end(repeats):
    for number in range(12_000):
        written(repeats, 1, client=str(number), code=str(number))

    assert len(repeats._counts) <= 10_000  # noqa: SLF001 - its bound is the point
