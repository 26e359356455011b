"""`python -m bench.answers`: measures what an api and Redis hold while many callers fetch one large result."""

import argparse
import io
import os
import sys
import tempfile
import threading
import time
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import httpx2
import numpy as np
import orjson
import redis

from bench.machine import machine_facts
from bench.terminal import say
from bench.usage import tree
from colqueue_client.launch.console import Console
from colqueue_client.launch.local_redis import LocalRedis
from colqueue_client.launch.ports import free_port
from colqueue_client.launch.processes import Children
from shared.settings import StoreSettings
from worker.store import Store

__all__ = ["main"]

_ROOT: Final = Path(__file__).parents[1]
_KEY: Final = "benchmark"
_ROWS_PER_PAGE: Final = 747
_SAMPLE_S: Final = 0.05
_READY_S: Final = 60
_FORMS: Final = {"json": "application/json", "npz": "application/x-npz", "msgpack": "application/msgpack"}


@dataclass
class _Peaks:
    """The largest values seen while the readers read."""

    api_mib: float = 0
    redis_mib: float = 0
    health_s: float = 0


def main(arguments: Sequence[str] | None = None) -> int:
    """Store a result, fetch it many times at once, print the peaks as one JSON line. Returns 1 where a fetch failed."""
    parser = argparse.ArgumentParser(prog="python -m bench.answers")
    parser.add_argument("--readers", type=int, default=50, help="callers that fetch the result at once (%(default)s)")
    parser.add_argument("--pages", type=int, default=256, help="pages in the result (%(default)s)")
    parser.add_argument("--form", choices=_FORMS, default="json", help="form of the answers (%(default)s)")
    options = parser.parse_args(arguments)
    with tempfile.TemporaryDirectory(prefix="answers-") as folder, ExitStack() as running:
        server = running.enter_context(LocalRedis(Path(folder) / "redis"))
        url, pid = _start_api(running, Path(folder), server.url)
        http = running.enter_context(_client(url))
        job_id = _finished_job(http, server.url, options.pages)
        before_mib = _resident_mib(pid)
        say(f"{options.readers} readers fetch a result of {options.pages} pages as {options.form} ...")
        started = time.monotonic()
        with _watched(pid, server.url, url) as peaks, ThreadPoolExecutor(options.readers) as readers:
            fetch = [readers.submit(_fetch, url, job_id, options.form) for _ in range(options.readers)]
            sizes = [fetched.result() for fetched in fetch]
        seconds = time.monotonic() - started
    whole = [size for size in sizes if size is not None]
    told: dict[str, Any] = {
        "readers": options.readers,
        "whole_answers": len(whole),
        "answer_mib": round(max(whole, default=0) / 2**20, 1),
        "seconds": round(seconds, 1),
        "api_before_mib": round(before_mib),
        "api_peak_mib": round(peaks.api_mib),
        "redis_peak_mib": round(peaks.redis_mib),
        "slowest_health_s": round(peaks.health_s, 2),
        "load_average": machine_facts()["load_average"],
    }
    sys.stdout.write(f"{orjson.dumps(told).decode()}\n")
    return 0 if len(whole) == options.readers else 1


def _start_api(running: ExitStack, folder: Path, redis_url: str) -> tuple[str, int]:
    port = free_port()
    environment = {
        "PATH": os.environ.get("PATH", ""),
        "PYTHONPATH": f"{_ROOT}:{_ROOT / 'client'}",
        "PYTHONSAFEPATH": "1",
        "SERVICE_API_KEY": _KEY,
        "COLQUEUE_REDIS_URL": redis_url,
        "COLQUEUE_PORT": str(port),
    }
    children = running.enter_context(Children(Console(io.StringIO()), folder))
    pid = children.start("api", [sys.executable, "-m", "api"], environment)
    url = f"http://127.0.0.1:{port}"
    ends = time.monotonic() + _READY_S
    while not _answers(url):
        if time.monotonic() > ends:
            raise TimeoutError(f"the api does not answer: see {folder}")
        time.sleep(_SAMPLE_S)
    return url, pid


def _answers(url: str) -> bool:
    try:
        return httpx2.get(f"{url}/health", trust_env=False).is_success
    except httpx2.HTTPError:
        return False


def _client(url: str) -> httpx2.Client:
    return httpx2.Client(base_url=url, headers={"Authorization": f"Bearer {_KEY}"}, timeout=600, trust_env=False)


def _finished_job(http: httpx2.Client, redis_url: str, pages: int) -> str:
    """Return the id of a job that has float32 rows of page size for each input: no model takes part."""
    body = {"input_type": "text", "inputs": ["text"] * pages}
    job_id: str = http.post("/jobs", json=body).raise_for_status().json()["id"]
    store, rows = (
        Store(StoreSettings(redis_url=redis_url)),
        np.random.default_rng(1).standard_normal((_ROWS_PER_PAGE, 128)),
    )
    for index in range(pages):
        store.save(job_id, {index: (rows / (index + 1)).astype(np.float32)})
    return job_id


def _fetch(url: str, job_id: str, form: str) -> int | None:
    """Return the bytes of a whole answer, None where it broke off."""
    try:
        with (
            _client(url) as http,
            http.stream("GET", f"/jobs/{job_id}/result", headers={"Accept": _FORMS[form]}) as answer,
        ):
            answer.raise_for_status()
            return sum(map(len, answer.iter_raw()))
    except httpx2.HTTPError:
        return None


def _resident_mib(pid: int) -> float:
    return float(sum(process.memory_info().rss for process in tree([pid]))) / 2**20


@contextmanager
def _watched(pid: int, redis_url: str, url: str) -> Iterator[_Peaks]:
    peaks, over = _Peaks(), threading.Event()
    connection = redis.Redis.from_url(redis_url)

    def watch_memory() -> None:
        while not over.wait(_SAMPLE_S):
            peaks.api_mib = max(peaks.api_mib, _resident_mib(pid))
            peaks.redis_mib = max(peaks.redis_mib, connection.info("memory")["used_memory"] / 2**20)

    def watch_loop() -> None:
        while not over.wait(_SAMPLE_S):
            asked = time.monotonic()
            httpx2.get(f"{url}/health", trust_env=False, timeout=600)
            peaks.health_s = max(peaks.health_s, time.monotonic() - asked)

    threads = [threading.Thread(target=watch) for watch in (watch_memory, watch_loop)]
    for thread in threads:
        thread.start()
    try:
        yield peaks
    finally:
        over.set()
        for thread in threads:
            thread.join()
        connection.close()


if __name__ == "__main__":
    sys.exit(main())
