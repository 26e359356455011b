import os
import sqlite3

import numpy as np
import pytest

from colqueue_client.backfill.manifest import Manifest
from colqueue_client.backfill.records import Sighting
from colqueue_client.backfill.spool import collected_rows
from colqueue_client.errors import BackfillError, InputFailedError
from colqueue_client.wire import JobResult


@pytest.fixture
def path(tmp_path):
    return tmp_path / "manifest.sqlite"


def rows(value, count=2):
    return np.full((count, 4), value, np.float16)


def sighting(name, signature="1", **more):
    return Sighting(name, f"/source/{name}", "pdf", signature, **more)


def run_with(path, *sightings):
    """A new run that has found these documents."""
    manifest = Manifest(path)
    manifest.record_found(sightings)
    manifest.finish_finding()
    return manifest


def open_all(manifest, pages=3):
    for document in manifest.documents("new"):
        manifest.record_opened(document, f"sha of {document.name}", document.signature, pages)


def all_pending(manifest):
    keys, after = [], (0, 0)
    while found := manifest.next_pending(after, 2):
        keys += found
        after = found[-1]
    return keys


def finished(*values, failures=()):
    return JobResult([None if value is None else rows(value) for value in values], list(failures))


def test_a_page_goes_from_pending_to_written(path):
    manifest = run_with(path, sighting("a"), sighting("b"))
    open_all(manifest)
    keys = all_pending(manifest)
    assert len(keys) == 6
    assert (manifest.counts.left, manifest.counts.unopened) == (6, 0)

    job = manifest.record_submitted("s1", keys[:4])
    assert all_pending(manifest) == keys[4:]
    failure = InputFailedError("image_invalid", "bad", index=2)
    manifest.record_collected(job, finished(1, 2, None, 4, failures=[failure]))
    assert manifest.spool.total_bytes() == 3 * 2 * 4 * 2
    assert manifest.spool.to_write(1) == [keys[0]], "one at least"
    assert manifest.spool.to_write(40) == [keys[0], keys[1]]
    spooled = list(collected_rows(path, [keys[0], keys[3]]))
    assert [(page.document, page.page, page.sha256) for page in spooled] == [("a", 1, "sha of a"), ("b", 1, "sha of b")]
    assert spooled[1].rows.dtype == np.float16
    assert spooled[1].rows[0, 0] == 4
    manifest.spool.record_written([keys[0], keys[1], keys[3]], "part-1")

    assert manifest.spool.files() == {"part-1"}
    assert manifest.spool.total_bytes() == 0
    assert list(manifest.failures()) == [{"document": "a", "page": 3, "code": "image_invalid", "message": "bad"}]
    counted = manifest.counts
    manifest.finish_finding()
    assert manifest.counts == counted, "counting along and counting anew agree"
    assert (counted.embedded, counted.failed, counted.left, counted.found) == (3, 1, 2, 6)


def test_another_run_finds_everything_as_it_was(path):
    manifest = run_with(path, sighting("a"))
    open_all(manifest)
    keys = all_pending(manifest)
    manifest.record_submitted("s1", keys[:2])
    manifest.close()

    manifest = run_with(path, sighting("a"))

    assert manifest.jobs() == [(1, "s1", 2)]
    assert all_pending(manifest) == keys[2:]
    assert manifest.documents("new") == []
    manifest.record_collected(1, finished(1, 2))
    assert manifest.jobs() == []


def test_what_the_service_lost_is_pending_again_as_another_attempt(path):
    manifest = run_with(path, sighting("a"))
    open_all(manifest)
    keys = all_pending(manifest)
    manifest.requeue_lost_pages(manifest.record_submitted("s1", keys))

    assert all_pending(manifest) == keys
    assert manifest.attempts(keys) == [1, 1, 1]
    late = InputFailedError("deadline_exceeded", "late", index=1)
    manifest.record_collected(manifest.record_submitted("s2", keys[:2]), finished(1, None, failures=[late]), [late])
    assert all_pending(manifest) == keys[1:]
    assert list(manifest.failures()) == []


def test_a_changed_document_waits_until_its_pages_have_left_the_output(path):
    manifest = run_with(path, sighting("a"), sighting("b"))
    open_all(manifest)
    keys = all_pending(manifest)
    manifest.record_collected(manifest.record_submitted("s1", keys), finished(*range(6)))
    manifest.spool.record_written(keys, "part-1")
    manifest.close()

    for _ in range(2):  # also when the run that noticed is killed
        manifest = run_with(path, sighting("a", "2"), sighting("b"))
        assert [document.name for document in manifest.documents("changed")] == ["a"]
        assert manifest.documents("new") == all_pending(manifest) == []
        assert (manifest.counts.embedded, manifest.counts.unopened) == (3, 1)
        manifest.close()
    manifest = run_with(path, sighting("a", "2"), sighting("b"))
    (document,) = manifest.documents("changed")
    manifest.record_opened(document, "another sha", "2", 1)

    assert all_pending(manifest) == [(document.id, 1)]
    manifest.close()
    manifest = run_with(path, sighting("a", "2"), sighting("b"))
    assert manifest.documents("changed") == []


def test_documents_that_are_gone_are_neither_counted_nor_embedded(path):
    manifest = run_with(path, sighting("a"), sighting("b"))
    open_all(manifest)
    manifest.close()

    manifest = run_with(path, sighting("b"))

    assert [path for _, path, _ in manifest.departures.next_missing({""}, 0)] == ["/source/a"]
    assert len(all_pending(manifest)) == 3
    assert manifest.counts.found == 3
    manifest.close()
    assert len(all_pending(run_with(path, sighting("a"), sighting("b")))) == 6, "and come back with their files"


def test_what_failed_stays_failed_until_it_is_tried_again(path):
    manifest = run_with(path, sighting("a"), sighting("bad", failure=("unreadable", "no")), sighting("worse"))
    for document in manifest.documents("new"):
        if document.name == "worse":
            manifest.record_refused(document, "1", ("pdf_invalid", "cut"))
        else:
            manifest.record_opened(document, "sha", "1", 1)
    (key,) = all_pending(manifest)
    manifest.record_failed(key, "pdf_page_invalid", "no page")
    manifest.close()
    manifest = run_with(path, sighting("a"), sighting("bad", failure=("unreadable", "no")), sighting("worse"))
    told = [(failure["document"], failure["page"], failure["code"]) for failure in manifest.failures()]
    assert told == [("a", 1, "pdf_page_invalid"), ("bad", None, "unreadable"), ("worse", None, "pdf_invalid")]
    assert manifest.counts.failed == 3
    assert all_pending(manifest) == []

    manifest.retry_failed()

    assert all_pending(manifest) == [key]
    assert {document.name for document in manifest.documents("new")} == {"bad", "worse"}


def test_an_output_file_that_is_missing_makes_its_pages_pending(path):
    manifest = run_with(path, sighting("a"))
    open_all(manifest)
    keys = all_pending(manifest)
    manifest.record_collected(manifest.record_submitted("s1", keys), finished(1, 2, 3))
    manifest.spool.record_written(keys[:2], "part-1")
    manifest.spool.record_written(keys[2:], "part-2")

    manifest.spool.record_removed(["part-1"])

    assert all_pending(manifest) == keys[:2]


def test_whole_documents_are_those_with_no_page_to_come(path):
    manifest = run_with(path, sighting("a"), sighting("b"))
    open_all(manifest, pages=2)
    keys = all_pending(manifest)
    manifest.record_collected(manifest.record_submitted("s1", keys[:3]), finished(1, 2, 3))
    assert list(manifest.spool.whole_documents()) == [keys[:2]]

    manifest.record_failed(keys[3], "pdf_page_invalid", "no page")

    assert list(manifest.spool.whole_documents()) == [keys[:2], keys[2:3]]


def test_one_name_for_two_files_is_refused(path):
    manifest = Manifest(path)
    two = [sighting("a"), Sighting("a", "/elsewhere/a", "pdf", "1")]

    with pytest.raises(BackfillError, match="two files would both be called a"):
        manifest.record_found(two)


def test_a_name_that_is_not_text_is_kept_as_a_path(path):
    odd = os.fsdecode(b"/source/\xff.pdf")
    manifest = run_with(path, Sighting(os.fsdecode(b"\xff.pdf"), odd, "pdf", "1"))

    (document,) = manifest.documents("new")

    assert document.path == odd
    assert document.name == "\\udcff.pdf"


def test_a_manifest_of_another_version_is_refused(path):
    Manifest(path).close()

    with sqlite3.connect(path) as database:
        database.execute("PRAGMA user_version = 99")
    database.close()

    with pytest.raises(BackfillError, match="made by a newer colqueue-client"):
        Manifest(path)


def test_what_could_not_be_read_is_tried_again_by_each_run(path):
    manifest = run_with(path, sighting("a"), sighting("b"), sighting("sub/", failure=("unreadable", "no")))
    for document in manifest.documents("new"):
        if document.name == "a":
            manifest.record_opened(document, "sha", "1", 2)
        else:
            manifest.record_refused(document, "", ("unreadable", "no"))
    first, second = all_pending(manifest)
    manifest.record_failed(first, "unreadable", "no")
    manifest.record_failed(second, "pdf_page_invalid", "no")
    manifest.close()

    manifest = run_with(path, sighting("a"), sighting("b"))

    assert all_pending(manifest) == [first]
    assert [document.name for document in manifest.documents("new")] == ["b"]
    counted = manifest.counts
    assert (counted.failed, counted.left, counted.unopened) == (1, 1, 1), "and the folder is no document"


def test_a_document_that_cannot_be_looked_at_keeps_its_pages_and_embeds_none(path):
    manifest = run_with(path, sighting("a"))
    open_all(manifest)
    keys = all_pending(manifest)
    manifest.record_collected(manifest.record_submitted("s1", keys[:1]), finished(1))
    manifest.spool.record_written(keys[:1], "part-1")
    manifest.close()

    manifest = run_with(path, sighting("a", "", failure=("unreadable", "no")))
    assert manifest.documents("changed") == manifest.documents("new") == all_pending(manifest) == []
    counted = manifest.counts
    assert (counted.embedded, counted.failed, counted.left, counted.unopened) == (1, 1, 0, 0)
    assert [failure["message"] for failure in manifest.failures()] == ["no; its pages stay in the output"]
    manifest.close()

    manifest = run_with(path, sighting("a"))
    assert all_pending(manifest) == keys[1:]
    assert manifest.counts.failed == 0


@pytest.mark.parametrize("later", [sighting("a"), sighting("a", "2"), sighting("a", root="/elsewhere")])
def test_a_removal_that_was_begun_is_never_taken_for_done_nor_undone(path, later):
    """A kill after the pages have left the output, and then the file is as before, or changed, or has moved."""
    manifest = run_with(path, sighting("a"))
    open_all(manifest)
    keys = all_pending(manifest)
    manifest.record_collected(manifest.record_submitted("s1", keys), finished(1, 2, 3))
    manifest.spool.record_written(keys, "part-1")
    manifest.departures.begin_removal([keys[0][0]])
    manifest.close()

    manifest = run_with(path, later)

    (document,) = manifest.departures.next_leaving()
    assert manifest.documents("changed") == []
    manifest.departures.end_removal([document])
    assert [document.name for document in manifest.documents("new")] == ["a"]
    assert all_pending(manifest) == []


def test_a_file_that_holds_pages_stays_so_when_it_is_written_anew(path):
    manifest = run_with(path, sighting("a"))
    open_all(manifest)
    keys = all_pending(manifest)
    manifest.record_collected(manifest.record_submitted("s1", keys), finished(1, 2, 3))
    manifest.spool.begin_file("a")
    assert (manifest.spool.files(), manifest.spool.unwanted_files()) == (set(), {"a"})
    manifest.spool.record_written(keys[:2], "a")

    manifest.spool.begin_file("a")
    assert manifest.spool.files() == {"a"}
    manifest.spool.record_removed(["a"])
    manifest.spool.begin_file("a")
    assert manifest.spool.unwanted_files() == {"a"}


def test_a_folder_that_could_not_be_read_is_neither_failed_nor_missing_once_it_is_read(path):
    folder = Sighting("sub/", "/source/sub", None, "", ("unreadable", "no permission"), "/source")
    manifest = run_with(path, folder)
    assert manifest.counts.failed == 1
    manifest.close()

    manifest = run_with(path, sighting("sub/a", root="/source"))

    assert manifest.counts.failed == 0
    assert list(manifest.failures()) == []
    assert manifest.departures.next_missing({"/source"}, 0) == []
    assert (manifest.departures.count_gone(), manifest.departures.count_unreachable()) == (0, (0, ""))
    manifest.retry_failed()
    assert [document.name for document in manifest.documents("new")] == ["sub/a"]


def test_a_folder_that_cannot_be_read_is_not_opened_as_a_document(path):
    folder = Sighting("sub/", "/source/sub", None, "", ("unreadable", "no permission"), "/source")
    manifest = run_with(path, folder)

    manifest.retry_failed()

    assert manifest.documents("new") == []
    assert [failure["message"] for failure in manifest.failures()] == ["no permission"]
    manifest.close()
    again = run_with(path, Sighting("sub/", "/source/sub", None, "", ("unreadable", "an I/O error"), "/source"))
    assert [failure["message"] for failure in again.failures()] == ["an I/O error"]
