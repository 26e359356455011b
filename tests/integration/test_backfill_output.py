"""Every output keeps the same promises; the readers are those that people use."""

import sqlite3

import lancedb
import numpy as np
import pyarrow.parquet as pq
import pytest
from qdrant_client import QdrantClient, models

from colqueue_client import BackfillError, load, maxsim
from colqueue_client.backfill.output import FORMATS, output_for
from colqueue_client.backfill.records import Collected
from colqueue_client.backfill.search import best_pages

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
        output = output_for(form, tmp_path, "some-model", 2**20, None)
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
    output_for("parquet", tmp_path, "some-model", 1, None).write(iter(many))

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
    output = output_for("parquet", tmp_path, "some-model", 1, None)
    noted = output.write(iter(pages("a", 1)))
    output.write(iter(pages("b", 1)))
    (tmp_path / ".part-00003.parquet.part").write_bytes(b"half")

    assert set(output.tidy({noted})) == set()

    assert [path.name for path in tmp_path.iterdir()] == [noted]


def test_a_writer_that_dies_leaves_no_half_file(tmp_path):
    def dying():
        yield from pages("a", *range(1, 100))
        raise sqlite3.OperationalError("disk full")

    output = output_for("parquet", tmp_path, "some-model", 1, None)
    with pytest.raises(sqlite3.OperationalError):
        output.write(dying())

    assert [path.name for path in tmp_path.iterdir() if not path.name.startswith(".")] == []
    with pytest.raises(BackfillError, match="holds no pages"):
        load(tmp_path)


def test_npz_keeps_the_pages_that_a_retry_does_not_bring(tmp_path):
    output = output_for("npz", tmp_path, "some-model", 1, None)
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
        output = output_for(form, tmp_path, "some-model", 1, None)
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
    output_for("parquet", tmp_path, "some-model", 1, None).write(iter(everything))
    query = multi_vector("query", 2, np.float32)

    matches = best_pages(query, load(tmp_path), 7)

    scores = {page.page: maxsim(query, page.rows.astype(np.float32)) for page in everything}
    assert [match.page for match in matches] == sorted(scores, key=scores.get, reverse=True)[:7]
    assert [match.score for match in matches] == pytest.approx([scores[match.page] for match in matches], abs=1e-5)


@pytest.mark.parametrize("form", ["parquet", "npz"])
@pytest.mark.parametrize(("dtype", "dim"), [("float32", 128), ("int8", 128), ("uint8", 16)])
def test_other_precisions_come_back_as_they_are(tmp_path, form, dtype, dim):
    rows = np.random.default_rng(1).integers(0, 100, (4, dim)).astype(dtype)
    output_for(form, tmp_path, "some-model", 1, None).write(iter([Collected((1, 1), "a", 1, "sha", rows)]))

    (page,) = load(tmp_path)

    assert page.embedding.dtype == rows.dtype
    np.testing.assert_array_equal(page.embedding, rows)


def test_a_precision_that_lancedb_has_no_maxsim_for_is_refused(tmp_path):
    rows = np.zeros((2, 16), np.uint8)

    with pytest.raises(BackfillError, match="use float16"):
        output_for("lancedb", tmp_path, "some-model", 1, None).write(iter([Collected((1, 1), "a", 1, "sha", rows)]))


def test_a_server_is_used_where_the_store_is_a_url(monkeypatch, tmp_path):
    asked = []
    monkeypatch.setattr("colqueue_client.backfill.qdrant.QdrantClient", lambda **where: asked.append(where) or object())

    output_for("qdrant", tmp_path, "some-model", 1, "http://qdrant:6333")
    output_for("qdrant", tmp_path, "some-model", 1, str(tmp_path / "elsewhere"))

    assert asked == [{"url": "http://qdrant:6333"}, {"path": str(tmp_path / "elsewhere")}]
    assert models.MultiVectorComparator.MAX_SIM.value == "max_sim"
