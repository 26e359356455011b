"""What becomes of documents that change, move, cannot be read or go away, in whole runs against a service double."""

import asyncio
import io
import json
import os
import shutil
from dataclasses import dataclass, field
from pathlib import Path

import pyarrow.parquet as pq
import pytest
from documents import DPI, pdf, picture, saved, tiff
from service_double import ServiceDouble

from colqueue_client import AsyncClient, load
from colqueue_client.backfill.layout import failures_path, manifest_path
from colqueue_client.backfill.output import FORMATS
from colqueue_client.backfill.plan import Plan
from colqueue_client.backfill.progress import Quiet
from colqueue_client.backfill.rendering import Rendering
from colqueue_client.backfill.run import backfill
from colqueue_client.errors import BackfillError


@pytest.fixture(scope="module")
def service():
    with ServiceDouble() as double:
        yield double


@dataclass
class Runs:
    """Runs of a backfill of `source` into `out`."""

    service: ServiceDouble
    source: Path
    out: Path
    options: dict = field(default_factory=dict)

    def __call__(self, *sources, stdin="", **options):
        """Run it to its end and return its summary."""
        plan = Plan(
            [str(source) for source in sources or [self.source]], self.out, processes=1, dpi=DPI,
            **(self.options | options),
        )  # fmt: skip

        async def run():
            async with AsyncClient(self.service.url, "key") as client:
                return await backfill(plan, client, io.StringIO(stdin), Quiet())

        return asyncio.run(run())

    def pages(self):
        return {(page.document, page.page) for page in load(self.out)}

    def contents(self):
        return {page.document: page.sha256 for page in load(self.out)}

    def failures(self):
        lines = map(json.loads, failures_path(self.out).read_text().splitlines())
        return {failure["document"]: failure["code"] for failure in lines}


@pytest.fixture
def run(service, tmp_path):
    source = tmp_path / "source"
    (source / "sub").mkdir(parents=True)
    (source / "a.pdf").write_bytes(pdf(2, seed=1))
    (source / "sub/b.png").write_bytes(saved(picture(seed=2), "PNG"))
    (source / "sub/c.tiff").write_bytes(tiff(2, seed=3))
    return Runs(service, source, tmp_path / "out")


ALL = {("a.pdf", 1), ("a.pdf", 2), ("sub/b.png", 1), ("sub/c.tiff", 1), ("sub/c.tiff", 2)}


def break_reading(monkeypatch, name, error):
    """Make the file or folder of this name unreadable, also for root."""
    stat, scandir, lstat = os.stat, os.scandir, os.lstat

    def refuse(do):
        def refusing(path, *more, **options):
            if f"/{name}/" in f"{os.fsdecode(path)}/":
                raise error
            return do(path, *more, **options)

        return refusing

    monkeypatch.setattr(os, "stat", refuse(stat))
    monkeypatch.setattr(os, "lstat", refuse(lstat))
    monkeypatch.setattr(os, "scandir", refuse(scandir))


@pytest.mark.parametrize("prune", [False, True])
@pytest.mark.parametrize("unreadable", ["a.pdf", "sub", "source"])
def test_what_cannot_be_read_for_a_moment_keeps_its_pages(run, unreadable, prune, monkeypatch):
    run()
    embedded = run.service.pages()

    with monkeypatch.context() as patch:
        break_reading(patch, unreadable, OSError(5, "Input/output error"))
        if unreadable == "source":
            with pytest.raises(BackfillError, match="Input/output error"):
                run(prune=prune)
        else:
            summary = run(prune=prune)
            assert summary.counts.failed == 1
            assert (summary.gone, summary.pruned) == (0, 0)
            assert run.failures() == {"sub/" if unreadable == "sub" else unreadable: "unreadable"}

    assert run.pages() == ALL
    summary = run(prune=prune)
    assert (summary.counts.embedded, summary.counts.failed, summary.gone, summary.unreachable) == (5, 0, 0, 0)
    assert run.pages() == ALL
    assert run.service.pages() == embedded, "and nothing is embedded again"


@pytest.mark.parametrize("prune", [False, True])
def test_a_share_that_is_not_mounted_keeps_its_pages(run, prune):
    run()
    shutil.rmtree(run.source / "sub")
    (run.source / "sub").mkdir()

    summary = run(prune=prune)

    assert (summary.gone, summary.pruned, summary.unreachable) == (0, 0, 2)
    assert "sub is empty: is it mounted?" in str(summary)
    assert run.pages() == ALL


def test_a_link_that_leads_nowhere_for_a_moment_keeps_its_pages(run, tmp_path):
    shutil.move(run.source / "a.pdf", tmp_path / "elsewhere.pdf")
    (run.source / "a.pdf").symlink_to(tmp_path / "elsewhere.pdf")
    run()
    (tmp_path / "elsewhere.pdf").rename(tmp_path / "away")

    summary = run(prune=True)

    assert run.failures() == {"a.pdf": "unreadable"}
    assert (summary.counts.failed, summary.counts.embedded) == (1, 5)
    assert run.pages() == ALL


def test_a_changed_file_that_cannot_be_opened_keeps_its_pages(run, monkeypatch):
    run()
    (run.source / "a.pdf").write_bytes(pdf(1, seed=7))

    async def unreadable(self, document):
        del self, document
        return {"failure": ("unreadable", "the file cannot be read: Input/output error")}

    with monkeypatch.context() as patch:
        patch.setattr(Rendering, "open", unreadable)
        assert run().counts.failed == 1
    assert run.pages() == ALL
    assert run().counts.failed == 0
    assert run.pages() == ALL - {("a.pdf", 2)}


@pytest.mark.parametrize("form", FORMATS)
def test_pages_of_gone_documents_leave_the_output_when_asked_to(run, form):
    run.options["format"] = form
    run()
    (run.source / "sub/b.png").unlink()

    summary = run()
    assert (summary.gone, summary.pruned) == (1, 0)
    assert "gone documents of earlier runs: 1; their pages stay (--prune removes them)" in str(summary)
    summary = run(prune=True)

    assert (summary.gone, summary.pruned) == (0, 1)
    if form in {"parquet", "npz"}:
        assert run.pages() == ALL - {("sub/b.png", 1)}
    summary = run(prune=True)
    assert (summary.gone, summary.pruned, summary.new) == (0, 0, 0)


def test_documents_of_other_sources_are_not_pruned(run, tmp_path):
    other = tmp_path / "other"
    other.mkdir()
    (other / "d.png").write_bytes(saved(picture(seed=4), "PNG"))
    run()
    (run.source / "a.pdf").unlink()

    summary = run(other, prune=True)

    assert (summary.gone, summary.pruned) == (0, 0)
    assert run.pages() == ALL | {("d.png", 1)}
    run(run.source / "sub/*.png", prune=True)
    assert run.pages() >= ALL - {("a.pdf", 1), ("a.pdf", 2)}, "what a pattern leaves out is still there"


@pytest.mark.parametrize("form", FORMATS)
def test_a_renamed_document_keeps_its_embeddings(run, form):
    run.options["format"] = form
    run()
    embedded = run.service.pages()
    (run.source / "sub/c.tiff").rename(run.source / "renamed.tiff")

    summary = run()

    assert (summary.renamed, summary.gone, summary.new, summary.counts.embedded) == (1, 0, 0, 5)
    assert run.service.pages() == embedded
    if form in {"parquet", "npz"}:
        assert run.pages() == (ALL - {("sub/c.tiff", 1), ("sub/c.tiff", 2)}) | {
            ("renamed.tiff", 1),
            ("renamed.tiff", 2),
        }
    summary = run()
    assert (summary.renamed, summary.new, summary.counts.embedded) == (0, 0, 5)


def test_the_content_of_a_document_that_is_out_of_reach_is_not_embedded_twice_and_stays(run):
    run()
    embedded = run.service.pages()
    shutil.copy(run.source / "sub/b.png", run.source / "copy.png")
    shutil.rmtree(run.source / "sub")
    (run.source / "sub").mkdir()

    summary = run()

    assert (summary.unreachable, summary.new) == (2, 0)
    assert run.service.pages() == embedded
    assert run.pages() == ALL | {("copy.png", 1)}


def test_another_file_of_the_same_relative_name_replaces_nothing(run, tmp_path):
    other = tmp_path / "other"
    other.mkdir()
    (other / "a.pdf").write_bytes(pdf(1, seed=9))
    run()
    before = run.contents()

    for _ in range(2):
        with pytest.raises(BackfillError, match=r"holds a\.pdf of .*/source, and .*/other has another file.*--moved"):
            run(other)
        assert run.contents() == before
        assert run().new == 0, "and the first source goes on as before"

    summary = run(other, moved=True)
    assert summary.new == 1
    assert run.pages() == ALL - {("a.pdf", 2)}


def test_a_source_that_has_moved_as_a_whole_is_the_same(run, tmp_path):
    run()
    embedded = run.service.pages()
    run.source = run.source.rename(tmp_path / "moved")

    summary = run()

    assert (summary.counts.embedded, summary.new, summary.gone) == (5, 0, 0)
    assert run.service.pages() == embedded
    (run.source / "a.pdf").write_bytes(pdf(1, seed=8))
    assert run().new == 1, "and it belongs to its new place"


def test_a_mistyped_first_run_does_not_bind_the_folder(run):
    with pytest.raises(BackfillError, match="no such file"):
        run(run.source / "sorce", output_dtype="float32")
    with pytest.raises(BackfillError, match="no file matches"):
        run(f"{run.source}/*.djvu", format="npz")

    run()

    assert run.pages() == ALL
    with pytest.raises(BackfillError, match="was made with output_dtype float16, not float32"):
        run(output_dtype="float32")


def test_columns_of_a_list_go_out_and_a_later_list_may_have_others(run, tmp_path):
    (tmp_path / "one.csv").write_text("path,year,page\nsource/a.pdf,2026,x\n")
    (tmp_path / "two.jsonl").write_text('{"path": "source/sub/b.png", "author": "É. Noether"}\n')

    run(tmp_path / "one.csv")
    run(tmp_path / "two.jsonl")

    table = pq.read_table(run.out).to_pylist()
    assert [(row["document"], row["page"], row["year"], row["list_page"], row["author"]) for row in table] == [
        ("source/a.pdf", 1, "2026", "x", None),
        ("source/a.pdf", 2, "2026", "x", None),
        ("source/sub/b.png", 1, None, None, "É. Noether"),
    ]
    assert {(row["width"], row["height"]) for row in table} == {(84, 112)}
    assert {page.columns.get("year") for page in load(run.out)} == {"2026", None}


def test_a_run_embeds_no_more_pages_than_its_limit(run):
    embedded = run.service.pages()

    for done in (2, 4, 5, 5):
        summary = run(limit=2)
        assert summary.counts.embedded == done
        assert run.service.pages() == embedded + done

    assert run.pages() == ALL


def test_odd_names_and_files_end_no_run(run):
    with open(os.fsencode(run.source) + b"/\xff.png", "wb") as file:  # noqa: PTH123 - a Path is text
        file.write(saved(picture(seed=5), "PNG"))
    (run.source / "line\nbreak.png").write_bytes(saved(picture(seed=6), "PNG"))
    (run.source / "loop.pdf").symlink_to("loop.pdf")
    os.mkfifo(run.source / "pipe.pdf")
    (run.source / "folder.npz").mkdir()
    (run.source / "folder.npz/d.png").write_bytes(saved(picture(seed=7), "PNG"))
    (run.source / f"{'n' * 250}.png").write_bytes(saved(picture(seed=8), "PNG"))

    summary = run(format="npz")

    assert run.failures() == {"loop.pdf": "unreadable", "pipe.pdf": "unreadable"}
    assert summary.counts.failed == 2
    assert run.pages() == ALL | {
        ("\\udcff.png", 1), ("line\nbreak.png", 1), ("folder.npz/d.png", 1), (f"{'n' * 250}.png", 1),
    }  # fmt: skip


def test_the_manifest_is_small_when_a_run_is_done(run):
    run(limit=3)
    run()

    with manifest_path(run.out).open("rb") as manifest:
        assert manifest.read(16) == b"SQLite format 3\0"
    assert {path.name for path in manifest_path(run.out).parent.iterdir()} == {"manifest.sqlite", "failures.jsonl"}
    assert manifest_path(run.out).stat().st_size < 5 * 747 * 256, "the embeddings have left it"
