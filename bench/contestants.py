"""Starts one contestant as its users would and says where it listens. Knows commands; knows no load."""

import io
import os
import shutil
import sys
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Final

import httpx2

from bench.dialects import Bento, Contract, Dialect, Lit
from bench.errors import BenchError
from bench.peers import peer_python
from bench.trace import TRACE_VARIABLE
from bench.usage import end_all, tree
from colqueue_client.launch.console import Console
from colqueue_client.launch.local_redis import LocalRedis
from colqueue_client.launch.ports import free_port
from colqueue_client.launch.processes import Children

__all__ = ["SERVERS", "Running", "Setting", "running"]

_ROOT: Final = Path(__file__).parents[1]
_KEY: Final = "benchmark"
_READY_S: Final = 300
_POLL_S: Final = 0.2


@dataclass(frozen=True, slots=True)
class Setting:
    """What all contestants share."""

    model: Path
    directory: Path
    """Logs, traces and Redis's data of this run."""

    threads: int
    """Of torch, for each contestant's forward pass."""

    page_batch: int
    """Pages a stock forward pass: what the sweep found best, for the peers."""

    device: str = "cpu"
    dtype: str = "float32"

    def environment(self, trace: Path, port: int) -> dict[str, str]:
        """Return this process's environment without settings of colqueue's, completed for a contestant."""
        kept = {name: value for name, value in os.environ.items() if not name.startswith(("COLQUEUE_", "SERVICE_"))}
        return kept | {
            "PYTHONPATH": str(_ROOT),
            "PYTHONSAFEPATH": "1",
            "OMP_NUM_THREADS": str(self.threads),
            TRACE_VARIABLE: str(trace),
            "BENCH_MODEL": str(self.model),
            "BENCH_PORT": str(port),
            "BENCH_THREADS": str(self.threads),
            "BENCH_PAGE_BATCH": str(self.page_batch),
            "BENCH_DEVICE": self.device,
            "BENCH_DTYPE": self.dtype,
        }


@dataclass(frozen=True, slots=True)
class Running:
    """A contestant that answers."""

    name: str
    url: str
    dialect: Dialect
    trace: Path
    pids: dict[str, int]
    """By part: `redis`, `worker`, `api`, or the contestant's own name."""


@dataclass(frozen=True, slots=True)
class _Kind:
    dialect: Dialect
    ready_path: str
    peer_command: tuple[str, ...] = ()


_SEED: Final = "seed"
_SERVICE: Final = "service"
_KINDS: Final = {
    _SEED: _Kind(Contract(), "/openapi.json"),
    _SERVICE: _Kind(Contract("/npz/embeddings", _KEY), "/ready"),
    "bentoml": _Kind(Bento(), "/readyz", ("bentoml", "serve", "bench.bento_service:Colqwen", "--host", "127.0.0.1")),
    "litserve": _Kind(Lit(), "/health", ("bench.lit_service",)),
}
SERVERS: Final = tuple(_KINDS)
"""Their names, in the order in which a round meets them."""


@contextmanager
def running(name: str, setting: Setting, **settings: str) -> Iterator[Running]:
    """Start `name`, wait until it is ready, end it and all it started on leaving. From the main thread.

    `settings` are further environment variables. Raises `BenchError` where it does not become ready.
    """
    kind, port = _KINDS[name], free_port()
    directory = setting.directory / name
    shutil.rmtree(directory, ignore_errors=True)
    directory.mkdir(parents=True)
    trace, url = directory / "trace.jsonl", f"http://127.0.0.1:{port}"
    environment = setting.environment(trace, port) | settings
    with ExitStack() as stack:
        pids: dict[str, int] = {}
        left = tree([])
        stack.callback(end_all, left)  # BentoML and LitServe start processes of their own, in sessions of their own
        if name == _SERVICE:
            redis = stack.enter_context(LocalRedis(directory / "redis"))
            pids["redis"] = redis.pid
            environment |= _service_environment(setting, redis.url, port, directory) | settings
        children = stack.enter_context(Children(Console(io.StringIO()), directory))
        for part, command in _commands(name, port).items():
            pids[part] = children.start(part, command, environment)
        stack.callback(lambda: left.extend(tree(pids.values())))
        _wait_until_ready(children, f"{url}{kind.ready_path}", name)
        yield Running(name, url, kind.dialect, trace, pids)


def _service_environment(setting: Setting, redis_url: str, port: int, directory: Path) -> dict[str, str]:
    return {
        "SERVICE_API_KEY": _KEY,
        "COLQUEUE_MODEL": str(setting.model.absolute()),
        "COLQUEUE_DEVICE": setting.device,
        "COLQUEUE_DTYPE": setting.dtype,
        "COLQUEUE_CACHE_DIR": str(setting.directory),
        "COLQUEUE_REDIS_URL": redis_url,
        "COLQUEUE_PORT": str(port),
        "COLQUEUE_ALIVE_FILE": str(directory / "alive"),
    }


def _commands(name: str, port: int) -> dict[str, list[str]]:
    if name == _SERVICE:
        return {
            "worker": [sys.executable, "-m", "bench.observed_worker"],
            "api": [sys.executable, "-m", "api"],
        }
    if name == _SEED:
        return {name: [sys.executable, "-m", "bench.seed"]}
    python = str(peer_python(_ROOT / "var" / "bench-venv"))
    port_option = ["--port", str(port)] if name == "bentoml" else []
    return {name: [python, "-m", *_KINDS[name].peer_command, *port_option]}


def _wait_until_ready(children: Children, url: str, name: str) -> None:
    for _ in range(int(_READY_S / _POLL_S)):
        children.wait(_POLL_S)
        try:
            if httpx2.get(url, timeout=5, trust_env=False).status_code == httpx2.codes.OK:
                return
        except httpx2.HTTPError:
            continue
    raise BenchError(f"{name} was not ready after {_READY_S} s: see its log")
