"""The render processes, real ones, with documents good and bad."""

import asyncio
import io
import sys

import numpy as np
import pytest
from documents import DPI, encrypted_pdf, pdf, picture, saved, tiff
from PIL import Image

from colqueue_client.backfill.renderers import RenderDiedError, Renderers
from colqueue_client.backfill.sources import kind_of, signature
from colqueue_client.pages import render_pages

DEADLY = """
import os, signal, sys, time
from colqueue_client.backfill.render import answer, main

def do(task):
    name = os.path.basename(task["path"])
    if "abort" in name and 2 in task.get("pages", [2]):
        os.abort()
    if "hang" in name:
        signal.alarm(1)
        time.sleep(60)
    if "print" in name:
        print("a native library says hello", flush=True)
    return answer(task)

sys.exit(main(do))
"""


def ask(*tasks, count=1, module="colqueue_client.backfill.render"):
    """Return the answers to tasks asked all at once; what died is its error."""

    async def asking():
        async with Renderers(count, module=module) as renderers:
            return await asyncio.gather(*map(renderers.ask, tasks), return_exceptions=True)

    return asyncio.run(asking())


def opening(path):
    return {"path": str(path), "kind": kind_of(str(path))}


def rendering(path, *pages, dpi=DPI):
    return opening(path) | {"signature": signature(str(path)), "pages": list(pages), "dpi": dpi}


def file(tmp_path, name, data):
    (tmp_path / name).write_bytes(data)
    return tmp_path / name


def pixels(data):
    return np.asarray(Image.open(io.BytesIO(data)).convert("RGB"))


def test_the_pages_of_a_pdf_are_rendered_as_asked(tmp_path):
    path = file(tmp_path, "a.pdf", pdf(5, seed=1))

    opened, rendered = ask(opening(path), rendering(path, 4, 2), count=2)

    assert (opened["pages"], opened["signature"], len(opened["sha256"])) == (5, signature(str(path)), 64)
    expected = list(render_pages(path, dpi=DPI))
    assert [pixels(page).tolist() for page in rendered["pages"]] == [pixels(expected[n - 1]).tolist() for n in (4, 2)]
    assert rendered["sizes"] == [[84, 112], [84, 112]]
    (larger,) = ask(rendering(path, 1, dpi=2 * DPI))
    assert pixels(larger["pages"][0]).shape == (224, 168, 3)


def test_an_enormous_page_is_rendered_more_coarsely(tmp_path):
    path = file(tmp_path, "plan.pdf", pdf(1, seed=1, width=400, height=200))

    (rendered,) = ask(rendering(path, 1, dpi=72 * 50))

    width, height = Image.open(io.BytesIO(rendered["pages"][0])).size
    assert 38_000_000 < width * height < 41_000_000
    assert width == pytest.approx(2 * height, rel=0.01)


def test_an_image_goes_as_it_is_and_a_tiff_page_by_page(tmp_path):
    image = file(tmp_path, "a.jpg", saved(picture(seed=1), "JPEG"))
    fax = file(tmp_path, "a.tif", tiff(3, seed=2))

    opened, as_it_is, of_fax, pages = ask(opening(image), rendering(image, 1), opening(fax), rendering(fax, 3, 1))

    assert (opened["pages"], as_it_is["pages"]) == (1, [image.read_bytes()])
    assert of_fax["pages"] == 3
    assert [pixels(page).tolist() for page in pages["pages"]] == [
        np.asarray(picture(seed=2000 + number)).tolist() for number in (2, 0)
    ]


@pytest.mark.parametrize("mode", ["1", "L", "P", "CMYK", "I;16", "RGBA"])
def test_faxes_of_every_kind_become_pngs(tmp_path, mode):
    image = Image.new("I;16", (20, 30), 40_000) if mode == "I;16" else picture(20, 30, seed=1).convert(mode)
    path = file(tmp_path, "a.tif", saved(image, "TIFF"))

    (rendered,) = ask(rendering(path, 1))

    assert Image.open(io.BytesIO(rendered["pages"][0])).size == (20, 30)


@pytest.mark.parametrize(
    ("name", "data", "code"),
    [
        ("cut.pdf", pdf(2, seed=1)[:200], "pdf_invalid"),
        ("empty.pdf", b"", "pdf_invalid"),
        ("secret.pdf", encrypted_pdf(), "pdf_encrypted"),
        ("cut.tif", tiff(2, seed=1)[:30], "image_invalid"),
    ],
)
def test_a_document_that_cannot_be_opened_says_why(tmp_path, name, data, code):
    (opened,) = ask(opening(file(tmp_path, name, data)))

    assert opened["failure"][0] == code
    assert opened["signature"]


def test_a_file_that_cannot_be_read_says_why(tmp_path):
    missing, gone = tmp_path / "missing.pdf", file(tmp_path, "gone.pdf", pdf(1, seed=1))
    task = rendering(gone, 1)
    gone.unlink()

    opened, rendered = ask(opening(missing), task)

    assert opened["failure"] == ["unreadable", "the file cannot be read: No such file or directory"]
    assert [page[0] for page in rendered["pages"]] == ["unreadable"]


def test_a_file_that_changed_meanwhile_is_not_taken_for_what_it_was(tmp_path):
    path = file(tmp_path, "a.pdf", pdf(2, seed=1))
    task = rendering(path, 1, 2)
    path.write_bytes(pdf(2, seed=2))

    (rendered,) = ask(task)

    assert [page[0] for page in rendered["pages"]] == ["source_changed"] * 2


@pytest.fixture
def deadly(tmp_path, monkeypatch):
    """A render process that certain documents kill."""
    (tmp_path / "deadly_render.py").write_text(DEADLY)
    monkeypatch.setenv("PYTHONPATH", f"{tmp_path}:{':'.join(sys.path)}")
    return "deadly_render"


def test_a_process_that_crashes_takes_one_task_with_it(tmp_path, deadly):
    good, bad = (file(tmp_path, name, pdf(3, seed=1)) for name in ("good.pdf", "abort.pdf"))

    tasks = [opening(good), rendering(bad, 1), rendering(bad, 1, 2), rendering(good, 1), rendering(bad, 3)]
    answers = ask(*tasks, module=deadly)

    assert [isinstance(answer, RenderDiedError) for answer in answers] == [False, False, True, False, False]
    assert "SIGABRT" in str(answers[2])


def test_a_process_that_hangs_is_ended(tmp_path, deadly):
    hanging, good = (file(tmp_path, name, pdf(1, seed=1)) for name in ("hang.pdf", "good.pdf"))

    died, opened = ask(opening(hanging), opening(good), module=deadly)

    assert "longer than" in str(died)
    assert opened["pages"] == 1


def test_what_a_library_prints_does_not_come_between_the_answers(tmp_path, deadly):
    path = file(tmp_path, "print.pdf", pdf(1, seed=1))

    first, second = ask(opening(path), opening(path), module=deadly)

    assert first["pages"] == second["pages"] == 1
