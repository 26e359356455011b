"""Counts and times HTTP requests, and writes all metrics of this api, the queues and the workers for Prometheus."""

import time
from collections.abc import Iterable, Iterator, Mapping
from typing import Final

from prometheus_client import CollectorRegistry, Counter, Histogram, generate_latest
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, Metric
from prometheus_client.registry import Collector
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from api.store import Backlog
from shared.jobs import Lane

__all__ = ["RequestMetrics", "exposition"]

_registry: Final = CollectorRegistry()
_requests: Final = Counter(
    "colqueue_http_requests", "HTTP requests answered", ["method", "route", "status"], registry=_registry
)
_seconds: Final = Histogram(
    "colqueue_http_request_seconds",
    "from the first byte read to the last byte sent",
    ["method", "route"],
    buckets=(0.005, 0.02, 0.05, 0.1, 0.2, 0.5, 1, 2, 5, 10, 30, 60, 300, 600),
    registry=_registry,
)

# Every label's values come from a closed set: a caller who makes up methods or paths must not make series.
_METHODS: Final = frozenset({"DELETE", "GET", "HEAD", "OPTIONS", "PATCH", "POST", "PUT"})

# What a worker's heartbeat counts, and what it is called here.
_WORKER_COUNTERS: Final = {
    "batches": "forward passes",
    "inputs": "inputs embedded",
    "tokens": "language-model tokens embedded",
    "busy_s": "seconds the model was computing",
    "dead_letters": "messages found that were not ours",
    "cache_hits": "inputs whose result was known by content",
    "cache_misses": "inputs whose result was looked for in vain",
}


class RequestMetrics:
    """ASGI middleware that counts and times requests by method, route (not path) and status."""

    def __init__(self, app: ASGIApp) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Pass the request on and note what became of it."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        status, started = 500, time.perf_counter()

        async def noting_status(message: Message) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = message["status"]
            await send(message)

        try:
            await self._app(scope, receive, noting_status)
        finally:
            route = getattr(scope.get("route"), "path", "unmatched")
            method = scope["method"] if scope["method"] in _METHODS else "other"
            _requests.labels(method, route, status).inc()
            _seconds.labels(method, route).observe(time.perf_counter() - started)


def exposition(backlogs: Mapping[Lane, Backlog], workers: Mapping[str, Mapping[str, str]]) -> bytes:
    """Return everything in Prometheus's text format."""
    at_scrape = CollectorRegistry()
    at_scrape.register(_Told([*_queue_metrics(backlogs), *_worker_metrics(workers)]))
    return generate_latest(_registry) + generate_latest(at_scrape)


class _Told(Collector):
    def __init__(self, metrics: Iterable[Metric]) -> None:
        self._metrics = metrics

    def collect(self) -> Iterable[Metric]:
        return self._metrics


def _queue_metrics(backlogs: Mapping[Lane, Backlog]) -> Iterator[Metric]:
    said = {
        "tasks": "tasks no worker has taken yet",
        "inputs": "inputs not done yet",
        "bytes": "bytes of the inputs not done yet",
        "oldest_seconds": "how long the task next in turn has waited",
    }
    gauges = {name: GaugeMetricFamily(f"colqueue_queue_{name}", text, labels=["lane"]) for name, text in said.items()}
    for lane, backlog in backlogs.items():
        values = (backlog.tasks, backlog.inputs, backlog.bytes, backlog.oldest_s or 0)
        for gauge, value in zip(gauges.values(), values, strict=True):
            gauge.add_metric([lane.value], value)
    yield from gauges.values()


def _worker_metrics(workers: Mapping[str, Mapping[str, str]]) -> Iterator[Metric]:
    states = GaugeMetricFamily("colqueue_worker_ready", "1 if the worker takes work", labels=["worker", "model"])
    loaded = GaugeMetricFamily("colqueue_worker_model_loaded", "0 while an idle model is unloaded", labels=["worker"])
    waiting = GaugeMetricFamily("colqueue_worker_inputs_waiting", "prepared, not yet in a batch", labels=["worker"])
    counters = {
        fact: CounterMetricFamily(
            f"colqueue_worker_{fact.removesuffix('_s')}{'_seconds' if fact.endswith('_s') else ''}",
            text,
            labels=["worker"],
        )
        for fact, text in _WORKER_COUNTERS.items()
    }
    for name, facts in workers.items():
        states.add_metric([name, facts.get("model", "")], facts["state"] == "ready")
        if "loaded" in facts:
            loaded.add_metric([name], float(facts["loaded"]))
        if "waiting" in facts:
            waiting.add_metric([name], float(facts["waiting"]))
        for fact, counter in counters.items():
            if fact in facts:
                counter.add_metric([name], float(facts[fact]))
    yield from (states, loaded, waiting, *counters.values())
