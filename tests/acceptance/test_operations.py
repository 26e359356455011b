"""What those who run it ask: /health, /metrics, the documentation, the log. /ready stands in `test_lifecycle`."""

import json
import re

import pytest
from prometheus_client.parser import text_string_to_metric_families
from stack import eventually


def test_health_needs_no_key(stack):
    with stack.client(key=None) as client:
        answer = client.get("/health")

    assert (answer.status_code, answer.json()) == (200, {"status": "ok"})


def test_a_ready_service_says_so_without_a_key(stack):
    with stack.client(key=None) as client:
        answer = client.get("/ready")

    assert (answer.status_code, answer.json()) == (200, {"status": "ready"})


@pytest.mark.parametrize(("key", "status"), [(None, 401), ("wrong", 403)])
def test_metrics_need_the_key(stack, key, status):
    with stack.client(key=key) as client:
        assert client.get("/metrics").status_code == status


def test_metrics_are_what_prometheus_reads(http, worker_counts):
    http.post("/embeddings", json={"input_type": "text", "inputs": ["one"]})
    http.get("/jobs/an-id-that-must-not-become-a-series")
    worker_counts()
    answer = http.get("/metrics")

    assert answer.headers["content-type"].startswith("text/plain; version=")
    families = {family.name: family for family in text_string_to_metric_families(answer.text)}
    assert len(families) == answer.text.count("# TYPE "), "a name twice is refused by Prometheus"
    assert {sample.labels["lane"] for sample in families["colqueue_queue_tasks"].samples} == {"interactive", "bulk"}
    (ready,) = families["colqueue_worker_ready"].samples
    assert (ready.value, ready.labels["model"]) == (1, "tiny")
    for name in ("batches", "inputs", "tokens", "busy_seconds"):
        (sample,) = families[f"colqueue_worker_{name}"].samples
        assert sample.name == f"colqueue_worker_{name}_total"
        assert sample.value > 0
    requests = {
        (sample.labels["method"], sample.labels["route"], sample.labels["status"]): sample.value
        for sample in families["colqueue_http_requests"].samples
        if sample.name.endswith("_total")
    }
    assert requests["POST", "/embeddings", "200"] >= 1
    assert requests["GET", "/jobs/{job_id}", "404"] >= 1
    assert "an-id-that-must-not" not in answer.text


def test_every_file_of_the_documentation_is_served_from_here(stack):
    with stack.client(key=None) as client:
        page = client.get("/docs")
        named = re.findall(r"""(?:src|href)="([^"]+)\"""", page.text)
        files = {name: client.get(f"/{name}") for name in named}
        other = [client.get(path) for path in ("/docs/redoc.standalone.js", "/docs/..%2f__init__.py", "/redoc")]

    assert len(named) == 4
    assert not [name for name in named if "//" in name]
    assert {file.status_code for file in files.values()} == {200}
    assert {file.headers["content-type"].partition(";")[0] for file in files.values()} == {
        "text/javascript",
        "text/css",
        "image/png",
    }
    style = files["docs/swagger-ui.css"].text
    assert not re.findall(r"""url\((?!["']?data:)|@import""", style), "it loads nothing either"
    for answer in (page, *files.values()):
        assert "default-src 'none'" in answer.headers["content-security-policy"]
        assert "http" not in answer.headers["content-security-policy"]
    assert '"openapi.json"' in files["docs/start.js"].text
    assert [answer.status_code for answer in other] == [404] * 3


def test_refusals_over_and_over_do_not_fill_the_log(stack):
    log = stack.processes["api"].log

    def refused_and_counted():
        assert client.get("/jobs/" + "x" * 5000).status_code == 401
        lines = [line for line in log.read_text().splitlines() if '"repeats"' in line and "/jobs/xxx" in line]
        return lines and json.loads(lines[0])

    with stack.client(key=None) as client:
        line = eventually(refused_and_counted)

    assert (line["event"], line["code"], line["client"]) == ("request.refused", "unauthorized", "127.0.0.1")
    assert len(line["path"]) < 300


def test_the_documentation_is_there_and_names_every_route(stack):
    with stack.client(key=None) as client:
        page, document = client.get("/docs"), client.get("/openapi.json")

    assert page.status_code == 200
    assert "text/html" in page.headers["content-type"]
    described = document.json()
    assert set(described["paths"]) == {
        "/embeddings",
        "/npz/embeddings",
        "/jobs",
        "/jobs/{job_id}",
        "/jobs/{job_id}/result",
        "/jobs/{job_id}/events",
        "/health",
        "/ready",
        "/metrics",
    }
    body = described["paths"]["/jobs"]["post"]["requestBody"]["content"]["application/json"]["schema"]
    options = {"lane", "output_dtype", "pool_factor", "deadline_s"}
    assert set(body["properties"]) == {"input_type", "inputs", "model"} | options
    assert described["components"]["securitySchemes"]
