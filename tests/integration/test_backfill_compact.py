"""`compact` merges shards; a kill at any moment loses and doubles no page."""

import os
from contextlib import closing

import numpy as np
import pyarrow.parquet as pq
import pytest

from colqueue_client import load
from colqueue_client.backfill.compact import compact
from colqueue_client.backfill.layout import hold, manifest_path, prepare
from colqueue_client.backfill.manifest import Manifest
from colqueue_client.backfill.output import output_for
from colqueue_client.backfill.records import Sighting
from colqueue_client.backfill.spool import collected_rows
from colqueue_client.backfill.store import Store
from colqueue_client.cli import main
from colqueue_client.errors import BackfillError
from colqueue_client.wire import JobResult

SHARDS = 7


def rows_of(document, page):
    return np.random.default_rng([document, page]).normal(size=(40, 128)).astype(np.float16)


def written_folder(folder, form="parquet"):
    """A folder with a document of two pages in each of its shards, as runs leave it that each find one."""
    folder.mkdir()
    prepare(folder)
    with closing(Manifest(manifest_path(folder))) as manifest:
        manifest.set_fact("format", form)
        manifest.set_fact("model", "some-model")
        output = output_for(form, folder, "some-model", 2**20, Store())
        output.tidy(set(), set())
        sightings = (Sighting(f"{n}.pdf", f"/source/{n}.pdf", "pdf", "1", root="/source") for n in range(SHARDS))
        manifest.record_found(sightings)
        manifest.finish_finding()
        for document in manifest.documents("new"):
            manifest.record_opened(document, f"sha {document.id}", "1", 2)
            keys = [(document.id, 1), (document.id, 2)]
            job = manifest.record_submitted("job", keys)
            manifest.record_collected(job, JobResult([rows_of(*key) for key in keys], []))
            name = output.new_name(document.name)
            manifest.spool.begin_file(name)
            output.write(name, collected_rows(manifest.path, keys))
            manifest.spool.record_written(keys, name)
    return folder


@pytest.fixture
def folder(tmp_path):
    return written_folder(tmp_path / "out")


def silent(line):
    del line


def assert_is_whole(folder):
    """By our own reader, and by the manifest."""
    found = load(folder).arrays()
    assert len(load(folder)) == len(found) == 2 * SHARDS
    for (document, page), rows in found.items():
        np.testing.assert_array_equal(rows, rows_of(int(document.removesuffix(".pdf")) + 1, page))


def shards(folder):
    return sorted(path.name for path in (folder / "pages").iterdir())


def test_small_files_become_one_and_every_page_stays(folder):
    done = compact(folder, 2**20, silent)

    assert (done.files_before, done.files) == (SHARDS, 1)
    assert shards(folder) == ["part-00008.parquet"]
    assert_is_whole(folder)
    assert pq.read_table(folder).num_rows == 2 * SHARDS
    with closing(Manifest(manifest_path(folder), new_run=False)) as manifest:
        assert manifest.spool.files() == {"part-00008.parquet"}
        assert manifest.spool.unwanted_files() == set()
    assert compact(folder, 2**20, silent).files == 1


def test_files_are_merged_up_to_the_size_only(folder):
    size = max(path.stat().st_size for path in (folder / "pages").iterdir())

    assert compact(folder, int(size * 2.5), silent).files == 4
    assert_is_whole(folder)
    assert compact(folder, size, silent).files == 4, "those that are full stay as they are"


@pytest.mark.parametrize("call", ["replace", "unlink", "fsync"])
def test_a_kill_at_any_moment_loses_and_doubles_nothing(tmp_path, call, monkeypatch):
    do, kills = getattr(os, call), 0
    while True:
        folder, calls = written_folder(tmp_path / f"{kills}"), []

        def killed(*arguments, _calls=calls, _at=kills + 1, **options):
            _calls.append(arguments)
            if len(_calls) == _at:
                raise KeyboardInterrupt
            return do(*arguments, **options)

        with monkeypatch.context() as patch:
            patch.setattr(os, call, killed)
            try:
                compact(folder, 2**20, silent)
            except KeyboardInterrupt:
                kills += 1
            else:
                break
        assert_is_whole(folder)
        compact(folder, 2**20, silent)
        assert_is_whole(folder)
        assert pq.read_table(folder).num_rows == 2 * SHARDS
        assert len(shards(folder)) == 1
    assert kills


def test_pages_that_are_to_leave_are_dropped(folder):
    with closing(Manifest(manifest_path(folder))) as manifest:
        manifest.departures.begin_removal([1])

    compact(folder, 2**20, silent)

    assert {page.document for page in load(folder)} == {f"{number}.pdf" for number in range(1, SHARDS)}


def test_what_is_no_backfill_into_parquet_is_refused(tmp_path):
    (tmp_path / "empty").mkdir()
    for folder, words in ((tmp_path / "none", "no such folder"), (tmp_path / "empty", "holds no backfill")):
        with pytest.raises(BackfillError, match=words):
            compact(folder, 2**20, silent)
    assert not list((tmp_path / "empty").iterdir()), "and nothing is written into a folder that is not ours"
    with pytest.raises(BackfillError, match="holds no Parquet files"):
        compact(written_folder(tmp_path / "npz", "npz"), 2**20, silent)
    folder = written_folder(tmp_path / "held")
    with hold(folder), pytest.raises(BackfillError, match="another backfill"):
        compact(folder, 2**20, silent)


def test_the_command_says_what_it_did(folder, capsys):
    assert main(["compact", str(folder)]) == 0
    assert capsys.readouterr().out.startswith("files before: 7 of ")
    assert main(["compact", str(folder), "--json"]) == 0
    assert '"files": 1' in capsys.readouterr().out
    assert main(["compact", str(folder / "nowhere")]) == 5
    with pytest.raises(SystemExit):
        main(["compact", str(folder), "--shard-mb", "0"])
