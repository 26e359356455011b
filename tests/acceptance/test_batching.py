"""Batches form across jobs and callers."""

import json
from concurrent.futures import ThreadPoolExecutor

import pytest
from acceptance.pictures import as_base64, jpeg

CALLERS = 8
REQUESTS_EACH = 3


@pytest.mark.parametrize("input_type", ["image", "text"])
def test_requests_of_several_callers_share_forward_passes(stack, worker_counts, input_type):
    """Each request holds one input, so any batch of several inputs holds several callers' jobs."""

    def call(caller):
        with stack.client() as http:
            for request in range(REQUESTS_EACH):
                one = (
                    as_base64(jpeg(420, 588, caller * 10 + request)) if input_type == "image" else f"question {request}"
                )
                answer = http.post("/embeddings", json={"input_type": input_type, "inputs": [one]})
                assert answer.status_code == 200

    before = worker_counts()
    with ThreadPoolExecutor(CALLERS) as callers:
        list(callers.map(call, range(CALLERS)))
    after = worker_counts()

    inputs, batches = (
        after[name] - before[name] for name in ("colqueue_worker_inputs_total", "colqueue_worker_batches_total")
    )
    assert inputs == CALLERS * REQUESTS_EACH
    assert batches < inputs


def test_a_batch_names_the_jobs_it_served_in_the_workers_log(stack, http, worker_paused):
    """Several jobs of one small page each that wait together are embedded together."""
    page = as_base64(jpeg(420, 588))
    with worker_paused():
        jobs = [http.post("/jobs", json={"input_type": "image", "inputs": [page]}).json()["id"] for _ in range(12)]
    for job in jobs:
        while not http.get(f"/jobs/{job}", params={"wait": 60}).json()["finished_at"]:
            pass

    lines = [json.loads(line) for line in stack.worker.log.read_text().splitlines() if "batch.embedded" in line]
    batches = [set(line["jobs"]) & set(jobs) for line in lines]

    assert set().union(*batches) == set(jobs)
    assert max(map(len, batches)) > 1
