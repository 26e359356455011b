import io
import json
import zipfile
from collections.abc import Sequence
from typing import NamedTuple

import msgpack
import numpy as np
import orjson
import pytest
from hypothesis import given
from hypothesis import strategies as st

from shared.codecs import AnswerHead, JsonEncoder, MsgpackEncoder, NpzEncoder, pack_rows, unpack_rows
from shared.jobs import InputFailure


class Answer(NamedTuple):
    """A whole answer, as the tests describe it."""

    input_type: str
    embeddings: Sequence
    failures: Sequence[InputFailure] | None = None


def pieces(encoder_class, answer):
    encoder = encoder_class(AnswerHead(answer.input_type, len(answer.embeddings), answer.failures))
    return [encoder.begin(), *map(encoder.add, answer.embeddings), encoder.end()]


def answer_json(answer):
    return b"".join(pieces(JsonEncoder, answer))


def answer_msgpack(answer):
    return b"".join(pieces(MsgpackEncoder, answer))


def answer_npz(answer):
    return b"".join(pieces(NpzEncoder, answer))


FAILURES = [InputFailure(index=1, code="image_invalid", message="not an image")]
FAILURES_AS_DICTS = [{"index": 1, "code": "image_invalid", "message": "not an image"}]
ONE = np.linspace(-1, 1, 256, dtype=np.float32).reshape(2, 128)
TWO = np.linspace(0, 3, 384, dtype=np.float32).reshape(3, 128)
INT8 = np.arange(-128, 128).astype(np.int8).reshape(2, 128)
SIGNS = np.arange(224, 256).astype(np.uint8).reshape(2, 16)
PARTIAL = Answer("image", [ONE, None, TWO], FAILURES)

any_float32 = st.floats(width=32, allow_nan=False, allow_infinity=False)


def load_npz(body):
    with np.load(io.BytesIO(body), allow_pickle=False) as archive:
        return {name: archive[name] for name in archive.files}


def from_msgpack(embedding):
    return np.frombuffer(embedding["data"], embedding["dtype"]).reshape(embedding["shape"])


def assert_same(rows, expected):
    assert rows.dtype == expected.dtype
    assert rows.shape == expected.shape
    assert rows.tobytes() == expected.tobytes()


@pytest.mark.parametrize("dtype", [np.float32, np.float16])
@pytest.mark.parametrize("n_rows", [0, 1, 2, 769])
def test_stored_rows_come_back_bit_by_bit(dtype, n_rows):
    rows = np.random.default_rng(n_rows).standard_normal((n_rows, 128)).astype(dtype)
    assert_same(unpack_rows(pack_rows(rows)), rows)


@pytest.mark.parametrize(
    "rows",
    [ONE.astype(">f4"), np.asfortranarray(ONE), TWO[::2], np.hstack([ONE, TWO[:2]])[:, ::2]],
    ids=["big-endian", "fortran", "every other row", "every other column"],
)
def test_rows_are_stored_in_c_order_and_little_endian_however_they_lie_in_memory(rows):
    assert_same(unpack_rows(pack_rows(rows)), np.ascontiguousarray(rows, "<f4"))


def test_unpacked_rows_are_aligned_and_cannot_be_written_to():
    rows = unpack_rows(pack_rows(ONE))
    assert rows.flags.aligned
    assert rows.ctypes.data % 16 == 0
    with pytest.raises(ValueError, match="read-only"):
        rows[0, 0] = 1


def test_bytes_that_were_cut_short_are_not_taken_for_rows():
    with pytest.raises(ValueError, match="reshape"):
        unpack_rows(pack_rows(ONE)[:-4])


@pytest.mark.parametrize("rows", [INT8, SIGNS], ids=["int8", "binary"])
def test_whole_numbers_come_back_from_the_store_and_in_every_binary_form(rows):
    assert_same(unpack_rows(pack_rows(rows)), rows)
    answer = Answer("image", [unpack_rows(pack_rows(rows))])
    assert_same(load_npz(answer_npz(answer))["emb_0"], rows)
    assert_same(from_msgpack(msgpack.unpackb(answer_msgpack(answer))["embeddings"][0]), rows)


@given(st.lists(any_float32, min_size=1, max_size=8))
def test_json_decimals_read_back_as_the_same_float32(values):
    rows = np.resize(np.array(values, dtype=np.float32), (1, 128))
    (read,) = json.loads(answer_json(Answer("text", [rows])))["embeddings"]
    assert_same(np.array(read, dtype=np.float32), rows)


def test_json_of_float16_rows_reads_back_as_the_same_float16():
    rows = (ONE / 3).astype(np.float16)
    (read,) = json.loads(answer_json(Answer("text", [rows])))["embeddings"]
    assert_same(np.array(read, dtype=np.float16), rows)


@pytest.mark.parametrize("rows", [INT8, SIGNS], ids=["int8", "binary"])
def test_json_of_whole_numbers_has_no_decimals(rows):
    body = answer_json(Answer("image", [unpack_rows(pack_rows(rows))]))
    assert b"." not in body
    (read,) = json.loads(body)["embeddings"]
    assert read == rows.tolist()


def test_json_takes_rows_straight_from_the_store():
    (read,) = json.loads(answer_json(Answer("text", [unpack_rows(pack_rows(ONE))])))["embeddings"]
    assert_same(np.array(read, dtype=np.float32), ONE)


def test_json_holds_the_embeddings_and_nothing_else_where_no_input_may_fail():
    body = json.loads(answer_json(Answer("text", [ONE, TWO])))
    assert list(body) == ["embeddings"]
    assert [len(rows) for rows in body["embeddings"]] == [2, 3]
    assert {len(row) for rows in body["embeddings"] for row in rows} == {128}


def test_json_has_null_and_a_reason_for_a_failed_input():
    body = json.loads(answer_json(PARTIAL))
    assert body["errors"] == FAILURES_AS_DICTS
    assert body["embeddings"][1] is None
    assert_same(np.array(body["embeddings"][2], dtype=np.float32), TWO)


@pytest.mark.parametrize("dtype", [np.float32, np.float16])
def test_npz_is_read_by_plain_numpy_as_morphik_core_does(dtype):
    one, two = ONE.astype(dtype), TWO.astype(dtype)
    arrays = load_npz(answer_npz(Answer("image", [one, two])))
    assert set(arrays) == {"count", "input_type", "emb_0", "emb_1"}
    assert int(arrays["count"]) == 2
    assert str(arrays["input_type"]) == "image"
    assert_same(arrays["emb_0"], one)
    assert_same(arrays["emb_1"], two)


def test_npz_leaves_a_failed_input_out_and_says_why():
    arrays = load_npz(answer_npz(PARTIAL))
    assert set(arrays) == {"count", "input_type", "emb_0", "emb_2", "errors"}
    assert int(arrays["count"]) == 3
    assert json.loads(str(arrays["errors"])) == FAILURES_AS_DICTS
    assert_same(arrays["emb_2"], TWO)


@pytest.mark.parametrize("dtype", [np.float32, np.float16])
def test_msgpack_carries_the_bytes_and_how_to_read_them(dtype):
    body = msgpack.unpackb(answer_msgpack(Answer("text", [ONE.astype(dtype)])))
    assert set(body) == {"input_type", "embeddings"}
    assert body["input_type"] == "text"
    assert_same(from_msgpack(body["embeddings"][0]), ONE.astype(dtype))


def test_msgpack_has_nil_and_a_reason_for_a_failed_input():
    body = msgpack.unpackb(answer_msgpack(PARTIAL))
    assert body["errors"] == FAILURES_AS_DICTS
    assert body["embeddings"][1] is None
    assert_same(from_msgpack(body["embeddings"][2]), TWO)


def test_where_failures_are_allowed_and_none_happened_the_list_is_empty():
    answer = Answer("text", [ONE], [])
    assert json.loads(answer_json(answer))["errors"] == []
    assert msgpack.unpackb(answer_msgpack(answer))["errors"] == []
    assert json.loads(str(load_npz(answer_npz(answer))["errors"])) == []


def test_no_inputs_give_an_empty_answer_in_every_form():
    answer = Answer("", [])
    assert answer_json(answer) == b'{"embeddings":[]}'
    assert msgpack.unpackb(answer_msgpack(answer)) == {"input_type": "", "embeddings": []}
    arrays = load_npz(answer_npz(answer))
    assert set(arrays) == {"count", "input_type"}
    assert int(arrays["count"]) == 0


MANY_ROWS = np.linspace(-2, 2, 300 * 128, dtype=np.float32).reshape(300, 128)
NO_ROWS = np.empty((0, 128), np.float32)
ANSWERS = {
    "partial": PARTIAL,
    "no failure allowed": Answer("text", [ONE, MANY_ROWS, TWO.astype(np.float16)]),
    "no rows": Answer("image", [NO_ROWS, None, SIGNS, INT8], [FAILURES[0]]),
    "nothing": Answer("", []),
    "all failed": Answer("image", [None], [InputFailure(index=0, code="image_invalid", message="\u00fcmlaut")]),
}


@pytest.mark.parametrize("answer", ANSWERS.values(), ids=ANSWERS)
def test_a_json_answer_in_pieces_has_the_bytes_of_one_encoded_as_a_whole(answer):
    whole = {
        "embeddings": [
            rows if rows is None or rows.dtype.kind != "f" else rows.astype(np.float32) for rows in answer.embeddings
        ]
    }
    if answer.failures is not None:
        whole["errors"] = [failure.model_dump() for failure in answer.failures]
    assert answer_json(answer) == orjson.dumps(whole, option=orjson.OPT_SERIALIZE_NUMPY)


@pytest.mark.parametrize("answer", ANSWERS.values(), ids=ANSWERS)
def test_a_msgpack_answer_in_pieces_has_the_bytes_of_one_encoded_as_a_whole(answer):
    whole = {
        "input_type": answer.input_type,
        "embeddings": [
            rows if rows is None else {"dtype": rows.dtype.name, "shape": list(rows.shape), "data": rows.tobytes()}
            for rows in answer.embeddings
        ],
    }
    if answer.failures is not None:
        whole["errors"] = [failure.model_dump() for failure in answer.failures]
    assert answer_msgpack(answer) == msgpack.packb(whole)


@pytest.mark.parametrize("answer", ANSWERS.values(), ids=ANSWERS)
def test_an_npz_answer_in_pieces_has_the_bytes_that_numpy_writes(answer):
    arrays = {"count": np.array(len(answer.embeddings)), "input_type": np.array(answer.input_type)}
    if answer.failures is not None:
        errors = [failure.model_dump() for failure in answer.failures]
        arrays["errors"] = np.array(orjson.dumps(errors).decode())
    arrays |= {f"emb_{index}": rows for index, rows in enumerate(answer.embeddings) if rows is not None}
    whole = io.BytesIO()
    np.savez(whole, allow_pickle=False, **arrays)
    assert answer_npz(answer) == whole.getvalue()


def test_an_npz_answer_names_sizes_and_checksums_before_the_data_so_that_it_can_be_read_as_it_comes():
    for entry in zipfile.ZipFile(io.BytesIO(answer_npz(PARTIAL))).infolist():
        assert entry.compress_type == zipfile.ZIP_STORED
        assert entry.flag_bits & 0x08 == 0
    with zipfile.ZipFile(io.BytesIO(answer_npz(PARTIAL))) as archive:
        assert archive.testzip() is None


@pytest.mark.parametrize("encoder", [JsonEncoder, MsgpackEncoder, NpzEncoder])
def test_an_encoder_keeps_nothing_of_an_embedding_that_it_has_returned(encoder):
    one, two = pieces(encoder, Answer("text", [ONE, ONE]))[1:3]
    assert abs(len(one) - len(two)) <= 1
    assert len(two) >= ONE.nbytes
