"""Every output keeps the same promises; the readers are those that people use."""

import asyncio
import json
import sqlite3
import threading
from contextlib import closing
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import lancedb
import numpy as np
import pyarrow.parquet as pq
import pytest
from qdrant_client import QdrantClient, models

from colqueue_client import BackfillError, load, maxsim
from colqueue_client.backfill.output import FORMATS, output_for
from colqueue_client.backfill.progress import Quiet
from colqueue_client.backfill.records import Collected
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

    def call(method, *arguments):
        output = output_for(form, tmp_path, "some-model", 2**20, Store())
        try:
            return getattr(output, method)(*arguments)
        finally:
            output.close()

    return call


@pytest.fixture
def read(form, tmp_path):
    return Reader(form, tmp_path)


def same(found, *expected):
    assert found.keys() == {(page.document, page.page) for page in expected}
    for page in expected:
        np.testing.assert_allclose(found[page.document, page.page], page.rows, rtol=0, atol=1e-3)


def test_what_is_written_can_be_read(use, read):
    first, second = pages("a/one.pdf", 1, 2, 3), pages("two's.png", 1)
    use("write", iter(first))
    use("write", iter(second))

    same(read(), *first, *second)


def test_what_is_forgotten_is_gone_and_may_be_written_anew(use, read):
    kept, old, new = pages("b", 1, 2), pages("a's", 1, 2, 3), pages("a's", 1, sha256="new")
    known = {use("write", iter(kept)), use("write", iter(old))}

    use("forget", ["a's", "never there"])
    use("forget", ["a's"])
    assert set(use("tidy", known)) <= known
    same(read(), *kept)
    use("write", iter(new))

    same(read(), *kept, *new)


def test_pages_written_twice_are_there_once(use, read, form):
    """As after a crash between the write and the note of it."""
    some = pages("a", 1, 2)
    use("write", iter(some))

    use("tidy", set())
    use("write", iter(some))

    same(read(), *some)
    assert form != "parquet" or len(load(read.folder)) == 2


def test_an_output_that_is_missing_is_noticed(use, form):
    known = {"part-00001.parquet"} if form == "parquet" else {"a"}

    assert set(use("tidy", known)) == known


def test_a_shard_is_what_the_readers_expect(tmp_path):
    many = pages("a", *range(1, 151))
    output_for("parquet", tmp_path, "some-model", 1, Store()).write(iter(many))

    with pq.ParquetFile(tmp_path / "part-00001.parquet") as file:
        assert file.schema_arrow.names == ["document", "page", "embedding", "rows", "model", "sha256"]
        assert str(file.schema_arrow.field("embedding").type) == (
            "list<element: fixed_size_list<element: halffloat>[128]>"
        )
        assert file.num_row_groups == 10, "no reader has to hold a whole shard"
        assert file.read_row_group(9).column("rows").to_pylist() == [len(page.rows) for page in many[144:]]
    assert [page.sha256 for page in load(tmp_path)] == ["sha"] * 150
    assert {page.model for page in load(tmp_path)} == {"some-model"}


def test_a_shard_that_was_cut_short_or_never_noted_is_removed(tmp_path):
    output = output_for("parquet", tmp_path, "some-model", 1, Store())
    noted = output.write(iter(pages("a", 1)))
    output.write(iter(pages("b", 1)))
    (tmp_path / ".part-00003.parquet.part").write_bytes(b"half")

    assert set(output.tidy({noted})) == set()

    assert [path.name for path in tmp_path.iterdir()] == [noted]


def test_a_writer_that_dies_leaves_no_half_file(tmp_path):
    def dying():
        yield from pages("a", *range(1, 100))
        raise sqlite3.OperationalError("disk full")

    output = output_for("parquet", tmp_path, "some-model", 1, Store())
    with pytest.raises(sqlite3.OperationalError):
        output.write(dying())

    assert [path.name for path in tmp_path.iterdir() if not path.name.startswith(".")] == []
    with pytest.raises(BackfillError, match="holds no pages"):
        load(tmp_path)


def test_npz_keeps_the_pages_that_a_retry_does_not_bring(tmp_path):
    output = output_for("npz", tmp_path, "some-model", 1, Store())
    output.write(iter(pages("a.pdf", 1, 3)))

    output.write(iter(pages("a.pdf", 2)))

    same(load(tmp_path).arrays(), *pages("a.pdf", 1, 2, 3))
    assert set(load(tmp_path).document("a.pdf")) == {1, 2, 3}


def test_both_stores_rank_by_maxsim_as_we_do(tmp_path):
    everything = [*pages("a", *range(1, 9)), *pages("b", *range(1, 9))]
    query = multi_vector("query", 2, np.float32)
    ours = sorted(everything, key=lambda page: -maxsim(query, page.rows.astype(np.float32)))[:5]
    expected = [(page.document, page.page) for page in ours]
    for form in ("lancedb", "qdrant"):
        output = output_for(form, tmp_path, "some-model", 1, Store())
        output.write(iter(everything))
        output.close()

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
    output_for("parquet", tmp_path, "some-model", 1, Store()).write(iter(everything))
    query = multi_vector("query", 2, np.float32)

    matches = best_pages(query, load(tmp_path), 7)

    scores = {page.page: maxsim(query, page.rows.astype(np.float32)) for page in everything}
    assert [match.page for match in matches] == sorted(scores, key=scores.get, reverse=True)[:7]
    assert [match.score for match in matches] == pytest.approx([scores[match.page] for match in matches], abs=1e-5)


@pytest.mark.parametrize("form", ["parquet", "npz"])
@pytest.mark.parametrize(("dtype", "dim"), [("float32", 128), ("int8", 128), ("uint8", 16)])
def test_other_precisions_come_back_as_they_are(tmp_path, form, dtype, dim):
    rows = np.random.default_rng(1).integers(0, 100, (4, dim)).astype(dtype)
    output_for(form, tmp_path, "some-model", 1, Store()).write(iter([Collected((1, 1), "a", 1, "sha", rows)]))

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
        output.write(iter(page))
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
    output.write(iter(pages("a", 1)))

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
        with output.translated():
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
    manifest = tmp_path / "manifest.sqlite"
    monkeypatch.setattr("colqueue_client.backfill.writing.collected_rows", lambda _path, _keys: iter(pages("a", 1)))
    monkeypatch.setattr("colqueue_client.backfill.writing._FIRST_PAUSE_S", 0.01)
    said = Said()

    async def write(server):
        with closing(output_for("qdrant", tmp_path, "some-model", 1, Store(server.url))) as output:
            await Writing(output, manifest, said).write([(1, 1)])

    with Qdrant(NOT_THERE, (503, b""), NOT_THERE, (500, b""), NOT_THERE, DONE, WRITTEN) as server:
        asyncio.run(write(server))

    assert [method for method, *_ in server.seen] == ["GET", "PUT", "GET", "PUT", "GET", "PUT", "PUT"]
    assert ["trying again" in line for line in said.lines] == [True, True]


def test_a_server_that_does_not_come_back_ends_the_start_of_a_run(tmp_path, monkeypatch):
    monkeypatch.setattr("colqueue_client.backfill.writing._FIRST_CALL_S", 0.05)
    monkeypatch.setattr("colqueue_client.backfill.writing._FIRST_PAUSE_S", 0.01)

    async def start(server):
        with closing(output_for("qdrant", tmp_path, "some-model", 1, Store(server.url))) as output:
            await Writing(output, tmp_path / "manifest.sqlite", Quiet()).check("float16")

    with Qdrant((503, b"")) as server, pytest.raises(StoreAwayError, match="answered 503"):
        asyncio.run(start(server))
    assert len(server.seen) > 1
