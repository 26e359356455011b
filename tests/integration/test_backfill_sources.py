import io
import os
from pathlib import Path

import pytest

from colqueue_client.backfill.sources import IMAGE, PDF, TIFF, find, kind_of, signature
from colqueue_client.errors import BackfillError


@pytest.fixture
def folder(tmp_path, monkeypatch):
    for name in ("b.pdf", "a/one.png", "a/two.TIF", "a/deep/three.jpg", "notes.txt", ".hidden/x.pdf", "a/.y.pdf"):
        (tmp_path / "source" / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / "source" / name).write_bytes(b"x")
    monkeypatch.chdir(tmp_path)
    return tmp_path / "source"


def names(*sources, stdin="", leave_out="out"):
    return [found.name for found in find(list(map(str, sources)), io.StringIO(stdin), Path(leave_out))]


def test_a_folder_is_walked_without_what_is_hidden(folder):
    assert sorted(names(folder)) == ["a/deep/three.jpg", "a/one.png", "a/two.TIF", "b.pdf", "notes.txt"]


def test_the_output_is_no_source(folder):
    assert sorted(names(folder, leave_out=folder / "a")) == ["b.pdf", "notes.txt"]


def test_links_to_files_are_followed_and_links_to_folders_are_not(folder):
    (folder / "link.pdf").symlink_to(folder / "b.pdf")
    (folder / "round").symlink_to(folder, target_is_directory=True)

    assert "link.pdf" in names(folder)
    assert not [name for name in names(folder) if name.startswith("round")]


def test_a_link_that_leads_nowhere_is_found_so_that_it_can_fail(folder):
    (folder / "nowhere.pdf").symlink_to(folder / "nothing")

    assert "nowhere.pdf" in names(folder)


def test_a_file_is_itself(folder):
    assert names(folder / "a/one.png") == ["one.png"]


def test_a_pattern_names_files_from_where_it_begins(folder):
    assert sorted(names(f"{folder}/**/*.[pj]*g")) == ["a/deep/three.jpg", "a/one.png"]
    assert sorted(names("source/a/*")) == ["one.png", "two.TIF"]


def test_a_list_on_stdin_has_a_path_a_line(folder):
    del folder
    assert names("-", stdin="source/b.pdf\n\nsource/a/../b.pdf\r\n/absolute/c.pdf\n") == [
        "source/b.pdf",
        "source/a/b.pdf",
        "absolute/c.pdf",
    ]


@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("list.jsonl", '{"path": "b.pdf"}\n\n{"path": "a/one.png", "document": "first/one"}\n'),
        ("list.csv", "\ufeffpath,document\nb.pdf,\na/one.png,first/one\n"),
    ],
)
def test_a_list_in_a_file_is_relative_to_that_file_and_may_name_documents(folder, name, text):
    (folder / name).write_text(text, encoding="utf-8")

    found = list(find([str(folder / name)], io.StringIO(), Path("out")))

    assert [one.name for one in found] == ["b.pdf", "first/one"]
    assert [one.path for one in found] == [str(folder / "b.pdf"), str(folder / "a/one.png")]


@pytest.mark.parametrize(
    ("name", "text"),
    [("list.jsonl", "{"), ("list.jsonl", '"b.pdf"'), ("list.jsonl", "{}"), ("list.csv", "file\nb.pdf\n")],
)
def test_a_list_that_cannot_be_read_is_refused(folder, name, text):
    (folder / name).write_text(text)

    with pytest.raises(BackfillError):
        names(folder / name)


def test_a_source_that_is_not_there_is_refused(folder):
    with pytest.raises(BackfillError, match=r"missing\.pdf: no such file"):
        names(folder / "missing.pdf")


def test_kinds_follow_suffixes():
    assert [kind_of(name) for name in ("a.PDF", "a.tif", "a.JPeG", "a.docx", "a", ".pdf")] == [
        PDF,
        TIFF,
        IMAGE,
        None,
        None,
        None,
    ]


def test_the_signature_changes_with_the_content_even_where_size_and_time_are_kept(folder):
    path = folder / "b.pdf"
    before, times = signature(str(path)), path.stat()

    path.write_bytes(b"y")
    os.utime(path, ns=(times.st_atime_ns, times.st_mtime_ns))

    assert signature(str(path)) != before


def test_a_folder_that_cannot_be_read_is_found_so_that_it_can_fail(folder, monkeypatch):
    """Not by its permissions: these tests may run as root, whom they do not stop."""
    scandir = os.scandir

    def refusing(path):
        if os.path.basename(path) == "a":  # noqa: PTH119 - as the walk does it
            raise PermissionError
        return scandir(path)

    monkeypatch.setattr(os, "scandir", refusing)

    assert sorted(names(folder)) == ["a/", "b.pdf", "notes.txt"]
