"""The fixtures that every folder of tests shares: a real Redis server, and the whole stack as real processes."""

import importlib.util
import os
from collections.abc import Iterator
from pathlib import Path

import pytest
import redis
from stack import Stack

from colqueue_client.errors import LaunchError
from colqueue_client.launch.local_redis import LocalRedis, find_server

pytest_plugins = [name for name in ("model_fixtures",) if importlib.util.find_spec(name)]


def pytest_make_parametrize_id(val: object, argname: str) -> str | None:
    """Name bytes by their argument and number: what gzip makes holds the time, and pytest-xdist needs the same ids."""
    return argname if isinstance(val, bytes) else None


@pytest.fixture(scope="session")
def redis_program() -> str:
    """The path of a Redis server; without one the test is skipped, in CI it fails."""
    try:
        return find_server()
    except LaunchError as error:
        if os.environ.get("CI") == "true":
            pytest.fail(str(error))
        pytest.skip(str(error))


@pytest.fixture(scope="session")
def redis_server(redis_program: str, tmp_path_factory: pytest.TempPathFactory) -> Iterator[LocalRedis]:
    """One Redis for the whole session; `.url` says where. For an emptied one ask for `redis_url`."""
    del redis_program
    with LocalRedis(tmp_path_factory.mktemp("redis")) as server:
        yield server


@pytest.fixture
def redis_url(redis_server: LocalRedis) -> str:
    """The URL of the session's Redis, emptied."""
    with redis.Redis.from_url(redis_server.url) as connection:
        connection.flushall()
    return redis_server.url


@pytest.fixture(scope="session")
def models_dir(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return the folder in which `tiny` is built once, for all stacks and all processes of pytest-xdist."""
    base = tmp_path_factory.getbasetemp()
    folder = (base.parent if "PYTEST_XDIST_WORKER" in os.environ else base) / "models"
    folder.mkdir(exist_ok=True)
    return folder


@pytest.fixture(scope="session")
def stack(redis_program: str, models_dir: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Stack]:
    """The whole stack, ready, for every test that leaves it as it found it; pytest-xdist starts one for each process.

    Batches hold several pages, and the limits are low enough to be crossed by small requests.
    """
    del redis_program
    settings = {
        "COLQUEUE_CACHE_DIR": str(models_dir),
        "COLQUEUE_BATCH_TOKENS": "4096",
        "COLQUEUE_MAX_BODY_BYTES": str(6 * 2**20),
        "COLQUEUE_MAX_INPUT_BYTES": str(2**20),
        "COLQUEUE_MAX_INPUTS": "64",
    }
    with Stack(tmp_path_factory.mktemp("stack"), **settings) as running:
        running.start_worker()
        running.start_flower()
        running.start_api()
        running.wait_until_ready()
        yield running
