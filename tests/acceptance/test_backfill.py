"""`colqueue backfill` and the other commands through the real stack, compared row by row with the model itself."""

import json
import subprocess

import numpy as np
import pytest
from acceptance.backfills import assert_is_what_the_model_says, backfill, colqueue, command, written
from documents import DPI, Documents, encrypted_pdf, pdf, picture, saved
from stack import KEY

from colqueue_client import Client, load
from colqueue_client.backfill.layout import failures_path
from worker.model.colqwen import load as load_model
from worker.model.options import ModelOptions
from worker.model.tiny import tiny_checkpoint


@pytest.fixture(scope="module")
def model(models_dir):
    """The checkpoint that the workers serve, in this process."""
    return load_model(ModelOptions(name=str(tiny_checkpoint(models_dir)), device="cpu"))


@pytest.fixture
def documents(tmp_path):
    return Documents.mixed(tmp_path / "documents", pdfs=2, pages_each=5, pictures=4)


def test_changed_documents_are_embedded_again_and_gone_ones_reported(stack, model, documents, tmp_path):
    out = tmp_path / "out"
    backfill(stack, documents, out)
    changed, gone = "reports/0/report 000.pdf", "pictures/001.jpeg"
    documents.add(changed, pdf(3, seed=77), 3)
    documents.add("reports/0/new.pdf", pdf(2, seed=78), 2)
    (documents.folder / gone).unlink()
    touched = documents.folder / "reports/0/report 001.pdf"
    touched.touch()

    code, summary = backfill(stack, documents, out)

    assert code == 1
    assert (summary["embedded_now"], summary["gone_documents"]) == (5, 1)
    found = written(out)
    assert (gone, 1) in found, "what is gone from the source stays in the output"
    documents.pages.discard((gone, 1))
    assert_is_what_the_model_says({page: rows for page, rows in found.items() if page[0] != gone}, documents, model)


def test_a_page_that_failed_is_tried_again_when_asked_to(stack, documents, tmp_path):
    out = tmp_path / "out"
    assert backfill(stack, documents, out)[0] == 1
    shown = jobs_of(stack)
    code, summary = backfill(stack, documents, out)
    assert (code, summary["failed"], summary["embedded_now"]) == (1, len(documents.failures), 0)
    assert jobs_of(stack) == shown, "and not without being asked"
    code, summary = backfill(stack, documents, out, "--retry-failed")
    assert (code, summary["failed"], summary["embedded_now"]) == (1, len(documents.failures), 0)
    assert sum(job["failed"] for job in jobs_of(stack)) == sum(job["failed"] for job in shown) + 2

    for name, _ in list(documents.failures):
        suffix = name.rpartition(".")[2]
        good = (
            pdf(1, seed=5) if suffix == "pdf" else saved(picture(seed=6), {"jpg": "JPEG"}.get(suffix, suffix.upper()))
        )
        documents.add(name, good, 1)
    code, summary = backfill(stack, documents, out)

    assert (code, summary["failed"], summary["embedded_now"]) == (0, 0, len(documents.failures))
    assert written(out).keys() == documents.pages
    assert failures_path(out).read_text() == ""


def jobs_of(stack):
    return json.loads(colqueue(stack, "jobs", "--json", "--limit", 1000).stdout)


def test_npz_holds_the_same_pages_as_parquet(stack, documents, tmp_path):
    backfill(stack, documents, tmp_path / "parquet")
    backfill(stack, documents, tmp_path / "npz", "--format", "npz")

    one, other = load(tmp_path / "parquet").arrays(), load(tmp_path / "npz").arrays()

    assert one.keys() == other.keys() == documents.pages
    for page, rows in one.items():
        np.testing.assert_array_equal(other[page], rows)
    assert len(load(tmp_path / "npz")) == len(one)


def test_smaller_embeddings_are_kept_as_they_are(stack, model, documents, tmp_path):
    assert backfill(stack, documents, tmp_path / "binary", "--output-dtype", "binary")[0] == 1
    assert backfill(stack, documents, tmp_path / "pooled", "--output-dtype", "int8", "--pool-factor", "2")[0] == 1

    binary, pooled = load(tmp_path / "binary").arrays(), load(tmp_path / "pooled").arrays()

    assert binary.keys() == pooled.keys() == documents.pages
    for page, image in documents.images():
        (rows,) = model.embed([model.prepare_page(image)])
        same = np.unpackbits(binary[page], axis=1) == (rows > 0)
        assert same.mean() > 0.999, "a value next to zero may fall on either side"
        assert pooled[page].dtype == np.int8
        assert pooled[page].shape == (len(rows) // 2, 128)
    found = colqueue(stack, "search", tmp_path / "binary", "Who is supplied first?", "-k", 2, "--json")
    assert len(json.loads(found.stdout)) == 2


def test_lists_and_patterns_name_what_to_embed(stack, documents, tmp_path):
    line, environment = command(stack, "backfill", "-", "--out", tmp_path / "list", "--dpi", DPI, "--json", "--quiet")
    chosen = f"{documents.folder}/pictures/000.png\n{documents.folder}/faxes/one.tiff\n"
    done = subprocess.run(line, env=environment, input=chosen, capture_output=True, text=True, timeout=120, check=False)
    assert (done.returncode, json.loads(done.stdout)["embedded"]) == (0, 4), done.stderr

    pattern = colqueue(stack, "backfill", f"{documents.folder}/**/*.jpeg", "--out", tmp_path / "glob", "--quiet")
    assert pattern.returncode == 0, pattern.stderr
    assert {page.document for page in load(tmp_path / "glob")} == {"pictures/001.jpeg", "pictures/003.jpeg"}
    assert pattern.stdout.startswith("2 pages found = 2 embedded + 0 failed + 0 skipped\n")


def test_a_search_finds_the_page_by_exact_maxsim(stack, model, documents, tmp_path):
    out = tmp_path / "out"
    backfill(stack, documents, out)
    query = model.embed([model.prepare_query("Who is supplied first?")])[0]
    scores = {page: float((query @ rows.astype(np.float32).T).max(axis=1).sum()) for page, rows in written(out).items()}
    best = sorted(scores, key=scores.get, reverse=True)[:3]

    done = colqueue(stack, "search", out, "Who is supplied first?", "-k", 3, "--json")

    matches = json.loads(done.stdout)
    assert [(match["document"], match["page"]) for match in matches] == best
    assert [match["score"] for match in matches] == pytest.approx([scores[page] for page in best], abs=1e-2)
    shown = colqueue(stack, "search", out, "Who is supplied first?", "-k", 1).stdout
    assert best[0][0] in shown
    assert "say nothing about the pages" in shown


def test_refusals_name_what_to_do_and_end_with_their_own_code(stack, documents, tmp_path):
    out = tmp_path / "out"
    assert backfill(stack, documents, out)[0] == 1
    other = colqueue(stack, "backfill", documents.folder, "--out", out, "--dpi", 100)
    assert (other.returncode, "made with dpi 72" in other.stderr) == (5, True)
    missing = colqueue(stack, "backfill", tmp_path / "nowhere", "--out", tmp_path / "new")
    assert (missing.returncode, "no such file" in missing.stderr) == (5, True)
    assert colqueue(stack, "backfill", documents.folder).returncode == 2
    refused = colqueue(stack, "backfill", documents.folder, "--out", out, "--key", "wrong")
    assert (refused.returncode, "403" in refused.stderr) == (4, True)
    for done in (other, missing, refused):
        assert "Traceback" not in done.stderr


def test_the_other_commands_tell_people_and_scripts(stack, documents, tmp_path):
    status = colqueue(stack, "status", "--over", 0)
    assert status.returncode == 0
    assert status.stdout.startswith("ready\n")
    assert "tiny" in status.stdout
    (worker,) = json.loads(colqueue(stack, "status", "--over", 0, "--json").stdout)["workers"].values()
    assert worker["ready"]

    (tmp_path / "queries.txt").write_text("one\n\ntwo\n")
    page, invoice = documents.folder / "pictures/000.png", documents.folder / "reports/0/report 000.pdf"
    kept = tmp_path / "kept.npz"
    done = colqueue(stack, "embed", page, invoice, tmp_path / "queries.txt", "--out", kept, "--json", "--dpi", DPI)
    assert done.returncode == 0, done.stderr
    told = json.loads(done.stdout)
    assert len(told) == 1 + 5 + 2
    with np.load(kept) as arrays:
        assert {one["input"]: (one["rows"], one["dim"]) for one in told} == {n: a.shape for n, a in arrays.items()}
    bad = colqueue(stack, "embed", documents.folder / "broken/cut.png")
    assert (bad.returncode, "image_invalid" in bad.stderr) == (1, True)

    with Client(stack.url, KEY) as service:
        job = service.submit(images=[page])
        service.wait(job)
    shown = colqueue(stack, "job", job.id, "--wait", "--json")
    assert (shown.returncode, json.loads(shown.stdout)["status"]) == (0, "completed")
    assert job.id in colqueue(stack, "jobs").stdout
    assert colqueue(stack, "cancel", job.id).returncode == 0, "a finished job stays as it is"
    unknown = colqueue(stack, "job", "0" * 32)
    assert (unknown.returncode, "job_not_found" in unknown.stderr) == (4, True)
    nowhere = colqueue(stack, "jobs", "--url", "http://127.0.0.1:1")
    assert nowhere.returncode == 3


def test_an_encrypted_pdf_is_named_as_one(stack, tmp_path):
    (tmp_path / "secret.pdf").write_bytes(encrypted_pdf())

    done = colqueue(stack, "backfill", tmp_path / "secret.pdf", "--out", tmp_path / "out", "--quiet")

    assert done.returncode == 1
    assert "1 pages found = 0 embedded + 1 failed + 0 skipped" in done.stdout
    assert "failed: secret.pdf: the PDF is encrypted and no password is given (pdf_encrypted)" in done.stdout
