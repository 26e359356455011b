"""The folder of a backfill: which folders it takes, and how one of the previous version moves into the new layout."""

import os
import shutil
import sqlite3
from contextlib import closing
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest

from colqueue_client import load
from colqueue_client.backfill.layout import failures_path, hold, manifest_path, prepare
from colqueue_client.backfill.manifest import Manifest
from colqueue_client.backfill.output import output_for
from colqueue_client.backfill.spool import collected_rows
from colqueue_client.backfill.store import Store
from colqueue_client.errors import BackfillError

FIXTURES = Path(__file__).parents[1] / "fixtures"
"""Made by the code of the previous layout, killed just before it noted the pages of c.pdf."""


@pytest.fixture(params=["parquet", "npz"])
def form(request):
    return request.param


@pytest.fixture
def old(form, tmp_path):
    return Path(shutil.copytree(FIXTURES / f"backfill-layout-1-{form}", tmp_path / "out"))


def finish(folder, form):
    """What the next run does with what an earlier one left."""
    prepare(folder)
    with closing(Manifest(manifest_path(folder))) as manifest:
        output = output_for(form, folder, "tiny", 2**20, Store())
        held, unwanted = manifest.spool.files(), manifest.spool.unwanted_files()
        manifest.spool.record_removed(output.tidy(held, unwanted) | unwanted)
        output.use_columns(manifest.columns())
        for keys in list(manifest.spool.whole_documents()):
            name = output.new_name(manifest.spool.name_of(keys[0]))
            manifest.spool.begin_file(name)
            output.write(name, collected_rows(manifest.path, keys))
            manifest.spool.record_written(keys, name)
        output.close()


def assert_is_whole(folder):
    found = load(folder).arrays()
    assert {page: rows[0, 0] for page, rows in found.items()} == {
        ("a.pdf", 1): 1,
        ("a.pdf", 2): 2,
        ("sub/b.png", 1): 3,
        ("c.pdf", 1): 4,
        ("c.pdf", 2): 5,
    }
    assert len(load(folder)) == len(found)
    with closing(sqlite3.connect(manifest_path(folder))) as manifest:
        states = manifest.execute(
            "SELECT name, page, pages.state FROM pages JOIN documents ON id = document"
        ).fetchall()
        assert {(name, page) for name, page, state in states if state == "written"} == found.keys()
        assert manifest.execute("SELECT count(*) FROM spool").fetchone() == (0,)


def test_a_folder_of_the_previous_version_can_be_read_as_it_is(old, form):
    assert len(load(old)) == 5 if form == "npz" else len({page.document for page in load(old)}) == 3


def test_a_folder_of_the_previous_version_moves_into_the_new_layout(old, form):
    finish(old, form)

    assert_is_whole(old)
    assert {path.name for path in old.iterdir()} <= {"pages", "documents", "_backfill"}
    assert failures_path(old).read_text().startswith('{"document": "bad.pdf"')
    if form == "parquet":
        assert pq.read_table(old).num_rows == 5, "as pandas reads a folder"
        assert pq.read_table(old).column_names[0] == "id"
    finish(old, form)
    assert_is_whole(old)


@pytest.mark.parametrize("kills", [1, 2, 3, 4, 5, 6])
def test_a_move_that_is_killed_anywhere_goes_on(old, form, kills, monkeypatch):
    rename, calls = os.rename, []

    def killed(source, target, **more):
        calls.append(source)
        if len(calls) == kills:
            raise KeyboardInterrupt
        rename(source, target, **more)

    monkeypatch.setattr(os, "rename", killed)
    try:
        finish(old, form)
    except KeyboardInterrupt:
        monkeypatch.undo()
        finish(old, form)

    assert_is_whole(old)


def test_a_shard_that_the_previous_version_did_not_write_stays_and_is_refused(tmp_path):
    old = Path(shutil.copytree(FIXTURES / "backfill-layout-1-parquet", tmp_path / "out"))
    theirs = old / "part-00009.parquet"
    shutil.copy(old / "part-00001.parquet", theirs)

    for _ in range(2):
        with pytest.raises(BackfillError, match=r"part-00009\.parquet was not written by this backfill"):
            finish(old, "parquet")

    assert theirs.exists()
    theirs.rename(tmp_path / "elsewhere")
    finish(old, "parquet")
    assert_is_whole(old)


@pytest.mark.parametrize(
    "name", ["pages/part-00001.parquet", "part-00001.parquet", "documents/a.npz", "lancedb/pages.lance"]
)
@pytest.mark.parametrize("manifest", [None, b""])
def test_embeddings_without_a_manifest_are_refused_and_stay(tmp_path, name, manifest):
    theirs = tmp_path / name
    theirs.parent.mkdir(exist_ok=True)
    theirs.write_bytes(b"theirs")
    if manifest is not None:
        manifest_path(tmp_path).parent.mkdir()
        manifest_path(tmp_path).write_bytes(manifest)

    with pytest.raises(BackfillError, match=f"{theirs.name} is here, and the manifest .* is not .*another --out"):
        prepare(tmp_path)

    assert theirs.read_bytes() == b"theirs"


def test_a_file_that_only_has_the_manifests_name_is_refused_and_stays(tmp_path):
    for content in (b"words", None):
        theirs = tmp_path / "manifest.sqlite"
        theirs.unlink(missing_ok=True)
        if content:
            theirs.write_bytes(content * 500)
        else:
            with closing(sqlite3.connect(theirs)) as database:
                database.execute("CREATE TABLE theirs (a)")
                database.commit()
        before = theirs.read_bytes()

        with pytest.raises(BackfillError, match=r"manifest\.sqlite"):
            prepare(tmp_path)

        assert theirs.read_bytes() == before


def test_a_folder_is_held_by_one_and_a_lock_of_somebody_elses_is_not_emptied(tmp_path):
    (tmp_path / ".lock").write_text("theirs")

    with hold(tmp_path), pytest.raises(BackfillError, match="another backfill"), hold(tmp_path):
        pass

    assert (tmp_path / ".lock").read_text() == "theirs"


def test_a_manifest_gives_its_space_back(tmp_path):
    prepare(tmp_path)
    path = manifest_path(tmp_path)
    with closing(Manifest(path)) as manifest:
        for number in range(50):
            manifest.spool.put((1, number), np.zeros((100, 1024), np.float32))
        manifest.spool.drop(1)
        manifest.shrink()

    assert path.stat().st_size < 2**20
    assert [path.name for path in path.parent.iterdir()] == [path.name], "and no log beside it"
