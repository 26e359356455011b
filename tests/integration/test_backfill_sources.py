import errno
import io
import os
from pathlib import Path

import pytest

from colqueue_client.backfill.sources import IMAGE, PDF, TIFF, find, kind_of, sight, signature
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


def test_a_source_that_is_the_output_itself_is_walked_without_what_runs_write(folder):
    written = ("_backfill/manifest.sqlite", "pages/part-00001.parquet", "documents/a/b.npz", "qdrant/meta.json")
    for name in (*written, "pages/of-the-user.pdf", "documents/b.pdf"):
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(b"")

    found = set(names(folder, leave_out=folder))

    assert {"a/one.png", "b.pdf", "pages/of-the-user.pdf", "documents/b.pdf"} <= found
    assert not found & set(written)
    assert set(written) <= set(names(folder)), "they are files as any others where DIR is elsewhere"


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
    [
        ("list.jsonl", "{"),
        ("list.jsonl", '"b.pdf"'),
        ("list.jsonl", "{}"),
        ("list.jsonl", '{"path": 5}'),
        ("list.jsonl", '{"path": "b.pdf", "document": {"a": 1}}'),
        ("list.jsonl", '{"path": "b.pdf", "document": ".."}'),
        ("list.csv", "file\nb.pdf\n"),
    ],
)
def test_a_list_that_cannot_be_read_is_refused(folder, name, text):
    (folder / name).write_text(text)

    with pytest.raises(BackfillError, match=name):
        names(folder / name)


def test_a_number_is_a_name_for_a_document_too(folder):
    (folder / "list.jsonl").write_text('{"path": "b.pdf", "document": 17}\n{"path": "a/one.png", "document": 2.5}\n')

    assert names(folder / "list.jsonl") == ["17", "2.5"]


def test_a_list_carries_its_other_columns_and_a_password_apart(folder):
    (folder / "list.csv").write_text("path,year,password,Password\nb.pdf,2026,secret,secret\n")
    (folder / "list.jsonl").write_text('{"path": "b.pdf", "year": 2026, "tags": ["é"], "none": null}\n')

    (found,) = find([str(folder / "list.csv")], io.StringIO(), Path("out"))
    assert (found.columns, found.password) == ({"year": "2026"}, "secret")
    assert "secret" not in repr(found)
    (found,) = find([str(folder / "list.jsonl")], io.StringIO(), Path("out"))
    assert found.columns == {"year": "2026", "tags": '["é"]', "none": ""}


def test_a_list_with_names_that_no_file_can_have_is_read_to_its_end(folder):
    entries = ['{"path": "half a \\ud800 character.pdf"}', '{"path": "null \\u0000.pdf"}', '{"path": "b.pdf"}']
    (folder / "list.jsonl").write_text("\n".join(entries))

    seen = [sight(found) for found in find([str(folder / "list.jsonl")], io.StringIO(), Path("out"))]

    assert [one.failure is None for one in seen] == [False, False, True]


def test_a_pattern_that_matches_nothing_is_refused(folder):
    with pytest.raises(BackfillError, match=r"\*\.djvu: no file matches this pattern"):
        names(f"{folder}/**/*.djvu")


def test_a_link_that_leads_nowhere_is_matched_by_a_pattern_so_that_it_can_fail(folder):
    (folder / "a/nowhere.png").symlink_to(folder / "nothing")

    assert "nowhere.png" in names(f"{folder}/a/*.png")


def test_every_document_says_which_folder_its_name_is_relative_to(folder, tmp_path):
    (folder / "list.csv").write_text("path,document\nb.pdf,first\n")

    def root(source, stdin=""):
        return {found.root for found in find([source], io.StringIO(stdin), Path("out"))}

    assert root("source") == root("source/b.pdf") == root("source/*.pdf") == root("source/list.csv") == {str(folder)}
    assert root("-", "source/b.pdf\n") == {str(tmp_path)}


def test_what_cannot_be_looked_at_fails_by_itself_and_the_walk_goes_on(folder, monkeypatch):
    (folder / "loop.pdf").symlink_to("loop.pdf")
    (folder / "closed.pdf").symlink_to(folder / "b.pdf")
    os.mkfifo(folder / "pipe.pdf")
    with open(os.fsencode(folder) + b"/\xff.pdf", "wb") as file:  # noqa: PTH123 - a Path is text
        file.write(b"x")
    stat = os.stat
    monkeypatch.setattr(os, "stat", lambda path, **more: _refusing(stat, path, **more))

    seen = {found.name: sight(found) for found in find([str(folder)], io.StringIO(), Path("out"))}

    failed = {name: one.failure[1].partition(": ")[2] for name, one in seen.items() if one.failure}
    assert failed == {
        "loop.pdf": "Too many levels of symbolic links",
        "closed.pdf": "Permission denied",
        "pipe.pdf": "it is not a regular file",
    }
    assert {"b.pdf", "\udcff.pdf"} < seen.keys()


def _refusing(stat, path, **more):
    if str(path).endswith("closed.pdf"):
        raise PermissionError(errno.EACCES, "Permission denied")
    return stat(path, **more)


def test_a_folder_that_breaks_off_while_it_is_listed_fails_and_the_walk_goes_on(folder, monkeypatch):
    scandir = os.scandir

    class BreakingOff:
        def __init__(self, path):
            self.entries = scandir(path)

        def __enter__(self):
            return self

        def __exit__(self, *error):
            self.entries.close()

        def __iter__(self):
            yield next(self.entries)
            raise OSError(errno.EIO, "Input/output error")

    monkeypatch.setattr(os, "scandir", lambda path: BreakingOff(path) if path.endswith("/a") else scandir(path))

    found = {one.name: one.failure for one in find([str(folder)], io.StringIO(), Path("out"))}

    assert found["a/"] == "the folder cannot be read: Input/output error"
    assert "b.pdf" in found


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
