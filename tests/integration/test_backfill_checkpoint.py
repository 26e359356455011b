"""One output folder holds the rows of one checkpoint, whatever becomes of the service's model meanwhile."""

import json
import sqlite3
import subprocess
import sys

import msgpack
import pytest
from documents import DPI, Documents, pdf
from service_double import Answer, ServiceDouble
from stack import clean_environment

from colqueue_client import load
from colqueue_client.backfill.layout import manifest_path

OLD, NEW = "01d000000001", "4e4000000001"


@pytest.fixture
def service():
    with ServiceDouble() as double:
        yield double


@pytest.fixture
def documents(tmp_path):
    documents = Documents(tmp_path / "documents")
    for number in range(6):
        documents.add(f"{number}.pdf", pdf(2, seed=number), 2)
    return documents


def backfill(service, documents, out, *more):
    line = [sys.executable, "-m", "colqueue_client.cli", "backfill", str(documents.folder), "--out", str(out)]
    line += ["--dpi", str(DPI), "--job-pages", "2", "--json", *more]
    settings = clean_environment(COLQUEUE_URL=service.url, SERVICE_API_KEY="key")
    return subprocess.run(line, env=settings, capture_output=True, text=True, timeout=200, check=False)


def checkpoint_of(out):
    with sqlite3.connect(manifest_path(out)) as manifest:
        return manifest.execute("SELECT value FROM facts WHERE name = 'model_id'").fetchone()[0]


def test_the_first_answer_decides_and_later_jobs_name_its_checkpoint(service, documents, tmp_path):
    """The service changes its model after the first job: jobs that name none get the new one."""
    answered = []

    def answer(asked):
        answered.append(asked or (NEW if answered else OLD))
        if len(answered) == 2:  # both were submitted before any result named a checkpoint
            service.finishing.set()
        return answered[-1]

    service.finishing.clear()
    service.answered_by = answer
    done = backfill(service, documents, tmp_path / "out", "--jobs", "3")
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout)["embedded"] == 12
    kept = checkpoint_of(tmp_path / "out")
    assert kept in {OLD, NEW}
    assert len(load(tmp_path / "out")) == 12
    assert answered.count(kept) >= 6, "the pages of other answers were embedded again"


def test_a_folder_of_another_checkpoint_is_refused_with_a_way_out(service, documents, tmp_path):
    service.answered_by = lambda asked: asked or OLD
    assert backfill(service, documents, tmp_path / "out").returncode == 0
    documents.add("later.pdf", pdf(1, seed=9), 1)
    service.model_ids = {NEW}
    service.answered_by = lambda asked: asked or NEW
    done = backfill(service, documents, tmp_path / "out")
    assert done.returncode not in {0, 1}
    assert f"of the checkpoint {OLD} of the model double, which no worker serves any more" in " ".join(
        done.stderr.split()
    )
    assert "give another folder" in " ".join(done.stderr.split())
    assert len(load(tmp_path / "out")) == 12


def test_pages_whose_model_was_gone_are_submitted_again(service, documents, tmp_path):
    failed = []

    def instead(method, path):
        if method == "GET" and path.endswith("/result") and not failed:
            failed.append(path)
            errors = [{"index": index, "code": "model_gone", "message": "The model is gone."} for index in range(2)]
            body = {"input_type": "image", "embeddings": [None, None], "errors": errors}
            return Answer(200, msgpack.packb(body), "application/msgpack")
        return None

    service.instead = instead
    done = backfill(service, documents, tmp_path / "out")
    assert failed
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout)["embedded"] == 12
