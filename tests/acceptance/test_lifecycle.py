"""A stack from its first moment to its end, which keeps results for five seconds and an idle model for one."""

from datetime import UTC, datetime
from signal import SIGTERM

import pytest
import redis
from acceptance.pictures import as_base64, png
from stack import Stack, eventually

from shared import keys

PAGE = as_base64(png())
NO_IMAGE = as_base64(b"no image at all")


@pytest.fixture(scope="module")
def started(redis_program, models_dir, tmp_path_factory):
    """A stack and what /ready answered on the way: without a worker, with a bad one, until a good one is ready."""
    del redis_program
    directory = tmp_path_factory.mktemp("lifecycle")
    with Stack(directory, COLQUEUE_CACHE_DIR=str(models_dir), COLQUEUE_RESULT_TTL_S="5") as stack:
        stack.start_api()
        with stack.client(key=None) as client:
            answers = {"no worker": client.get("/ready")}
            no_checkpoint = directory / "no-checkpoint"
            no_checkpoint.mkdir()
            bad_worker = stack.start_worker(COLQUEUE_MODEL=str(no_checkpoint))
            # Polled while the worker ends: what it says of itself is kept for a few seconds only.
            answers["bad worker"] = eventually(
                lambda: "cannot serve" in (answer := client.get("/ready")).text and answer
            )
            status = bad_worker.wait()
            with redis.Redis.from_url(stack.redis.url) as connection:
                connection.delete(keys.WORKERS)  # in place of waiting until it is forgotten
            answers["loading"] = answer_while_loading(stack, client)
            stack.wait_until_ready()
        yield stack, answers, status


def answer_while_loading(stack, client):
    """Start a worker and return what /ready answers while it loads; where it was ready too soon, start another."""
    while True:
        stack.start_worker(COLQUEUE_IDLE_UNLOAD_S="1")
        answer = eventually(
            lambda: ((answer := client.get("/ready")).status_code == 200 or "loading" in answer.text) and answer
        )
        if answer.status_code != 200:
            return answer
        stack.stop("worker")


@pytest.fixture(scope="module")
def stack_of_short_memory(started):
    return started[0]


def test_an_idle_model_is_unloaded_and_serves_the_next_caller_all_the_same(stack_of_short_memory):
    def loaded(client):
        lines = client.get("/metrics").text.splitlines()
        return {line.split()[-1] for line in lines if line.startswith("colqueue_worker_model_loaded{")}

    with stack_of_short_memory.client() as client:
        eventually(lambda: loaded(client) == {"0.0"})
        assert client.get("/ready").status_code == 200
        answer = client.post("/embeddings", json={"input_type": "image", "inputs": [PAGE]})
        assert answer.status_code == 200, answer.text
    # Too soon unloaded again for a heartbeat to tell.
    assert "model.loaded_again" in stack_of_short_memory.worker.log.read_text()


@pytest.mark.parametrize(
    ("moment", "reason"),
    [
        ("no worker", "No worker is running."),
        ("bad worker", "The worker cannot serve its model: "),
        ("loading", "No worker is ready yet: the model is loading."),
    ],
)
def test_a_service_that_is_not_ready_says_why(started, moment, reason):
    answer = started[1][moment]

    assert answer.status_code == 503
    assert int(answer.headers["retry-after"]) > 0
    assert answer.json()["status"] == "not_ready"
    assert answer.json()["reason"].startswith(reason)


def test_a_worker_with_a_bad_checkpoint_ends_with_an_error_and_names_it(started):
    stack, answers, status = started

    assert status == 1
    assert "no-checkpoint" in answers["bad worker"].json()["reason"]
    assert "model.refused" in stack.worker.log.read_text()


@pytest.fixture
def http(stack_of_short_memory):
    with stack_of_short_memory.client() as client:
        yield client


@pytest.mark.parametrize("inputs", [[PAGE, NO_IMAGE], [NO_IMAGE]], ids=["partial", "failed"])
def test_a_result_is_gone_after_its_time_and_its_job_stays_known(http, stack_of_short_memory, inputs):
    job = http.post("/jobs", json={"input_type": "image", "inputs": inputs}).json()
    while not job["finished_at"]:
        job = http.get(f"/jobs/{job['id']}", params={"wait": 60}).json()

    gone = eventually(lambda: (answer := http.get(f"/jobs/{job['id']}/result")).status_code != 200 and answer)

    assert (gone.status_code, gone.json()["code"]) == (410, "result_expired")
    assert datetime.fromisoformat(job["expires_at"]) <= datetime.now(UTC)
    assert http.get(f"/jobs/{job['id']}").json() == job
    assert_nothing_kept(stack_of_short_memory, job)


def assert_nothing_kept(stack, job):
    names = [keys.payloads(job["id"]), keys.results(job["id"]), keys.failures(job["id"])]
    with redis.Redis.from_url(stack.redis.url) as connection:
        assert connection.exists(*names) == 0


def test_a_worker_that_is_told_to_stop_ends_well_and_is_missed_at_once(http, stack_of_short_memory):
    """Last in this file."""
    assert stack_of_short_memory.stop("worker") == 0

    assert http.get("/ready").json()["reason"] == "No worker is running."
    # uvicorn ends in good order, then by the signal it was sent, as shells expect.
    assert stack_of_short_memory.stop("api") in (0, -SIGTERM)
