"""What Flower shows, one readable row a task and the worker, and whom it lets in."""

import pytest
from acceptance.pictures import as_base64, png
from stack import FLOWER_LOGIN, eventually

from shared.messages import TASK_NAME

PAGE = as_base64(png())
NO_IMAGE = as_base64(b"no image at all")


@pytest.fixture(scope="module")
def flower(stack):
    with stack.client(key=None, url=stack.flower_url, auth=FLOWER_LOGIN) as client:
        yield client


@pytest.fixture(scope="module")
def stranger(stack):
    with stack.client(key=None, url=stack.flower_url) as client:
        yield client


def run(http, inputs, input_type="image"):
    job = http.post("/jobs", json={"input_type": input_type, "inputs": inputs}).json()
    while not job["finished_at"]:
        job = http.get(f"/jobs/{job['id']}", params={"wait": 60}).json()
    return job


def rows_of(flower, job, count):
    """Return Flower's rows of a job's tasks once as many have ended."""

    def ended():
        answer = flower.get("/api/tasks")
        assert answer.status_code == 200
        rows = [row for row in answer.json().values() if job["id"] in (row["args"] or "")]
        return rows if sum(row["state"] in ("SUCCESS", "FAILURE") for row in rows) >= count else None

    return eventually(ended)


def test_flower_shows_one_row_a_task_with_ids_and_never_a_payload(http, flower):
    job = run(http, [PAGE] * 9)

    rows = rows_of(flower, job, 3)

    assert sorted(row["args"] for row in rows) == [f"({job['id']}, inputs {span})" for span in ("0-2", "3-5", "6-8")]
    for row in rows:
        assert (row["name"], row["state"]) == (TASK_NAME, "SUCCESS")
        # Celery tells of sending once it has sent, so a worker may tell of receiving first.
        assert row["sent"]
        assert row["received"] <= row["started"] <= row["succeeded"]
        assert row["runtime"] > 0
        assert "3 embedded, 0 failed, 3 counted" in row["result"]
        assert PAGE[:30] not in str(row)


def test_flower_names_a_single_input_and_no_text(http, flower):
    question = "what nobody but the caller should read"
    job = run(http, [question], "text")

    (row,) = rows_of(flower, job, 1)

    assert row["args"] == f"({job['id']}, input 0)"
    assert question not in flower.get("/api/tasks").text


def test_a_task_whose_inputs_are_bad_has_succeeded_and_counts_them(http, flower):
    """FAILURE is for faults of ours; a bad page is the caller's."""
    job = run(http, [NO_IMAGE, PAGE, NO_IMAGE])

    (row,) = rows_of(flower, job, 1)

    assert row["state"] == "SUCCESS"
    assert "1 embedded, 2 failed, 3 counted" in row["result"]


def test_flower_sees_the_worker_online(stack, flower):
    def online():
        return flower.get("/api/workers", params={"status": "true"}).json()

    (status,) = eventually(online).values()

    assert status is True
    assert stack.worker.running()


@pytest.mark.parametrize("path", ["/", "/workers", "/tasks", "/broker", "/api/workers", "/api/tasks"])
@pytest.mark.parametrize("login", [None, ("tester", "wrong"), ("tester", "")])
def test_without_the_password_flower_shows_nothing(stranger, path, login):
    answer = stranger.get(path, auth=login)

    assert answer.status_code == 401
    assert "access-control-allow-origin" not in answer.headers


@pytest.mark.parametrize("path", ["/api/worker/shutdown/x", "/api/task/revoke/x", "/api/task/send-task/x"])
def test_without_the_password_flower_does_nothing(stranger, path):
    assert stranger.post(path).status_code == 401


@pytest.mark.parametrize("origin", [{"Origin": "https://elsewhere.example"}, {"Sec-Fetch-Site": "cross-site"}])
def test_another_sites_page_can_neither_read_nor_do_anything_with_the_persons_password(flower, origin):
    assert "access-control-allow-origin" not in flower.get("/api/workers", headers=origin).headers
    assert "access-control-allow-origin" not in flower.options("/api/workers", headers=origin).headers
    assert flower.post("/api/worker/shutdown/x", headers=origin).status_code == 403


def test_flower_asks_workers_for_nothing_that_they_refuse(stack, http, flower):
    """It asks them every five seconds to tell what they do: each refusal would be a warning in their log."""
    rows_of(flower, run(http, [PAGE]), 1)
    assert "control.refused" not in stack.worker.log.read_text()
