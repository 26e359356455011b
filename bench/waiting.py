"""Measures how long a short query waits beside ingestion: `python -m bench.waiting [--url URL]`.

Every load runs against one service. A query starts every `--every` seconds, answered or not, so that slow answers do
not thin out the load. The ingesting callers send 16 texts of 6,000 characters again and again, as morphik-core does,
until the last query is answered.
"""

import argparse
import asyncio
import itertools
import os
import random
import statistics
import sys
import tempfile
import time
from collections.abc import Awaitable, Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Final

import httpx2
import orjson

from bench.contestants import Setting, running
from bench.errors import BenchError
from bench.full_size import SIZES, checkpoint
from bench.pages import query
from bench.terminal import say
from bench.trace import read_trace

__all__ = ["main"]

_TEXTS, _CHARACTERS, _TEXT_CALLERS = 16, 6_000, 4
_JOB_CALLERS, _JOB_KEYS, _QUERY_KEYS = 4, 40, 50
_PATIENCE_S: Final = 600
_WORDS: Final = ("the", "of", "and", "total", "revenue", "invoice", "page", "table", "report", "image", "what", "quick")

Caller = Callable[[httpx2.AsyncClient, str], Awaitable[None]]
"""Sends one request with a key and waits until it is done."""


@dataclass(frozen=True, slots=True)
class Load:
    """Who sends what: `callers` with these keys loop over `call`, while queries are dealt out over `query_keys`."""

    name: str
    query_keys: Sequence[str]
    caller_keys: Sequence[str] = ()
    call: Caller | None = None


def texts(number: int) -> list[str]:
    """Return what one ingesting request holds; each number makes other texts."""
    draw = random.Random(number)  # noqa: S311 - the same texts each time, nothing secret
    return [" ".join(draw.choices(_WORDS, k=_CHARACTERS // 4))[:_CHARACTERS] for _ in range(_TEXTS)]


_numbers: Final = itertools.count()


async def ingest(http: httpx2.AsyncClient, key: str) -> None:
    """Embed 16 long texts in one synchronous request."""
    body = {"input_type": "text", "inputs": await asyncio.to_thread(texts, next(_numbers))}
    _checked(await http.post("/npz/embeddings", json=body, headers=_authorized(key)))


async def interactive_job(http: httpx2.AsyncClient, key: str) -> None:
    """Submit 16 long texts as a job that asks for the interactive lane, and wait for it."""
    body = {"input_type": "text", "inputs": await asyncio.to_thread(texts, next(_numbers)), "lane": "interactive"}
    job = _checked(await http.post("/jobs", json=body, headers=_authorized(key))).json()
    while job["status"] in ("queued", "running"):
        answer = await http.get(f"/jobs/{job['id']}", params={"wait": 60}, headers=_authorized(key))
        job = _checked(answer).json()
    _checked(await http.delete(f"/jobs/{job['id']}", headers=_authorized(key)))  # its result is not wanted


async def ask(http: httpx2.AsyncClient, key: str, number: int) -> float:
    """Return the seconds that one query took."""
    start = time.monotonic()
    body = {"input_type": "text", "inputs": [query(number)]}
    _checked(await http.post("/npz/embeddings", json=body, headers=_authorized(key)))
    return time.monotonic() - start


async def measure(url: str, load: Load, *, queries: int, every_s: float) -> list[float]:
    """Return the seconds of each query under a load."""
    over = asyncio.Event()

    async def repeat(http: httpx2.AsyncClient, call: Caller, key: str) -> int:
        for count in itertools.count():
            if over.is_set():
                return count
            await call(http, key)
        raise AssertionError

    limits = httpx2.Limits(max_connections=None, max_keepalive_connections=None)
    async with httpx2.AsyncClient(base_url=url, timeout=_PATIENCE_S, limits=limits, trust_env=False) as http:
        callers = [asyncio.create_task(repeat(http, load.call, key)) for key in load.caller_keys if load.call]
        await asyncio.sleep(2 if callers else 0)  # the first batch is under way, so that no query finds an idle service
        asked = []
        for number, key in zip(range(queries), itertools.cycle(load.query_keys)):
            asked.append(asyncio.create_task(ask(http, key, number)))
            await asyncio.sleep(every_s)
        seconds = await asyncio.gather(*asked)
        over.set()
        requests = sum(await asyncio.gather(*callers))
    say(
        f"{load.name}: {len(seconds)} queries beside {requests} other requests, "
        f"p50 {1000 * statistics.median(seconds):.0f} ms, p99 {1000 * percentile(seconds, 99):.0f} ms"
    )
    return seconds


def loads(keys: Sequence[str]) -> list[Load]:
    """Return what is measured, with as many of these keys as there are."""
    first, others = keys[0], keys[1:] or keys
    return [
        Load("queries alone", [first]),
        Load("text ingestion, one key", [first], [first] * _TEXT_CALLERS, ingest),
        Load("text ingestion, queries of 50 keys", others[:_QUERY_KEYS], [first] * _TEXT_CALLERS, ingest),
        Load("interactive jobs of one key", [first], [others[0]] * _JOB_CALLERS, interactive_job),
        Load("interactive jobs of 40 keys", [first], others[:_JOB_KEYS], interactive_job),
    ]


def percentile(seconds: Sequence[float], percent: int) -> float:
    """Return a percentile, without interpolation beyond what was measured."""
    ordered = sorted(seconds)
    return ordered[min(len(ordered) - 1, round(percent / 100 * (len(ordered) - 1)))]


def main(arguments: Sequence[str] | None = None) -> int:
    """Measure every load and print a table."""
    options = _options(arguments)
    results = {}
    with tempfile.TemporaryDirectory() as scratch, _service(options, Path(scratch)) as (url, keys, trace):
        for load in loads(keys):
            if options.only and options.only not in load.name:
                continue
            before = len(read_trace(trace)) if trace else 0
            seconds = asyncio.run(measure(url, load, queries=options.queries, every_s=options.every))
            passes = [one.end - one.start for one in read_trace(trace)[before:]] if trace else []
            results[load.name] = {
                "p50_ms": 1000 * statistics.median(seconds),
                "p99_ms": 1000 * percentile(seconds, 99),
                "worst_ms": 1000 * max(seconds),
                "longest_batch_ms": 1000 * max(passes, default=0),
            }
    sys.stdout.write(f"{'load':36}{'p50 ms':>10}{'p99 ms':>10}{'worst ms':>10}{'longest batch ms':>18}\n")
    for name, figures in results.items():
        sys.stdout.write(
            f"{name:36}"
            + "".join(f"{value:{width}.0f}" for value, width in zip(figures.values(), (10, 10, 10, 18), strict=True))
            + "\n"
        )
    if options.json:
        told = {"load_average": os.getloadavg(), "options": vars(options) | {"keys": None}, "results": results}
        options.json.write_bytes(orjson.dumps(told, option=orjson.OPT_INDENT_2, default=str) + b"\n")
    return 0


@contextmanager
def _service(options: argparse.Namespace, scratch: Path) -> Iterator[tuple[str, list[str], Path | None]]:
    """Give the URL, the keys and the trace of the service to measure: a running one, or one of our own."""
    if options.url:
        yield options.url, options.keys.split(","), None
        return
    model = checkpoint(options.shape, Path("var/models"), "cpu", "float32")
    setting = Setting(model, scratch, len(os.sched_getaffinity(0)), page_batch=1)
    keys = [f"key-of-the-benchmark-{number}" for number in range(_QUERY_KEYS + 1)]
    # Results that nobody fetches leave soon, also from releases in which DELETE does not drop them.
    with running(
        "service",
        setting,
        SERVICE_API_KEY=",".join(["benchmark", *keys]),
        COLQUEUE_BATCH_TOKENS=str(options.batch_tokens),
        COLQUEUE_RESULT_TTL_S="10",
    ) as service:
        yield service.url, keys, service.trace


def _options(arguments: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m bench.waiting", description=__doc__)
    parser.add_argument("--url", help="a running service; default: start one on this machine's CPU")
    parser.add_argument(
        "--keys",
        default=os.environ.get("SERVICE_API_KEY", ""),
        help="its keys, separated by commas; "
        "51 of them measure what 50 keys do, fewer are used in turn (default: SERVICE_API_KEY)",
    )
    parser.add_argument("--queries", type=int, default=200, help="queries of each load (default: 200)")
    parser.add_argument("--every", type=float, default=0.1, help="seconds between two queries (default: 0.1)")
    parser.add_argument("--only", help="measure only the loads whose name contains this")
    parser.add_argument("--shape", choices=SIZES, default="midsize", help="checkpoint of our own service")
    parser.add_argument("--batch-tokens", type=int, default=2048, help="COLQUEUE_BATCH_TOKENS of our own service")
    parser.add_argument("--json", type=Path, help="file for the figures")
    options = parser.parse_args(arguments)
    if options.url and not options.keys:
        parser.error("--url needs --keys or SERVICE_API_KEY")
    return options


def _authorized(key: str) -> dict[str, str]:
    return {"Authorization": f"Bearer {key}"}


def _checked(answer: httpx2.Response) -> httpx2.Response:
    if not answer.is_success:
        raise BenchError(f"The service answered {answer.status_code}: {answer.text[:300]}")
    return answer


if __name__ == "__main__":
    sys.exit(main())
