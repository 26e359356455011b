"""One request can be followed from its answer through the logs of api and worker to the batch that served it."""

import json
import re

import pytest
from acceptance.pictures import as_base64, png
from stack import KEY, OTHER_KEY, THIRD_KEY, eventually

from api.auth import Keys

REQUEST_ID = "X-Request-ID"


def lines_of(process, request_id):
    """The log lines that belong to a request."""
    lines = [json.loads(line) for line in process.log.read_text().splitlines() if request_id in line]
    return [line for line in lines if line.get("request") == request_id]


def test_a_request_is_followed_from_its_answer_to_the_batch_that_served_it(stack, http):
    request_id = "trace-of-the-tests.1"
    body = {"input_type": "image", "inputs": [as_base64(png()), as_base64(b"no image")]}

    answer = http.post("/jobs", json=body, headers={REQUEST_ID: request_id})
    job = answer.json()
    while not job["finished_at"]:
        job = http.get(f"/jobs/{job['id']}", params={"wait": 60}).json()

    assert answer.headers[REQUEST_ID] == request_id
    (queued,) = [line for line in lines_of(stack.processes["api"], request_id) if line["event"] == "job.queued"]
    assert (queued["job"], queued["inputs"]) == (job["id"], 2)
    assert queued["owner"] == Keys.parse(KEY).owner(f"Bearer {KEY}")
    worker = eventually(
        lambda: (
            (lines := {line["event"]: line for line in lines_of(stack.worker, request_id)})
            and "shard.done" in lines
            and lines
        )
    )
    assert {line["job"] for line in worker.values()} == {job["id"]}
    assert (worker["input.failed"]["index"], worker["input.failed"]["code"]) == (1, "image_invalid")
    assert worker["shard.done"]["failed"] == 1
    batches = [json.loads(line) for line in stack.worker.log.read_text().splitlines() if "batch.embedded" in line]
    assert any(job["id"] in batch["jobs"] for batch in batches)


def test_a_synchronous_request_is_followed_likewise(stack, http):
    answer = http.post("/embeddings", json={"input_type": "text", "inputs": ["a"]}, headers={REQUEST_ID: "sync-1"})

    assert answer.headers[REQUEST_ID] == "sync-1"
    assert eventually(lambda: [line["event"] for line in lines_of(stack.worker, "sync-1")]) == ["shard.done"]


@pytest.mark.parametrize("given", [None, "", "x" * 129, "two words", "line\tbreak", "\xe4", 'quote"', "{}"])
def test_an_id_that_is_missing_or_not_fit_for_a_log_is_replaced(http, given):
    headers = {} if given is None else {REQUEST_ID: given.encode("latin-1")}
    made = {http.get("/health", headers=headers).headers[REQUEST_ID] for _ in range(2)}

    assert len(made) == 2
    assert all(re.fullmatch("[0-9a-f]{32}", request_id) for request_id in made)


@pytest.mark.parametrize(
    ("method", "path", "options", "status"),
    [
        ("POST", "/embeddings", {"content": b"{"}, 400),
        ("GET", "/nothing", {}, 404),
        ("GET", "/jobs/unknown", {}, 404),
        ("PUT", "/jobs", {}, 405),
        ("POST", "/jobs", {"content": b"x" * 7 * 2**20}, 413),
        ("POST", "/jobs", {"headers": {"Authorization": "Bearer wrong"}}, 403),
    ],
)
def test_every_refusal_bears_its_id_and_stands_in_the_log_under_it(  # noqa: PLR0913, PLR0917
    stack, http, method, path, options, status
):
    request_id = f"refused-{method}-{status}"
    headers = options.pop("headers", {}) | {REQUEST_ID: request_id}

    answer = http.request(method, path, headers=headers, **options)

    assert (answer.status_code, answer.headers[REQUEST_ID]) == (status, request_id)
    if path in {"/embeddings", "/jobs/unknown"}:
        (line,) = lines_of(stack.processes["api"], request_id)
        assert (line["event"], line["status"], line["code"]) == ("request.refused", status, answer.json()["code"])


def test_no_key_stands_in_any_log(stack, http):
    http.get("/jobs")
    for process in stack.processes.values():
        log = process.log.read_text()
        assert not any(key in log for key in (KEY, OTHER_KEY, THIRD_KEY))
