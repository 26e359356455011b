"""What the acceptance tests share beside the stack: clients, a worker that stands still, its counts."""

import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from signal import SIGCONT, SIGSTOP

import httpx2
import pytest
import redis
from prometheus_client.parser import text_string_to_metric_families
from stack import OTHER_KEY, Stack, eventually

from shared import keys


@pytest.fixture(scope="session")
def http(stack: Stack) -> Iterator[httpx2.Client]:
    """A client of the session's stack with the first key."""
    with stack.client() as client:
        yield client


@pytest.fixture(scope="session")
def other_http(stack: Stack) -> Iterator[httpx2.Client]:
    """A client of the session's stack with the second key."""
    with stack.client(OTHER_KEY) as client:
        yield client


@pytest.fixture
def worker_paused(stack: Stack) -> Iterator[Callable[[], AbstractContextManager[None]]]:
    """Called and entered, makes the worker stand still until left, as on a machine that is suspended."""

    @contextmanager
    def paused() -> Iterator[None]:
        stack.worker.signal(SIGSTOP)
        try:
            yield
        finally:
            stack.worker.signal(SIGCONT)

    yield paused
    stack.wait_until_ready()


@pytest.fixture
def worker_counts(stack: Stack, http: httpx2.Client) -> Callable[[], dict[str, float]]:
    """Read the worker's counters from /metrics once it has counted and published them anew (it does every 2 s)."""

    def read() -> dict[str, float]:
        with redis.Redis.from_url(stack.redis.url) as connection:
            for _ in range(2):  # the first may have been counted before, and published after we asked
                asked_at = time.time()
                eventually(lambda asked_at=asked_at: connection.zcount(keys.WORKERS, asked_at, "+inf"))
        families = text_string_to_metric_families(http.get("/metrics").text)
        return {
            sample.name: sample.value for family in families for sample in family.samples if "le" not in sample.labels
        }

    return read
