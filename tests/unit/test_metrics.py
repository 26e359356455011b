"""The api's metrics: closed sets of labels, and an exposition that holds nobody up."""

import asyncio
import threading
from types import SimpleNamespace

import pytest
from fastapi import FastAPI
from prometheus_client.parser import text_string_to_metric_families

from api.metrics import RequestMetrics, exposition
from api.routes import operations

app = FastAPI()
app.add_middleware(RequestMetrics)
METHODS = {"GET", "HEAD", "POST", "PUT", "PATCH", "DELETE", "OPTIONS", "other"}


@app.get("/things/{name}")
async def thing(name: str) -> str:
    return name


def ask(method, path):
    async def receive():
        return {"type": "http.request", "body": b"", "more_body": False}

    async def send(message):
        del message

    scope = {"type": "http", "method": method, "path": path, "raw_path": path.encode(), "query_string": b""}
    asyncio.run(app(scope | {"headers": [], "root_path": "", "http_version": "1.1"}, receive, send))


def label_sets():
    families = text_string_to_metric_families(exposition({}, {}).decode())
    samples = [sample for family in families for sample in family.samples if "http_request" in sample.name]
    return {tuple(sorted(sample.labels.items())) for sample in samples}


@pytest.mark.parametrize("path", ["/things/{}", "/nothing/{}", "/{}"])
def test_methods_and_paths_that_callers_make_up_make_no_series(path):
    of_other_apps = {dict(labels)["route"] for labels in label_sets()}
    for method in ["M0", *METHODS]:
        ask(method, path.format("n0"))
    before = label_sets()

    for number in range(50):
        ask(f"M{number}", path.format(f"n{number}"))
        ask("GET", path.format(f"n{number}"))

    assert label_sets() == before
    labels = [dict(labels) for labels in before]
    assert {each["method"] for each in labels} <= METHODS
    assert {each["route"] for each in labels} <= of_other_apps | {"/things/{name}", "unmatched"}


def test_the_exposition_is_written_off_the_event_loop(monkeypatch):
    wrote_on = []

    def noted(*_):
        wrote_on.append(threading.get_ident())
        return b""

    async def nothing(*_):
        return {}

    monkeypatch.setattr(operations, "exposition", noted)
    service = SimpleNamespace(store=SimpleNamespace(workers=nothing, backlogs=nothing))
    asyncio.run(operations.metrics("owner", service))

    assert len(wrote_on) == 1
    assert wrote_on != [threading.get_ident()]
