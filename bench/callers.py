"""Callers of an HTTP service: waves of pages, single queries, both at once. Knows HTTP; knows no contestant."""

import asyncio
import time
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass, field

import httpx2

from bench.errors import BenchError

__all__ = ["Call", "Load", "idle", "paged", "queried", "queried_under_load"]

_PATIENCE_S = 3600


@dataclass(frozen=True, slots=True)
class Call:
    """One POST."""

    path: str
    body: bytes
    headers: dict[str, str] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Load:
    """What a load did: when, and how long each page request and each query took."""

    start: float
    end: float
    pages: int
    page_s: Sequence[float] = ()
    query_s: Sequence[float] = ()


def idle(seconds: float) -> Load:
    """Call nobody."""
    start = time.monotonic()
    time.sleep(seconds)
    return Load(start, time.monotonic(), 0)


def paged(url: str, calls: Sequence[Call], *, callers: int, pages_each: int) -> Load:
    """Let so many callers make all of `calls` at once, each; `calls` embed `pages_each` pages."""

    async def run(http: httpx2.AsyncClient) -> Load:
        start = time.monotonic()
        page_s = await asyncio.gather(*(_request(http, calls) for _ in range(callers)))
        return Load(start, time.monotonic(), callers * pages_each, page_s=page_s)

    return asyncio.run(_with_client(url, run))


def queried(url: str, queries: Sequence[Call]) -> Load:
    """Make the calls one after the other."""

    async def run(http: httpx2.AsyncClient) -> Load:
        start = time.monotonic()
        query_s = [await _request(http, [query]) for query in queries]
        return Load(start, time.monotonic(), 0, query_s=query_s)

    return asyncio.run(_with_client(url, run))


def queried_under_load(  # noqa: PLR0913 - two loads at once
    url: str, calls: Sequence[Call], queries: Sequence[Call], *, callers: int, pages_each: int, every_s: float
) -> Load:
    """Start a query every `every_s`, answered or not, while callers make `calls` again and again until the last has."""

    async def run(http: httpx2.AsyncClient) -> Load:
        start = time.monotonic()
        over = asyncio.Event()

        async def page_caller() -> list[float]:
            seconds = []
            while not over.is_set():
                seconds.append(await _request(http, calls))
            return seconds

        async def query_caller() -> list[float]:
            # The first batch under way, so that no query finds an idle service.
            asked = []
            for query in queries:
                await asyncio.sleep(every_s)
                asked.append(asyncio.create_task(_request(http, [query])))
            over.set()
            return await asyncio.gather(*asked)

        query_s, *page_s = await asyncio.gather(query_caller(), *(page_caller() for _ in range(callers)))
        flat = [second for caller in page_s for second in caller]
        return Load(start, time.monotonic(), len(flat) * pages_each, page_s=flat, query_s=query_s)

    return asyncio.run(_with_client(url, run))


async def _with_client(url: str, run: Callable[[httpx2.AsyncClient], Awaitable[Load]]) -> Load:
    limits = httpx2.Limits(max_connections=None, max_keepalive_connections=None)
    async with httpx2.AsyncClient(base_url=url, timeout=_PATIENCE_S, limits=limits, trust_env=False) as http:
        return await run(http)


async def _request(http: httpx2.AsyncClient, calls: Sequence[Call]) -> float:
    start = time.monotonic()
    await asyncio.gather(*(_post(http, call) for call in calls))
    return time.monotonic() - start


async def _post(http: httpx2.AsyncClient, call: Call) -> None:
    try:
        answer = await http.post(call.path, content=call.body, headers=call.headers)
    except httpx2.HTTPError as error:
        raise BenchError(f"{call.path} did not answer: {error or type(error).__name__}") from error
    if answer.status_code != httpx2.codes.OK:
        raise BenchError(f"{call.path} answered {answer.status_code}: {answer.text[:300]}")
