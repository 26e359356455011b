"""Runs the whole of colqueue as real processes in a folder of their own, for the tests."""

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from types import TracebackType
from typing import Any, Final, Self, TypeVar

import httpx2
import psutil

from colqueue_client.launch.local_redis import LocalRedis
from colqueue_client.launch.ports import free_port
from colqueue_client.launch.tether import tether

__all__ = [
    "FLOWER_LOGIN",
    "KEY",
    "OTHER_KEY",
    "ROOT",
    "THIRD_KEY",
    "Process",
    "Stack",
    "clean_environment",
    "eventually",
    "skewed_clock",
]

T = TypeVar("T")

ROOT: Final = Path(__file__).parents[1]
KEY: Final = "first-key-of-the-tests"
OTHER_KEY: Final = "second-key-of-the-tests"
THIRD_KEY: Final = "third-key-of-the-tests"
FLOWER_LOGIN: Final = ("tester", "password-of-the-tests")

_READY_S: Final = 240
_STOP_S: Final = 60
_POLL_S: Final = 0.03


def eventually(condition: Callable[[], T], within_s: float = 120) -> T:
    """Return the first true value of `condition()`; AssertionError once the time is up. Never sleeps for long."""
    ends = time.monotonic() + within_s
    while not (value := condition()):
        assert time.monotonic() < ends, f"not true within {within_s} s: last value {value!r}"
        time.sleep(_POLL_S)
    return value


def clean_environment(**settings: str) -> dict[str, str]:
    """Return this process's environment without any setting of colqueue's, then with `settings`."""
    names = ("SERVICE_API_KEY", "HUGGINGFACE_TOKEN")
    kept = {name: value for name, value in os.environ.items() if not name.startswith("COLQUEUE_") and name not in names}
    # Our packages from this tree and not from the current folder, whose own entries might shadow them.
    return kept | {"PYTHONPATH": f"{ROOT}:{ROOT / 'client'}", "PYTHONSAFEPATH": "1", "PYTHONUNBUFFERED": "1"} | settings


def skewed_clock(skew_s: float) -> dict[str, str]:
    """Return settings of a process whose wall clock is ahead of ours by `skew_s` seconds."""
    path = (ROOT / "tests" / "skewed_clock", ROOT, ROOT / "client", ROOT / "tests")
    return {"PYTHONPATH": ":".join(map(str, path)), "CLOCK_SKEW_S": str(skew_s)}


class Process:
    """A program that logs to a file and dies with the tests.

    Start it from the main thread (see `colqueue_client.launch.tether`).
    """

    def __init__(self, command: list[str], directory: Path, name: str, env: Mapping[str, str]) -> None:
        self.log = directory / f"{name}.log"
        with self.log.open("ab") as output:
            self._process = subprocess.Popen(
                tether(command),
                cwd=directory,
                env=dict(env),
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=subprocess.STDOUT,
                start_new_session=True,
            )

    @property
    def pid(self) -> int:
        return self._process.pid

    def running(self) -> bool:
        return self._process.poll() is None

    def signal(self, number: signal.Signals) -> None:
        self._process.send_signal(number)

    def freeze(self) -> bool:
        """Stop it by SIGSTOP; return, once it stands still, whether it had not ended. SIGCONT lets it go on."""
        self.signal(signal.SIGSTOP)
        stopped = psutil.Process(self.pid)
        eventually(lambda: not self.running() or stopped.status() == psutil.STATUS_STOPPED)
        return self.running()

    def wait(self, within_s: float = _STOP_S) -> int:
        """Return its exit status."""
        return self._process.wait(within_s)

    def stop(self) -> int:
        """End it as an operator would, by SIGTERM, and return its exit status; -9 where it had to be killed."""
        if self.running():
            self._process.send_signal(signal.SIGCONT)
            self._process.terminate()
        try:
            return self._process.wait(_STOP_S)
        except subprocess.TimeoutExpired:
            self._process.kill()
            return self._process.wait()


class Stack:
    """Redis, api, worker and Flower on free ports: `with Stack(folder, settings) as stack`, from the main thread.

    Entering starts Redis only; `start_*` start the others and `wait_until_ready` waits. Leaving ends all. The folder is
    the current one of every process, so that no `.env` of the developer's is read.
    """

    def __init__(self, directory: Path, **settings: str) -> None:
        directory.mkdir(parents=True, exist_ok=True)
        self.directory = directory
        self.redis = LocalRedis(directory / "redis-data")
        self.port, self.flower_port = free_port(), free_port()
        self.url, self.flower_url = f"http://127.0.0.1:{self.port}", f"http://127.0.0.1:{self.flower_port}"
        self.settings = {
            "SERVICE_API_KEY": f"{KEY},{OTHER_KEY} , {THIRD_KEY}",
            "COLQUEUE_MODEL": "tiny",
            "COLQUEUE_REDIS_URL": self.redis.url,
            "COLQUEUE_PORT": str(self.port),
            "COLQUEUE_LOG_LEVEL": "DEBUG",
            **settings,
        }
        self.ports = {"api": self.port}
        self.processes: dict[str, Process] = {}
        self._started: list[Process] = []

    def __enter__(self) -> Self:
        self.redis.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        try:
            for process in reversed(self._started):
                process.stop()
        finally:
            self.redis.stop()

    @property
    def worker(self) -> Process:
        return self.processes["worker"]

    def start_api(self, name: str = "api", root: Path = ROOT, **settings: str) -> str:
        """Start an api, wait until it listens and return its URL; more of them, other `settings`, at will.

        One of the same name listens on the same port again. `root` is the source to run: this tree, or another release.
        """
        port = self.ports.setdefault(name, free_port())
        url = f"http://127.0.0.1:{port}"
        source = {"PYTHONPATH": f"{root}:{root / 'client'}"}
        self._start(name, [sys.executable, "-m", "api"], source | {"COLQUEUE_PORT": str(port)} | settings)
        with self.client(url=url) as http:
            self._eventually(name, lambda: _status(http, "/health") == httpx2.codes.OK)
        return url

    def start_worker(self, name: str = "worker", **settings: str) -> Process:
        """Start a worker, which takes a while to be ready."""
        self._start(name, [sys.executable, "-m", "worker"], settings)
        return self.processes[name]

    def start_double(self, name: str, root: Path = ROOT, **settings: str) -> Process:
        """Start a worker without a neural network (see `double_worker`); it is ready within a second or so."""
        path = f"{root}:{root / 'client'}:{root / 'tests'}"
        self._start(name, [sys.executable, str(root / "tests" / "double_worker.py")], {"PYTHONPATH": path} | settings)
        return self.processes[name]

    def start_flower(self) -> None:
        """Start Flower as `colqueue up` does and wait until it listens."""
        command = [sys.executable, "-m", "celery", "-A", "shared.celery_entry", "flower"]
        options = ["--address=127.0.0.1", f"--port={self.flower_port}"]
        self._start("flower", [*command, *options], {"FLOWER_BASIC_AUTH": ":".join(FLOWER_LOGIN)})
        with self.client(url=self.flower_url) as http:
            self._eventually("flower", lambda: _status(http, "/healthcheck") == httpx2.codes.OK)

    def stop(self, name: str) -> int:
        """End one process and return its exit status."""
        return self.processes.pop(name).stop()

    def wait_until_ready(self) -> None:
        """Return once the api says that a job sent now would be embedded."""
        with self.client() as http:
            self._eventually("worker", lambda: _status(http, "/ready") == httpx2.codes.OK)

    def client(self, key: str | None = KEY, url: str | None = None, **options: Any) -> httpx2.Client:
        """Return an HTTP client of the api that brings `key`."""
        headers = {} if key is None else {"Authorization": f"Bearer {key}"}
        return httpx2.Client(base_url=url or self.url, headers=headers, timeout=120, trust_env=False, **options)

    def _start(self, name: str, command: list[str], settings: Mapping[str, str]) -> None:
        env = clean_environment(**self.settings) | settings
        self.processes[name] = Process(command, self.directory, name, env)
        self._started.append(self.processes[name])

    def _eventually(self, name: str, condition: Callable[[], bool]) -> None:
        process = self.processes[name]

        def met() -> bool:
            assert process.running(), f"{name} ended:\n{process.log.read_text()[-4000:]}"
            return condition()

        eventually(met, _READY_S)


def _status(http: httpx2.Client, path: str) -> int | None:
    try:
        return http.get(path).status_code
    except httpx2.HTTPError:
        return None
