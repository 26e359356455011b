import asyncio
import base64
import codecs
import json
import tracemalloc
from contextlib import suppress

import msgpack
import pytest
from fastapi import Request
from hypothesis import given, settings
from hypothesis import strategies as st

from api.bodies import submission_of
from api.submission import Limits
from shared.errors import ColqueueError, InvalidBodyError, TooLargeError, UnsupportedBodyError
from shared.jobs import InputType, Lane

LIMITS = Limits(max_inputs=3, max_input_bytes=50_000)
PICTURE = bytes(range(256))
BOUNDARY = "a-boundary"
MULTIPART = f"multipart/form-data; boundary={BOUNDARY}"


async def _read(body, content_type, limits):
    headers = [] if content_type is None else [(b"content-type", content_type.encode("latin-1"))]
    chunks = [body[start : start + 10_000] for start in range(0, len(body), 10_000)] or [b""]

    scope = {"type": "http", "method": "POST", "headers": headers, "app": None}

    async def receive():
        chunk = chunks.pop(0)
        return {"type": "http.request", "body": chunk, "more_body": bool(chunks)}

    return await submission_of(Request(scope, receive), limits, with_options=True)


def read(body, content_type="application/json", limits=LIMITS):
    return asyncio.run(_read(body, content_type, limits))


def form(*parts):
    """A form's body of (name, value) and (name, value, file name)."""
    lines = []
    for name, value, *filename in parts:
        file = f'; filename="{filename[0]}"\r\nContent-Type: image/png' if filename else ""
        head = f'--{BOUNDARY}\r\nContent-Disposition: form-data; name="{name}"{file}\r\n\r\n'
        lines.append(head.encode() + (value if isinstance(value, bytes) else value.encode()) + b"\r\n")
    return b"".join(lines) + f"--{BOUNDARY}--\r\n".encode()


@pytest.mark.parametrize(
    "content_type",
    [None, "application/json", "Application/JSON; charset=utf-8", "application/vnd.api+json", " application/json "],
)
def test_json_is_read_and_is_what_a_body_without_a_type_is_taken_for(content_type):
    body = json.dumps({"input_type": "image", "inputs": [base64.b64encode(PICTURE).decode()]}).encode()
    submission = read(body, content_type)
    assert submission.input_type is InputType.IMAGE
    assert submission.payloads == [PICTURE]


@pytest.mark.parametrize("size", [1, 40_000], ids=["small", "large"])
def test_a_byte_order_mark_before_json_is_skipped(size):
    body = codecs.BOM_UTF8 + json.dumps({"input_type": "text", "inputs": ["x" * size]}).encode()
    assert read(body).payloads == [b"x" * size]


@pytest.mark.parametrize("content_type", ["application/msgpack", "application/x-msgpack", "application/vnd.msgpack"])
def test_msgpack_carries_images_as_they_are(content_type):
    body = msgpack.packb({"input_type": "image", "inputs": [PICTURE], "lane": "interactive"})
    submission = read(body, content_type)
    assert submission.payloads == [PICTURE]
    assert submission.options.lane is Lane.INTERACTIVE


def test_a_form_carries_files_and_base64_side_by_side():
    body = form(
        ("input_type", "image"),
        ("inputs", PICTURE, "page.png"),
        ("inputs", base64.b64encode(b"other").decode()),
        ("deadline_s", "5"),
    )
    submission = read(body, MULTIPART)
    assert submission.payloads == [PICTURE, b"other"]
    assert submission.options.deadline_s == 5


def test_a_form_carries_texts():
    submission = read(form(("input_type", "text"), ("inputs", "erste"), ("inputs", "zwölf")), MULTIPART)
    assert submission.payloads == [b"erste", "zwölf".encode()]


@pytest.mark.parametrize(
    ("body", "content_type"),
    [(b"{}", "application/json"), (msgpack.packb({}), "application/msgpack"), (form(("input_type", "x")), MULTIPART)],
)
def test_no_inputs_are_nothing_in_every_form(body, content_type):
    assert read(body, content_type) is None


def test_a_body_above_the_threads_threshold_is_read_the_same():
    texts = ["x" * 20_000, "y" * 20_000]
    assert read(json.dumps({"input_type": "text", "inputs": texts}).encode()).payloads == [
        text.encode() for text in texts
    ]


@pytest.mark.parametrize("content_type", ["text/plain", "application/x-www-form-urlencoded", "image/png", "json", ""])
def test_a_content_type_nobody_understands_is_said_to_be_that(content_type):
    with pytest.raises(UnsupportedBodyError, match="application/json"):
        read(b'{"input_type": "text", "inputs": ["a"]}', content_type)


@pytest.mark.parametrize("body", [b"", b"{", b"SECRET", b'{"inputs": ["SECRET]}', b"\xff", b"[" * 5000, b'"\\ud800"'])
def test_a_body_that_is_no_json_is_refused_without_an_echo(body):
    with pytest.raises(InvalidBodyError, match="not valid JSON") as caught:
        read(body)
    assert "SECRET" not in caught.value.message
    assert caught.value.__cause__ is None  # the driver's exception holds the document


@pytest.mark.parametrize("body", [b"", b"\x81", b"\xc1", b"\x81\x01\x02", b"\x92" * 5000])
def test_a_body_that_is_no_msgpack_is_refused(body):
    with pytest.raises(InvalidBodyError, match="not valid msgpack"):
        read(body, "application/msgpack")


BOMBS = {
    "JSON of empty lists": (b'{"inputs": [' + b"[]," * 600_000 + b"[]]}", "application/json"),
    "JSON of empty objects": (b'{"inputs": [' + b"{}," * 600_000 + b"{}]}", "application/json"),
    "JSON of zeros": (b'{"x": [' + b"0," * 1_000_000 + b"0]}", "application/json"),
    "msgpack of empty lists": (b"\x81\xa1x\xdc\x03\xe8" + b"\x90" * 1000, "application/msgpack"),
    "msgpack of empty objects": (b"\x81\xa1x\xdc\x03\xe8" + b"\x80" * 1000, "application/msgpack"),
    "msgpack of nothings": (b"\x81\xa1x\xdd\x00\x01\x00\x00" + b"\xc0" * 65_536, "application/msgpack"),
    "msgpack that claims 4 billion items": (b"\xdd\xff\xff\xff\xff", "application/msgpack"),
    "msgpack that claims 4 billion pairs": (b"\xdf\xff\xff\xff\xff", "application/msgpack"),
    "msgpack with a large extension": (b"\x81\xa1x\xc8\x80\x00\x07" + bytes(32_768), "application/msgpack"),
}


@pytest.mark.parametrize("name", BOMBS)
def test_a_body_that_is_all_pieces_is_refused_before_they_take_memory(name):
    """Read, each piece would take dozens of bytes for its one to three."""
    body, content_type = BOMBS[name]
    tracemalloc.start()
    try:
        with pytest.raises(TooLargeError, match="pieces"):
            read(body, content_type)
        assert tracemalloc.get_traced_memory()[1] < 3 * len(body) + 2**20
    finally:
        tracemalloc.stop()


def test_a_text_full_of_commas_and_brackets_is_no_bomb():
    text = "f(a[i], {b: c}), " * 2900
    assert read(json.dumps({"input_type": "text", "inputs": [text]}).encode()).payloads == [text.encode()]


@pytest.mark.parametrize("value", [[], "text", 1, None])
def test_a_body_that_is_no_object_is_refused(value):
    for body, content_type in [(json.dumps(value), "application/json"), (msgpack.packb(value), "application/msgpack")]:
        with pytest.raises(InvalidBodyError, match="must be an object"):
            read(body.encode() if isinstance(body, str) else body, content_type)


@pytest.mark.parametrize("number", [4, 40, 400])
def test_too_many_inputs_are_too_many_in_every_form(number):
    """413, on which callers split."""
    texts = ["a"] * number
    with pytest.raises(TooLargeError):
        read(json.dumps({"input_type": "text", "inputs": texts}).encode())
    with pytest.raises(TooLargeError):
        read(form(("input_type", "text"), *(("inputs", text) for text in texts)), MULTIPART)
    with pytest.raises(TooLargeError):
        read(form(("input_type", "image"), *(("inputs", text, "p.png") for text in texts)), MULTIPART)


def test_an_input_over_the_limit_is_too_large_in_every_form():
    """413, on which callers split."""
    large = b"\xff" * (LIMITS.max_input_bytes + 1)
    encoded = base64.b64encode(large).decode()
    for body, content_type in [
        (json.dumps({"input_type": "image", "inputs": [encoded]}).encode(), "application/json"),
        (msgpack.packb({"input_type": "image", "inputs": [large]}), "application/msgpack"),
        (form(("input_type", "image"), ("inputs", large, "p.png")), MULTIPART),
        (form(("input_type", "image"), ("inputs", encoded)), MULTIPART),
    ]:
        with pytest.raises(TooLargeError) as caught:
            read(body, content_type)
        assert caught.value.index == 0


def test_an_image_of_exactly_the_limit_is_taken_in_every_form():
    exact = b"\xff" * LIMITS.max_input_bytes
    encoded = base64.b64encode(exact).decode()
    for body, content_type in [
        (json.dumps({"input_type": "image", "inputs": [encoded]}).encode(), "application/json"),
        (form(("input_type", "image"), ("inputs", exact, "p.png")), MULTIPART),
        (form(("input_type", "image"), ("inputs", encoded)), MULTIPART),
    ]:
        assert read(body, content_type).payloads == [exact]


def test_a_form_that_is_none_is_an_invalid_body():
    with pytest.raises(InvalidBodyError):
        read(b"no form", MULTIPART)


@pytest.mark.parametrize("content_type", ["application/json", "application/msgpack", MULTIPART])
@settings(max_examples=40, deadline=None)
@given(body=st.binary(max_size=200))
def test_whatever_bytes_are_sent_they_are_read_or_refused(content_type, body):
    with suppress(ColqueueError):
        submission = read(body, content_type)
        assert submission is None or submission.payloads


objects = st.fixed_dictionaries(
    {"input_type": st.sampled_from(["image", "text"]) | st.binary() | st.none() | st.integers(0, 9)},
    optional={"inputs": st.lists(st.text(max_size=5) | st.binary(max_size=5) | st.floats() | st.none(), max_size=4)},
)


@settings(max_examples=40, deadline=None)
@given(objects)
def test_whatever_object_is_packed_it_is_read_or_refused(fields):
    try:
        submission = read(msgpack.packb(fields), "application/msgpack")
    except ColqueueError:
        return
    assert submission is None or len(submission.payloads) == len(fields["inputs"])
