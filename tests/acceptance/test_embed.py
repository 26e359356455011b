"""`colqueue embed` and the rendering options, as a user types them, with files good and bad."""

import json
import os
import subprocess

import numpy as np
import pytest
from acceptance.backfills import colqueue, command
from documents import DPI, encrypted_pdf, pdf, picture, raw_pdf, saved, tiff
from PIL import Image
from stack import KEY

from colqueue_client import Client
from colqueue_client.backfill.layout import failures_path

HUGE = raw_pdf(
    b"<< /Type /Catalog /Pages 2 0 R >>",
    b"<< /Type /Pages /Kids [3 0 R] /Count 1 >>",
    b"<< /Type /Page /Parent 2 0 R /MediaBox [0 0 14400 14400] >>",
)


def embed(stack, *arguments):
    """Run `colqueue embed`; return its exit code, the inputs that it embedded, and what it said."""
    done = colqueue(stack, "embed", *arguments, "--json", "--dpi", DPI)
    assert "Traceback" not in done.stderr
    return done.returncode, [one["input"] for one in json.loads(done.stdout)], done.stderr


def test_whatever_cannot_be_embedded_is_reported_and_the_rest_is_embedded(stack, tmp_path):
    bad = {
        "cut.pdf": (pdf(2, seed=1)[:200], "pdf_invalid"),
        "secret.pdf": (encrypted_pdf(), "pdf_encrypted"),
        "cut.png": (saved(picture(seed=1), "PNG")[:60], "image_invalid"),
        "cut.tif": (tiff(2, seed=1)[:30], "image_invalid"),
        "latin.txt": ("für".encode("latin-1"), "nor UTF-8 text"),
        "program": (b"\x7fELF\0\0", "nor UTF-8 text"),
        "\x1b[31mred.pdf": (b"", "pdf_invalid"),
        os.fsdecode(b"caf\xe9.pdf"): (b"", "pdf_invalid"),
    }
    for name, (data, _) in bad.items():
        (tmp_path / name).write_bytes(data)
    (tmp_path / "folder.pdf").mkdir()
    (tmp_path / "folder").mkdir()
    os.mkfifo(tmp_path / "pipe.pdf")
    others = ["folder.pdf", "folder", "pipe.pdf", "missing.pdf", "missing"]
    # np.savez would take the first of these names for an argument of its own.
    (tmp_path / "file").write_text("one query\n")
    (tmp_path / os.fsdecode(b"gr\xfcn.png")).write_bytes(saved(picture(seed=2), "PNG"))

    code, embedded, told = embed(
        stack, *(tmp_path / name for name in [*bad, *others, "file", os.fsdecode(b"gr\xfcn.png")])
    )

    assert code == 1
    assert embedded == [f"{tmp_path}/file line 1", f"{tmp_path}/gr\\udcfcn.png"]
    lines = told.splitlines()
    assert len(lines) == len(bad) + len(others)
    for line, (_, reason) in zip(lines, bad.values(), strict=False):
        assert reason in line
    assert "\x1b" not in told


def test_every_frame_and_every_page_is_embedded_as_the_client_embeds_it(stack, tmp_path):
    (tmp_path / "fax.tif").write_bytes(tiff(3, seed=1))
    (tmp_path / "many.pdf").write_bytes(pdf(19, seed=2))
    out = tmp_path / "out.npz"

    code, embedded, told = embed(stack, tmp_path / "fax.tif", tmp_path / "many.pdf", "--out", out)

    assert (code, told) == (0, "")
    assert embedded == [f"{tmp_path}/fax.tif page {number}" for number in (1, 2, 3)] + [
        f"{tmp_path}/many.pdf page {number}" for number in range(1, 20)
    ]
    with Client(stack.url, KEY) as client, np.load(out) as arrays:
        assert sorted(arrays.files) == sorted(embedded)
        for number in (1, 2, 3):
            (alone,) = client.embed_images([saved(picture(seed=1000 + number - 1), "PNG")])
            np.testing.assert_allclose(arrays[f"{tmp_path}/fax.tif page {number}"], alone, rtol=0, atol=1e-5)


def test_a_page_of_200_inches_is_embedded_in_little_memory(stack, tmp_path):
    """Rendered at 150 dpi in full, it would take 2.7 GB."""
    (tmp_path / "huge.pdf").write_bytes(HUGE)
    line, environment = command(stack, "embed", tmp_path / "huge.pdf", "--json", "--dpi", 150)
    limited = ["bash", "-c", 'ulimit -v 2500000; exec "$@"', "bash", *line]

    done = subprocess.run(limited, env=environment, capture_output=True, text=True, timeout=240, check=False)

    assert done.returncode == 0, done.stderr
    assert [one["input"] for one in json.loads(done.stdout)] == [f"{tmp_path}/huge.pdf page 1"]


@pytest.mark.parametrize("form", ["pdf", "tif", "bmp"])
def test_a_page_that_is_too_large_for_the_service_is_made_smaller(stack, tmp_path, form):
    """The session's stack takes images of 1 MB."""
    noise = Image.fromarray(np.random.default_rng(1).integers(0, 256, (800, 600, 3), np.uint8))
    options = {"resolution": DPI, "quality": 100} if form == "pdf" else {}
    (tmp_path / f"a.{form}").write_bytes(saved(noise, {"tif": "TIFF"}.get(form, form.upper()), **options))

    refused, *_ = embed(stack, tmp_path / f"a.{form}")
    code, embedded, told = embed(stack, tmp_path / f"a.{form}", "--max-input-bytes", 2**20)

    assert refused == 1
    assert (code, len(embedded), told) == (0, 1, "")


def test_encrypted_pdfs_open_with_passwords_that_nobody_else_sees(stack, tmp_path):
    documents = tmp_path / "documents"
    documents.mkdir()
    for name in ("one", "two", "three", "four"):
        (documents / f"{name}.pdf").write_bytes(encrypted_pdf(f"{name}-secret"))
    (tmp_path / "passwords").write_text("two-secret\nthree-secret\n")
    (tmp_path / "list.csv").write_text(
        "path,password\n"
        + "".join(
            f"documents/{name}.pdf,{word}\n"
            for name, word in [("one", "one-secret"), ("two", ""), ("three", ""), ("four", "wrong")]
        )
    )
    out = tmp_path / "out"
    files = ["--password-file", tmp_path / "passwords"]

    code, embedded, told = embed(
        stack, documents / "one.pdf", documents / "two.pdf", *files, "--password", "one-secret"
    )
    assert (code, len(embedded), told) == (0, 2, "")

    first = colqueue(stack, "backfill", tmp_path / "list.csv", "--out", out, *files)
    assert first.returncode == 1, first.stderr
    (failed,) = map(json.loads, failures_path(out).read_text().splitlines())
    assert (failed["document"].endswith("four.pdf"), failed["code"]) == (True, "pdf_encrypted")

    line, environment = command(stack, "backfill", tmp_path / "list.csv", "--out", out, "--retry-failed", *files)
    environment |= {"COLQUEUE_PDF_PASSWORD": "four-secret"}
    second = subprocess.run(line, env=environment, capture_output=True, text=True, timeout=240, check=False)
    assert second.returncode == 0, second.stderr
    kept = b"".join(path.read_bytes() for path in out.rglob("*") if path.is_file())
    said = first.stdout + first.stderr + second.stdout + second.stderr
    assert b"-secret" not in kept
    assert "-secret" not in said


def test_a_page_made_by_other_limits_is_another_job(stack, tmp_path):
    """The service refuses an idempotency key that comes again with other bytes."""
    noise = Image.fromarray(np.random.default_rng(2).integers(0, 256, (400, 300, 3), np.uint8))
    (tmp_path / "a.bmp").write_bytes(saved(noise, "BMP"))
    runs = {"as it is": 2**20, "smaller": 50_000}

    jobs = {}
    for name, limit in runs.items():
        done = colqueue(stack, "backfill", tmp_path / "a.bmp", "--out", tmp_path / name, "--max-input-bytes", limit)
        assert done.returncode == 0, done.stderr
        with Client(stack.url, KEY) as client:
            jobs[name] = client.jobs(limit=1)[0][0].id

    assert jobs["as it is"] != jobs["smaller"]


def test_without_the_extra_images_are_embedded_and_a_pdf_names_what_to_install(stack, tmp_path):
    (tmp_path / "a.png").write_bytes(saved(picture(seed=1), "PNG"))
    (tmp_path / "a.pdf").write_bytes(pdf(1, seed=1))
    without = "import sys; sys.modules['pypdfium2'] = None; from colqueue_client.cli import main; sys.exit(main())"

    done = {}
    for name in ("a.png", "a.pdf"):
        line, environment = command(stack, "embed", tmp_path / name, "--json")
        line = [line[0], "-c", without, *line[3:]]
        done[name] = subprocess.run(line, env=environment, capture_output=True, text=True, timeout=240, check=False)

    assert (done["a.png"].returncode, len(json.loads(done["a.png"].stdout))) == (0, 1)
    assert (done["a.pdf"].returncode, "colqueue-client[backfill]" in done["a.pdf"].stderr) == (6, True)
