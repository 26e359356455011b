"""Every output keeps the same promises; the readers are those that people use."""

import asyncio
import json
import sqlite3
import threading
from contextlib import closing
from dataclasses import replace
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import lancedb
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from qdrant_client import QdrantClient, models

from colqueue_client import BackfillError, load, maxsim
from colqueue_client.backfill.manifest import Manifest
from colqueue_client.backfill.output import FORMATS, output_for
from colqueue_client.backfill.progress import Quiet
from colqueue_client.backfill.records import Collected, Document, Sighting, page_id
from colqueue_client.backfill.search import best_pages
from colqueue_client.backfill.store import Store
from colqueue_client.backfill.writing import Writing
from colqueue_client.errors import StoreAwayError

DIM = 128


def multi_vector(document, page, dtype=np.float16):
    draw = np.random.default_rng([*document.encode(), page])
    rows = draw.normal(size=(2 + page % 3, DIM))
    return (rows / np.linalg.norm(rows, axis=1, keepdims=True)).astype(dtype)


def pages(document, *numbers, sha256="sha", dtype=np.float16):
    return [Collected((1, n), document, n, sha256, multi_vector(document, n, dtype)) for n in numbers]


def with_output(form, folder, do):
    """Call `do` with a fresh output, as another run would, after it has tidied up what the runs before noted."""
    folder.mkdir(exist_ok=True)
    noted = NOTED.setdefault(folder, {"held": set(), "unwanted": set()})
    output = output_for(form, folder, "some-model", 2**20, Store())
    try:
        noted["held"] -= output.tidy(noted["held"], noted["unwanted"])
        noted["unwanted"].clear()
        return do(output)
    finally:
        output.close()


NOTED = {}
"""What a manifest knows of the files in a folder."""


def write(form, folder, some, *, noted=True):
    """Write pages as a run does, which notes the name before and the file afterwards, if it is not killed."""

    def do(output):
        name = output.new_name(some[0].document)
        output.write(name, iter(some))
        NOTED[folder]["held" if noted else "unwanted"].add(name)
        return name

    return with_output(form, folder, do)


def document(name, sha256="sha"):
    return Document(1, name, f"/source/{name}", "pdf", "1", sha256)


class Reader:
    """What somebody finds who knows the store and not us: {(document, page): rows}."""

    def __init__(self, form, folder):
        self.form, self.folder = form, folder

    def __call__(self):
        return getattr(self, self.form)()

    def parquet(self):
        return load(self.folder).arrays()

    npz = parquet

    def lancedb(self):
        table = lancedb.connect(str(self.folder / "lancedb")).open_table("pages")
        found = table.to_arrow().to_pylist()
        keys = [(row["document"], row["page"]) for row in found]
        assert len(keys) == len(set(keys))
        return {key: np.array(row["embedding"], np.float16) for key, row in zip(keys, found, strict=True)}

    def qdrant(self):
        client = QdrantClient(path=str(self.folder / "qdrant"))
        found, _ = client.scroll("pages", limit=1000, with_vectors=True)
        client.close()
        return {
            (point.payload["document"], point.payload["page"]): np.array(point.vector, np.float16) for point in found
        }


@pytest.fixture(params=FORMATS)
def form(request):
    return request.param


@pytest.fixture
def use(form, tmp_path):
    """Call a method of a fresh output, as another run would."""
    return lambda do: with_output(form, tmp_path, do)


@pytest.fixture
def read(form, tmp_path):
    return Reader(form, tmp_path)


def same(found, *expected):
    assert found.keys() == {(page.document, page.page) for page in expected}
    for page in expected:
        np.testing.assert_allclose(found[page.document, page.page], page.rows, rtol=0, atol=1e-3)


def test_what_is_written_can_be_read(form, tmp_path, read):
    first, second = pages("a/one.pdf", 1, 2, 3), pages("two's.png", 1)
    write(form, tmp_path, first)
    write(form, tmp_path, second)

    same(read(), *first, *second)


def test_what_is_forgotten_is_gone_and_may_be_written_anew(use, read, form, tmp_path):
    kept, old, new = pages("b", 1, 2), pages("a's", 1, 2, 3), pages("a's", 1, sha256="new")
    write(form, tmp_path, kept)
    write(form, tmp_path, old)

    use(lambda output: output.forget([document("a's"), document("never there")]))
    use(lambda output: output.forget([document("a's")]))
    same(read(), *kept)
    write(form, tmp_path, new)

    same(read(), *kept, *new)


def test_a_document_is_read_back_as_it_was_written(use, form, tmp_path):
    some, others = pages("a's", 1, 2, 3), pages("b", 1, 2)
    name = write(form, tmp_path, [*some, *others] if form != "npz" else some)

    found = use(lambda output: dict(output.read(document("a's"), {name})))

    assert found.keys() == {1, 2, 3}
    for page in some:
        np.testing.assert_allclose(found[page.page], page.rows, rtol=0, atol=1e-3)


@pytest.mark.parametrize("name", ["pages/part-00001.parquet", "part-00001.parquet", "documents/a.npz"])
def test_a_file_that_is_not_of_a_backfill_is_named_when_it_is_read(tmp_path, name):
    theirs = tmp_path / name
    theirs.parent.mkdir(exist_ok=True)
    theirs.write_bytes(b"theirs")
    with pytest.raises(BackfillError, match=f"{theirs.name} is damaged, or was not written by a backfill"):
        list(load(tmp_path))
    if theirs.suffix == ".npz":
        np.savez(theirs, page_1=np.zeros(3))
    else:
        pq.write_table(pa.table({"document": ["theirs"]}), theirs)
    with pytest.raises(BackfillError, match=f"{theirs.name} is damaged, or was not written by a backfill"):
        list(load(tmp_path))


@pytest.mark.parametrize("form", ["lancedb", "qdrant"])
def test_a_store_forgets_no_document_of_the_same_name_and_other_content(use, read, form, tmp_path):
    somebodys = pages("a", 1, 2, sha256="of somebody else's")
    write(form, tmp_path, somebodys)

    use(lambda output: output.forget([document("a", "ours")]))

    same(read(), *somebodys)


def test_pages_written_twice_are_there_once(read, form, tmp_path):
    """As after a crash between the write and the note of it."""
    some = pages("a", 1, 2)
    write(form, tmp_path, some, noted=False)

    write(form, tmp_path, some)

    same(read(), *some)
    assert form not in {"parquet", "npz"} or len(load(read.folder)) == 2


def test_an_output_that_is_missing_is_noticed(form, tmp_path):
    known = {"part-00001.parquet"} if form == "parquet" else {"a"}
    output = output_for(form, tmp_path, "some-model", 1, Store())

    assert output.tidy(known, set()) == known
    output.close()


@pytest.mark.parametrize(
    ("form", "file"),
    [
        ("parquet", "pages/part-00007.parquet"),
        ("parquet", "pages/theirs.parquet"),
        ("parquet", "part-00001.parquet"),
        ("npz", "documents/a.pdf.npz"),
        ("npz", "documents/deep/theirs.npz"),
    ],
)
def test_a_file_that_the_manifest_does_not_name_is_refused_and_kept(form, file, tmp_path):
    theirs = tmp_path / file
    theirs.parent.mkdir(parents=True, exist_ok=True)
    theirs.write_bytes(b"theirs")
    before = set(tmp_path.rglob("*"))

    with pytest.raises(BackfillError, match=f"{theirs.name} was not written by this backfill.*--out"):
        output_for(form, tmp_path, "some-model", 1, Store()).tidy(set(), {"b"})

    assert theirs.read_bytes() == b"theirs"
    assert set(tmp_path.rglob("*")) <= before | {tmp_path / "pages"}


@pytest.mark.parametrize("form", ["parquet", "npz"])
def test_files_of_others_beside_ours_stay_and_are_never_written_through(form, tmp_path):
    folder = tmp_path / ("pages" if form == "parquet" else "documents")
    folder.mkdir()
    for name in (".theirs.part", ".theirs.parquet.part", ".theirs.npz.part", "notes.txt", ".theirs.parquet"):
        (folder / name).write_bytes(b"theirs")
    (tmp_path / "precious").write_bytes(b"theirs")
    target = folder / (".part-00001.parquet.part" if form == "parquet" else ".a.npz.part")
    target.symlink_to(tmp_path / "precious")

    write(form, tmp_path, pages("a", 1, 2))
    with_output(form, tmp_path, lambda output: output.forget([document("a")]))

    assert (tmp_path / "precious").read_bytes() == b"theirs"
    assert {path.name for path in folder.iterdir()} >= {".theirs.part", ".theirs.parquet.part", "notes.txt"}


def test_a_shard_is_what_the_readers_expect(tmp_path):
    many = pages("a", *range(1, 151))
    write("parquet", tmp_path, many)

    with pq.ParquetFile(tmp_path / "pages/part-00001.parquet") as file:
        assert file.schema_arrow.names == [
            "id", "document", "page", "embedding", "rows", "width", "height", "model", "sha256",
        ]  # fmt: skip
        assert str(file.schema_arrow.field("embedding").type) == (
            "list<element: fixed_size_list<element: halffloat>[128]>"
        )
        assert file.num_row_groups == 10, "no reader has to hold a whole shard"
        assert file.read_row_group(9).column("rows").to_pylist() == [len(page.rows) for page in many[144:]]
    assert [page.sha256 for page in load(tmp_path)] == ["sha"] * 150
    assert {page.model for page in load(tmp_path)} == {"some-model"}


def test_the_id_of_a_page_never_changes(tmp_path):
    write("parquet", tmp_path, pages("reports/é.pdf", 3))

    assert [page.id for page in load(tmp_path)] == [page_id("reports/é.pdf", 3)]
    assert page_id("reports/é.pdf", 3) == "04f5b3bf-2563-5563-ba97-d1aec582c9c3"
    assert pq.read_table(tmp_path / "pages").column("id").to_pylist() == [page_id("reports/é.pdf", 3)]


def test_sizes_and_the_columns_of_lists_go_out_with_the_pages(form, tmp_path):
    (page,) = pages("a", 1)
    some = [replace(page, size=(1240, 1754), columns={"year": "2026", "list_id": "7"})]

    def do(output):
        output.use_columns(["year", "list_id"])
        output.write(output.new_name("a"), iter(some))

    with_output(form, tmp_path, do)

    if form == "lancedb":
        (found,) = lancedb.connect(str(tmp_path / "lancedb")).open_table("pages").to_arrow().to_pylist()
    elif form == "qdrant":
        client = QdrantClient(path=str(tmp_path / "qdrant"))
        (point,), _ = client.scroll("pages")
        client.close()
        found = point.payload | {"id": point.id}
    else:
        (loaded,) = load(tmp_path)
        found = {"id": loaded.id, "width": loaded.size[0], "height": loaded.size[1], **loaded.columns}
    expected = {"id": page_id("a", 1), "width": 1240, "height": 1754, "year": "2026", "list_id": "7"}
    assert {key: found[key] for key in expected} == expected


def test_shards_get_the_columns_of_a_later_list(tmp_path):
    write("parquet", tmp_path, pages("a", *range(1, 40)))

    with_output("parquet", tmp_path, lambda output: output.use_columns(["year"]))

    table = pq.read_table(tmp_path / "pages")
    assert table.column_names[-1] == "year"
    assert table.column("year").null_count == 39
    same(load(tmp_path).arrays(), *pages("a", *range(1, 40)))


def test_a_shard_that_was_cut_short_or_never_noted_is_removed(tmp_path):
    noted = write("parquet", tmp_path, pages("a", 1))
    write("parquet", tmp_path, pages("b", 1), noted=False)
    (tmp_path / "pages/.part-00002.parquet.part").write_bytes(b"half")

    with_output("parquet", tmp_path, lambda _: None)

    assert [path.name for path in (tmp_path / "pages").iterdir()] == [noted]


def test_a_shard_that_loses_all_its_pages_is_removed(tmp_path):
    write("parquet", tmp_path, pages("a", 1))
    noted = write("parquet", tmp_path, pages("b", 1))

    with_output("parquet", tmp_path, lambda output: output.forget([document("a")]))

    assert [path.name for path in (tmp_path / "pages").iterdir()] == [noted]


def test_a_writer_that_dies_leaves_no_half_file(tmp_path):
    def dying():
        yield from pages("a", *range(1, 100))
        raise sqlite3.OperationalError("disk full")

    output = output_for("parquet", tmp_path, "some-model", 1, Store())
    output.tidy(set(), set())
    with pytest.raises(sqlite3.OperationalError):
        output.write("part-00001.parquet", dying())

    assert [path.name for path in (tmp_path / "pages").iterdir() if not path.name.startswith(".")] == []
    with pytest.raises(BackfillError, match="holds no pages"):
        load(tmp_path)


def test_npz_keeps_the_pages_that_a_retry_does_not_bring(tmp_path):
    write("npz", tmp_path, pages("a.pdf", 1, 3))

    write("npz", tmp_path, pages("a.pdf", 2))

    same(load(tmp_path).arrays(), *pages("a.pdf", 1, 2, 3))
    assert set(load(tmp_path).document("a.pdf")) == {1, 2, 3}


@pytest.mark.parametrize(
    "name",
    [
        "n" * 250, "f" * 255 + "/a.pdf", "deep/" * 500 + "a.pdf", "folder.npz/a.pdf", "folder.NPZ/b.pdf", "null \0.pdf",
        "by-sha256/a.pdf", "blocked/a.pdf", "a folder",
    ],
)  # fmt: skip
def test_npz_takes_documents_whose_names_no_file_can_have(name, tmp_path):
    for folder in ("documents/a folder.npz", "documents/other"):
        (tmp_path / folder).mkdir(parents=True)
    (tmp_path / "documents/blocked").write_bytes(b"a file of somebody else's")

    write("npz", tmp_path, pages("folder", 1))
    write("npz", tmp_path, pages(name, 1, 2))

    same(load(tmp_path).arrays(), *pages("folder", 1), *pages(name, 1, 2))
    with_output("npz", tmp_path, lambda output: output.forget([document(name)]))
    same(load(tmp_path).arrays(), *pages("folder", 1))


def test_both_stores_rank_by_maxsim_as_we_do(tmp_path):
    everything = [*pages("a", *range(1, 9)), *pages("b", *range(1, 9))]
    query = multi_vector("query", 2, np.float32)
    ours = sorted(everything, key=lambda page: -maxsim(query, page.rows.astype(np.float32)))[:5]
    expected = [(page.document, page.page) for page in ours]
    for form in ("lancedb", "qdrant"):
        write(form, tmp_path, everything)

    table = lancedb.connect(str(tmp_path / "lancedb")).open_table("pages")
    found = table.search(query, vector_column_name="embedding").metric("cosine").limit(5).to_list()
    assert [(row["document"], row["page"]) for row in found] == expected

    client = QdrantClient(path=str(tmp_path / "qdrant"))
    points = client.query_points("pages", query=query.tolist(), limit=5).points
    client.close()
    assert [(point.payload["document"], point.payload["page"]) for point in points] == expected
    assert [point.score for point in points] == pytest.approx(
        [maxsim(query, page.rows.astype(np.float32)) for page in ours], abs=1e-2
    )


def test_the_search_is_exact_maxsim_over_all_groups(tmp_path):
    everything = pages("a", *range(1, 151))
    write("parquet", tmp_path, everything)
    query = multi_vector("query", 2, np.float32)

    matches = best_pages(query, load(tmp_path), 7)

    scores = {page.page: maxsim(query, page.rows.astype(np.float32)) for page in everything}
    assert [match.page for match in matches] == sorted(scores, key=scores.get, reverse=True)[:7]
    assert [match.score for match in matches] == pytest.approx([scores[match.page] for match in matches], abs=1e-5)


@pytest.mark.parametrize("form", ["parquet", "npz"])
@pytest.mark.parametrize(("dtype", "dim"), [("float32", 128), ("int8", 128), ("uint8", 16)])
def test_other_precisions_come_back_as_they_are(tmp_path, form, dtype, dim):
    rows = np.random.default_rng(1).integers(0, 100, (4, dim)).astype(dtype)
    write(form, tmp_path, [Collected((1, 1), "a", 1, "sha", rows)])

    (page,) = load(tmp_path)

    assert page.embedding.dtype == rows.dtype
    np.testing.assert_array_equal(page.embedding, rows)


def test_a_precision_that_lancedb_has_no_maxsim_for_is_refused_before_the_first_page(tmp_path):
    output = output_for("lancedb", tmp_path, "some-model", 1, Store())

    for dtype in ("int8", "binary"):
        with pytest.raises(BackfillError, match="use --output-dtype float16"):
            output.check(dtype)
    for dtype in ("float16", "float32"):
        output.check(dtype)


@pytest.mark.parametrize("form", ["lancedb", "qdrant"])
def test_a_store_may_have_several_collections(tmp_path, form):
    some, other = pages("a", 1), pages("b", 1)
    for name, page in (("some", some), ("other", other)):
        output = output_for(form, tmp_path, "some-model", 1, Store(collection=name))
        output.write(output.new_name("a"), iter(page))
        output.close()

    if form == "lancedb":
        found = lancedb.connect(str(tmp_path / "lancedb")).open_table("other").to_arrow().to_pylist()
        assert [row["document"] for row in found] == ["b"]
    else:
        client = QdrantClient(path=str(tmp_path / "qdrant"))
        assert [point.payload["document"] for point in client.scroll("other")[0]] == ["b"]
        client.close()


def test_a_table_of_another_form_is_refused_before_the_first_page(tmp_path):
    lancedb.connect(str(tmp_path)).create_table("pages", [{"document": "a", "page": "one"}])
    output = output_for("lancedb", tmp_path, "some-model", 1, Store(str(tmp_path)))

    with pytest.raises(BackfillError, match=r"its column page is string, and not int32.*has no column embedding"):
        output.check("float16")


def test_a_table_of_another_precision_is_refused_before_the_first_page(tmp_path):
    output = output_for("lancedb", tmp_path, "some-model", 1, Store())
    output.write(output.new_name("a"), iter(pages("a", 1)))

    output.check("float16")
    with pytest.raises(BackfillError, match="its column embedding is"):
        output.check("float32")


@pytest.mark.parametrize(
    ("vectors", "words"),
    [
        ({"size": 64}, "64 values, and not 128"),
        ({"multivector_config": None}, "one vector, and not a multi-vector"),
        ({"distance": models.Distance.EUCLID}, "compares by Euclid"),
        ({"datatype": models.Datatype.UINT8}, "its values are uint8"),
    ],
)
def test_a_collection_of_another_form_is_refused_before_the_first_page(tmp_path, vectors, words):
    good = {
        "size": 128,
        "distance": models.Distance.DOT,
        "multivector_config": models.MultiVectorConfig(comparator=models.MultiVectorComparator.MAX_SIM),
    }
    client = QdrantClient(path=str(tmp_path))
    client.create_collection("pages", vectors_config=models.VectorParams(**good | vectors))
    client.create_collection("named", vectors_config={"one": models.VectorParams(**good)})
    client.create_collection("good", vectors_config=models.VectorParams(**good))
    client.close()

    for name, expected in (("pages", words), ("named", "its vectors have names"), ("good", None), ("not there", None)):
        output = output_for("qdrant", tmp_path, "some-model", 1, Store(str(tmp_path), name.replace(" ", "-")))
        if expected:
            with pytest.raises(BackfillError, match=expected):
                output.check("float16")
        else:
            output.check("float16")
        output.close()


@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")  # qdrant-client leaves its lock open
def test_a_folder_that_another_process_holds_is_refused_with_a_sentence(tmp_path):
    first = output_for("qdrant", tmp_path, "some-model", 1, Store())
    with pytest.raises(BackfillError, match="cannot be opened"):
        output_for("qdrant", tmp_path, "some-model", 1, Store())
    first.close()


@pytest.mark.parametrize(
    "where", ["http://user:secret@qdrant:6333", "https://secret@qdrant", "s3://key:secret@bucket/path"]
)
def test_an_address_with_a_password_is_refused_and_not_repeated(where):
    with pytest.raises(BackfillError) as caught:
        Store(where)

    assert "secret" not in str(caught.value)


def test_a_key_is_not_shown():
    assert "secret" not in repr(Store("http://qdrant", key="secret"))
    assert "secret" not in Store("http://qdrant", key="secret").name


class Qdrant:
    """A server that answers as `answers` says, for each request in turn, and notes what it is sent."""

    def __init__(self, *answers):
        self.answers, self.seen = list(answers), []
        server = self

        class Handler(BaseHTTPRequestHandler):
            def _do(self):
                self.rfile.read(int(self.headers.get("Content-Length", 0)))
                server.seen.append((self.command, self.path, self.headers.get("api-key")))
                status, body = server.answers.pop(0) if len(server.answers) > 1 else server.answers[0]
                data = body if isinstance(body, bytes) else json.dumps(body).encode()
                self.send_response(status)
                self.send_header("Content-Length", str(len(data)))
                self.end_headers()
                self.wfile.write(data)

            do_GET = do_PUT = do_POST = _do  # noqa: N815 - the names that the base class calls

            def log_message(self, *_):
                """Say nothing."""

        self._http = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self._http.daemon_threads = True
        self.url = f"http://127.0.0.1:{self._http.server_port}"

    def __enter__(self):
        threading.Thread(target=self._http.serve_forever, daemon=True).start()
        return self

    def __exit__(self, *_):
        self._http.shutdown()
        self._http.server_close()


NOT_THERE = (200, {"result": {"exists": False}, "status": "ok", "time": 0.0})
DONE = (200, {"result": True, "status": "ok", "time": 0.0})
WRITTEN = (200, {"result": {"operation_id": 1, "status": "completed"}, "status": "ok", "time": 0.0})


def check(server, **options):
    output = output_for("qdrant", Path("unused"), "some-model", 1, Store(server.url, **options))
    try:
        with output.translate_errors():
            output.check("float16")
    finally:
        output.close()


def test_a_server_is_asked_with_the_key_before_the_first_page(tmp_path):
    with Qdrant(NOT_THERE) as server:
        check(server, key="secret", collection="some")

    assert server.seen == [("GET", "/collections/some/exists", "secret")]
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("status", [401, 403])
def test_a_server_that_refuses_the_key_is_named(status):
    with Qdrant((status, b"Must provide an API key")) as server, pytest.raises(BackfillError) as caught:
        check(server, key="secret")

    assert not isinstance(caught.value, StoreAwayError)
    assert f"{server.url} refuses the key ({status})" in str(caught.value)
    assert "secret" not in str(caught.value)


@pytest.mark.parametrize("status", [408, 429, 500, 502, 503, 504])
def test_an_answer_of_a_server_that_may_pass_is_told_from_one_that_does_not(status):
    said = {"status": {"error": "Service internal error"}}
    with Qdrant((status, said)) as server, pytest.raises(StoreAwayError, match="Service internal error"):
        check(server)
    with Qdrant((400, said)) as server, pytest.raises(BackfillError) as caught:
        check(server)
    assert not isinstance(caught.value, StoreAwayError)


def test_what_is_not_qdrant_is_said_to_be_none():
    with Qdrant((404, b"<html>")) as server, pytest.raises(BackfillError, match="Is that the address of Qdrant"):
        check(server)
    with Qdrant((200, b"<html>")) as server, pytest.raises(StoreAwayError, match="is not Qdrant"):
        check(server)


def test_a_server_that_is_away_may_come_back():
    with Qdrant(NOT_THERE) as server:
        pass

    with pytest.raises(StoreAwayError, match="does not answer"):
        check(server)


class Said(Quiet):
    """Keeps what it is told."""

    def __init__(self):
        self.lines = []

    def say(self, line):
        self.lines.append(line)


def test_a_write_is_repeated_until_the_server_is_back(tmp_path, monkeypatch):
    """Pages already written are written over, as each has one id."""
    manifest = Manifest(tmp_path / "manifest.sqlite")
    manifest.record_found([Sighting("a", "/source/a", "pdf", "1")])
    monkeypatch.setattr("colqueue_client.backfill.writing.collected_rows", lambda _path, _keys: iter(pages("a", 1)))
    monkeypatch.setattr("colqueue_client.backfill.writing._FIRST_PAUSE_S", 0.01)
    said = Said()

    async def write(server):
        with closing(output_for("qdrant", tmp_path, "some-model", 1, Store(server.url))) as output:
            await Writing(output, manifest, said).write([(1, 1)])

    with Qdrant(NOT_THERE, (503, b""), NOT_THERE, (500, b""), NOT_THERE, DONE, WRITTEN) as server, closing(manifest):
        asyncio.run(write(server))

    assert [method for method, *_ in server.seen] == ["GET", "PUT", "GET", "PUT", "GET", "PUT", "PUT"]
    assert ["trying again" in line for line in said.lines] == [True, True]


def test_a_server_that_does_not_come_back_ends_the_start_of_a_run(tmp_path, monkeypatch):
    monkeypatch.setattr("colqueue_client.backfill.writing._FIRST_CALL_S", 0.05)
    monkeypatch.setattr("colqueue_client.backfill.writing._FIRST_PAUSE_S", 0.01)

    manifest = Manifest(tmp_path / "manifest.sqlite")

    async def start(server):
        with closing(output_for("qdrant", tmp_path, "some-model", 1, Store(server.url))) as output:
            await Writing(output, manifest, Quiet()).check("float16")

    with Qdrant((503, b"")) as server, closing(manifest), pytest.raises(StoreAwayError, match="answered 503"):
        asyncio.run(start(server))
    assert len(server.seen) > 1
