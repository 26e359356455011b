"""What a backfill makes of a store that cannot take its pages: it says so before the first page is embedded."""

import shutil
import subprocess
import sys

import lancedb
import pytest
from documents import DPI, Documents, pdf
from service_double import ServiceDouble
from stack import clean_environment

SECRET = "a-key-of-the-store"  # noqa: S105 - of no store


@pytest.fixture
def service():
    with ServiceDouble() as double:
        yield double


@pytest.fixture
def backfill(service, tmp_path):
    """Run `colqueue backfill` of one document to its end; every file in the output must be without the key."""
    documents = Documents(tmp_path / "documents")
    documents.add("a.pdf", pdf(2, seed=1), 2)
    out = tmp_path / "out"

    def run(*more, **environment):
        line = [sys.executable, "-m", "colqueue_client.cli", "backfill", documents.folder, "--out", out, "--dpi", DPI]
        settings = clean_environment(COLQUEUE_URL=service.url, SERVICE_API_KEY="key", **environment)
        done = subprocess.run(
            list(map(str, [*line, *more])), env=settings, capture_output=True, text=True, timeout=200, check=False
        )
        assert "Traceback" not in done.stderr
        assert SECRET not in done.stdout + done.stderr
        for path in out.rglob("*"):
            assert path.is_dir() or SECRET.encode() not in path.read_bytes()
        return done

    return run


def test_a_precision_that_the_store_cannot_compare_embeds_nothing(backfill, service):
    done = backfill("--format", "lancedb", "--output-dtype", "int8")

    assert done.returncode == 5, done.stderr
    assert done.stderr.splitlines()[-1] == (
        "colqueue: LanceDB has no MaxSim over int8: use --output-dtype float16 or float32"
    )
    assert service.submitted() == 0


def test_a_table_of_another_form_embeds_nothing(backfill, service, tmp_path):
    lancedb.connect(str(tmp_path / "store")).create_table("mine", [{"document": "a"}])

    done = backfill("--format", "lancedb", "--store", tmp_path / "store", "--collection", "mine")

    assert done.returncode == 5, done.stderr
    assert "the table mine at" in done.stderr
    assert service.submitted() == 0
    shutil.rmtree(tmp_path / "out")
    assert backfill("--format", "lancedb", "--store", tmp_path / "store", "--collection", "new").returncode == 0


@pytest.mark.parametrize("by_option", [True, False])
def test_a_server_that_does_not_answer_embeds_nothing(backfill, service, by_option):
    store = ["--format", "qdrant", "--store", "http://127.0.0.1:1", "--store-timeout", "1"]
    done = backfill(*store, "--store-key", SECRET) if by_option else backfill(*store, COLQUEUE_STORE_KEY=SECRET)

    assert done.returncode == 5, done.stderr
    assert done.stderr.splitlines()[-1].startswith("colqueue: Qdrant at http://127.0.0.1:1 does not answer")
    assert "trying again in 1 s" in done.stderr
    assert service.submitted() == 0


def test_a_server_that_is_not_qdrant_embeds_nothing(backfill, service):
    """It is the service itself, whose address is easily taken for that of the store."""
    done = backfill("--format", "qdrant", "--store", service.url, COLQUEUE_STORE_KEY=SECRET)

    assert done.returncode == 5, done.stderr
    assert "Is that the address of Qdrant?" in done.stderr
    assert service.submitted() == 0


def test_a_package_that_is_missing_is_named_with_a_code_of_its_own(backfill, tmp_path):
    (tmp_path / "site").mkdir()
    (tmp_path / "site" / "sitecustomize.py").write_text("import sys\nsys.modules['lancedb'] = None\n")

    done = backfill("--format", "lancedb", PYTHONPATH=f"{tmp_path / 'site'}:{':'.join(sys.path)}")

    assert done.returncode == 6, done.stderr
    assert done.stderr.splitlines()[-1] == "colqueue: lancedb is not installed: pip install 'colqueue-client[lancedb]'"
