"""What commands make of proxies, login pages and other servers between them and the service."""

import json
import subprocess
import sys
import threading

import pytest
from documents import DPI, Documents, pdf
from service_double import Answer, ServiceDouble, page
from stack import clean_environment

JSON = Answer(500, json.dumps({"error": "Internal server error.", "code": "internal"}).encode())
OTHER = Answer(404, json.dumps({"detail": "Not Found"}).encode())


@pytest.fixture
def service():
    with ServiceDouble() as double:
        yield double


def colqueue(service, *arguments):
    line = [sys.executable, "-m", "colqueue_client.cli", *map(str, arguments)]
    settings = clean_environment(COLQUEUE_URL=service.url, SERVICE_API_KEY="key")
    return subprocess.run(line, env=settings, capture_output=True, text=True, timeout=200, check=False)


def test_a_backfill_survives_whatever_passes(service, tmp_path):
    """Each of these comes once, in place of the answer to each kind of request."""
    documents = Documents(tmp_path / "documents")
    for number in range(10):
        documents.add(f"{number}.pdf", pdf(2, seed=number), 2)
    left = {
        (method, what): [
            page(200),
            page(302, Location="/maintenance"),
            Answer(408, b""),
            JSON,
        ]
        for method, what in (("POST", "jobs"), ("GET", "job"), ("GET", "result"), ("GET", "ready"))
    } | {("GET", "metrics"): [page(502)]}

    turn = threading.Lock()

    def instead(method, path):
        if path.startswith("/jobs/"):
            what = "result" if path.endswith("/result") else "job"
        else:
            what = path.partition("?")[0].strip("/")
        with turn:
            answers = left.get((method, what))
            return answers.pop() if answers else None

    service.instead = instead
    done = colqueue(
        service, "backfill", documents.folder, "--out", tmp_path / "out", "--dpi", DPI, "--job-pages", 2, "--json"
    )

    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout)["embedded"] == 20
    assert not [name for name, answers in left.items() if answers and name != ("GET", "ready")]


def test_a_proxys_404_does_not_make_a_job_lost(service, tmp_path):
    """Only the service can say that it does not know a job."""
    documents = Documents(tmp_path / "documents")
    documents.add("a.pdf", pdf(2, seed=1), 2)
    service.instead = lambda _, path: page(404) if path.endswith("/result") else None

    done = colqueue(service, "backfill", documents.folder, "--out", tmp_path / "out", "--dpi", DPI, "--quiet")

    assert done.returncode == 3, done.stderr
    assert "answered 404 Not Found with an HTML page: that is not colqueue" in done.stderr
    assert service.submitted() == 1
    service.instead = lambda *_: None
    again = colqueue(service, "backfill", documents.folder, "--out", tmp_path / "out", "--dpi", DPI, "--quiet")
    assert again.returncode == 0, again.stderr
    assert service.submitted() == 1, "the job was there all the time"


def test_a_refused_key_says_what_to_do(service):
    service.instead = lambda *_: Answer(403, json.dumps({"error": "Forbidden", "code": "forbidden"}).encode())

    done = colqueue(service, "jobs")

    assert done.returncode == 4
    assert done.stderr == (
        "colqueue: Forbidden (403 forbidden). Give one of the service's keys by SERVICE_API_KEY or --key\n"
    )


def test_an_output_that_cannot_be_written_is_a_sentence(service):
    """/dev/full answers every write as a full disk does."""
    line = [sys.executable, "-m", "colqueue_client.cli", "status", "--over", "0"]
    settings = clean_environment(COLQUEUE_URL=service.url, SERVICE_API_KEY="key")
    with open("/dev/full", "w") as full:  # noqa: PTH123 - a device
        done = subprocess.run(
            line, env=settings, stdout=full, stderr=subprocess.PIPE, text=True, timeout=200, check=False
        )

    assert (done.returncode, done.stderr) == (
        5,
        "colqueue: the output cannot be written: No space left on device\n",
    )


@pytest.mark.parametrize("answer", [page(404), OTHER, page(301, Location="https://elsewhere/")])
def test_every_command_says_that_a_server_is_not_colqueue(service, tmp_path, answer):
    service.instead = lambda *_: answer
    (tmp_path / "page.png").write_bytes(b"any")
    (tmp_path / "queries.txt").write_text("any\n")

    for arguments in (
        ["backfill", tmp_path, "--out", tmp_path / "out"],
        ["embed", tmp_path / "page.png"],
        ["embed", tmp_path / "queries.txt"],
        ["status"],
        ["jobs"],
        ["job", "0" * 32],
        ["cancel", "0" * 32],
    ):
        done = colqueue(service, *arguments)

        assert done.returncode == 3, done
        assert "that is not colqueue" in done.stderr or "redirects to https://elsewhere/" in done.stderr
        assert service.url in done.stderr
        assert len(done.stderr.splitlines()) == 1
    assert not (tmp_path / "out").exists()
