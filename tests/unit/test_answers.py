import asyncio
import io
import json

import msgpack
import numpy as np
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from api.answers import JSON, MSGPACK, NPZ, embeddings_response
from shared.codecs import Answer

ANSWER = Answer("text", [np.ones((2, 128), np.float32)])
EMPTY = Answer("", [])


def chosen(accept, default=JSON):
    return asyncio.run(embeddings_response(accept, EMPTY, default=default)).headers["content-type"]


def body(accept):
    return asyncio.run(embeddings_response(accept, ANSWER)).body


def test_each_media_type_holds_what_it_says():
    assert np.array(json.loads(body(JSON))["embeddings"]).shape == (1, 2, 128)
    assert msgpack.unpackb(body(MSGPACK))["embeddings"][0]["shape"] == [2, 128]
    with np.load(io.BytesIO(body(NPZ))) as archive:
        assert archive["emb_0"].shape == (2, 128)


@pytest.mark.parametrize("default", [JSON, NPZ])
@pytest.mark.parametrize(
    "accept",
    [None, "", "*/*", "application/*", "text/html,application/xhtml+xml,application/xml;q=0.9,*/*;q=0.8", ",;q=,;;"],
)
def test_a_caller_that_asks_for_nothing_in_particular_gets_the_routes_default(accept, default):
    assert chosen(accept, default) == default


@pytest.mark.parametrize("default", [JSON, NPZ])
@pytest.mark.parametrize(
    ("accept", "media_type"),
    [
        ("application/json", JSON),
        ("application/x-npz", NPZ),
        ("application/npz", NPZ),
        ("application/msgpack", MSGPACK),
        ("application/x-msgpack", MSGPACK),
        ("Application/X-NPZ ; charset=utf-8", NPZ),
        ("application/json, text/plain, */*", JSON),
        ("text/plain, application/x-npz", NPZ),
        ("application/json;q=0.5, application/x-npz", NPZ),
        ("application/json;q=0.5, application/msgpack;q=0.9, application/x-npz;q=0.1", MSGPACK),
        ("application/x-npz;q=0.5,application/json;q=0.50", NPZ),
    ],
)
def test_the_best_known_media_type_wins(accept, media_type, default):
    assert chosen(accept, default) == media_type


@pytest.mark.parametrize(
    "accept", ["application/x-npz;q=0, */*", "application/x-npz;q=0.0", "*/*, application/x-npz;q=0"]
)
def test_a_media_type_of_quality_zero_is_not_answered(accept):
    assert chosen(accept) == JSON


@pytest.mark.parametrize("quality", ["", "high", "1.2.3", "-1", "1e9", "nan", "inf", "\xb2", "\xb9.\xb2", "0x1"])
def test_a_quality_that_is_no_number_harms_nothing(quality):
    assert chosen(f"application/x-npz;q={quality}, application/json;q=0.5") in {JSON, NPZ}


words = st.sampled_from(
    ["application/x-npz", "application/json", "*/*", "a/b", ";q=", ";", ",", "0", "1", ".", "\xb2", " "]
)


@settings(max_examples=40, deadline=None)
@example("application/x-npz;q=\xb2")
@given(st.text(st.characters(max_codepoint=255), max_size=30) | st.lists(words, max_size=12).map("".join))
def test_whatever_a_caller_accepts_it_gets_an_answer(accept):
    assert chosen(accept) in {JSON, NPZ, MSGPACK}
