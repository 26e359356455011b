"""Whatever is sent: an answer of the documented kind, never a 500, never the payload back, and the service goes on."""

import io
import json
import socket

import msgpack
import numpy as np
import pytest
from acceptance.pictures import as_base64, bomb, jpeg, page, png, png_header
from stack import KEY

CANARY = "zq-canary-zq"
"""Stands in every payload that can hold a word, and in no answer."""

JSON = {"Content-Type": "application/json"}
MSGPACK = {"Content-Type": "application/msgpack"}
MULTIPART = {"Content-Type": "multipart/form-data; boundary=limit"}
PATHS = ["/embeddings", "/npz/embeddings", "/jobs"]
LIMIT = 2**20


@pytest.fixture(autouse=True)
def goes_on(http, request):
    """After each of these the same question must get the same answer as ever."""
    yield
    answer = http.post("/embeddings", json={"input_type": "text", "inputs": ["still there?"]})
    assert answer.status_code == 200
    rows = np.array(answer.json()["embeddings"][0])
    first = request.session.__dict__.setdefault("colqueue_first_rows", rows)
    np.testing.assert_allclose(rows, first, rtol=0, atol=1e-5)


def assert_refused(answer, status, code, index=None):
    """One shape for every error, with nothing of what was sent."""
    assert answer.headers["content-type"] == "application/json"
    body = answer.json()
    assert (answer.status_code, body["code"], body.get("index")) == (status, code, index)
    assert set(body) <= {"error", "code", "index"}
    assert isinstance(body["error"], str)
    assert body["error"]
    assert CANARY not in answer.text
    assert len(answer.text) < 600


def deep(depth, opening=b"[", closing=b"]"):
    return b'{"input_type": "text", "inputs": ' + opening * depth + closing * depth + b"}"


BODIES = {
    "empty": (b"", JSON, 400, "invalid_body"),
    "no JSON": (CANARY.encode(), JSON, 400, "invalid_body"),
    "truncated JSON": (b'{"input_type": "text", "inputs": ["' + CANARY.encode(), JSON, 400, "invalid_body"),
    "JSON with more behind it": (b'{"inputs": []} x', JSON, 400, "invalid_body"),
    "JSON deeper than anybody needs": (deep(100_000), JSON, 400, "invalid_body"),
    "JSON deep within bounds": (deep(500), JSON, 400, "invalid_text_inputs", 0),
    "NaN": (b'{"input_type": "text", "inputs": [NaN]}', JSON, 400, "invalid_body"),
    "a number": (b"7", JSON, 400, "invalid_body"),
    "null": (b"null", JSON, 400, "invalid_body"),
    "a list": (json.dumps([CANARY]).encode(), JSON, 400, "invalid_body"),
    "a string": (json.dumps(CANARY).encode(), JSON, 400, "invalid_body"),
    "invalid UTF-8": (
        b'{"input_type": "text", "inputs": ["\xff\xfe' + CANARY.encode() + b'"]}',
        JSON,
        400,
        "invalid_body",
    ),
    "UTF-16": (json.dumps({"input_type": "text", "inputs": [CANARY]}).encode("utf-16"), JSON, 400, "invalid_body"),
    "half a surrogate pair": (b'{"input_type": "text", "inputs": ["\\ud800 zq"]}', JSON, 400, "invalid_body"),
    "a NUL byte in a content type": (b"{}", {"Content-Type": "application/json\t;;;="}, None, None),
    "inputs as a string": (json.dumps({"input_type": "text", "inputs": CANARY}).encode(), JSON, 400, "invalid_body"),
    "inputs as an object": (b'{"input_type": "text", "inputs": {"0": "x"}}', JSON, 400, "invalid_body"),
    "inputs as a number": (b'{"input_type": "text", "inputs": 3}', JSON, 400, "invalid_body"),
    "inputs as true": (b'{"input_type": "text", "inputs": true}', JSON, 400, "invalid_body"),
    "nested inputs": (
        json.dumps({"input_type": "image", "inputs": [[CANARY]]}).encode(),
        JSON,
        400,
        "image_invalid",
        0,
    ),
    "an object as input": (b'{"input_type": "text", "inputs": [{}]}', JSON, 400, "invalid_text_inputs", 0),
    "a long unknown input type": (
        json.dumps({"input_type": CANARY * 1000, "inputs": ["x"]}).encode(),
        JSON,
        400,
        "invalid_input_type",
    ),
    "too many inputs": (json.dumps({"input_type": "text", "inputs": [CANARY] * 65}).encode(), JSON, 413, "too_large"),
    "one text over the limit": (
        json.dumps({"input_type": "text", "inputs": ["x", CANARY * (LIMIT // len(CANARY) + 1)]}).encode(),
        JSON,
        413,
        "too_large",
        1,
    ),
    "one image over the limit": (
        json.dumps({"input_type": "image", "inputs": [as_base64(bytes(LIMIT + 1))]}).encode(),
        JSON,
        413,
        "too_large",
        0,
    ),
    "a body over the limit": (b'{"input_type": "' + b" " * 6 * LIMIT + b'"}', JSON, 413, "too_large"),
    "empty msgpack": (b"", MSGPACK, 400, "invalid_body"),
    "no msgpack": (b"\xc1\xc1\xc1", MSGPACK, 400, "invalid_body"),
    "truncated msgpack": (msgpack.packb({"inputs": [CANARY]})[:-3], MSGPACK, 400, "invalid_body"),
    "msgpack with more behind it": (msgpack.packb({"inputs": []}) + CANARY.encode(), MSGPACK, 400, "invalid_body"),
    "msgpack of a number": (msgpack.packb(7), MSGPACK, 400, "invalid_body"),
    "msgpack that claims 4 billion items": (b"\x81\xa6inputs\xdd\xff\xff\xff\xff", MSGPACK, 413, "too_large"),
    "100000 tiny inputs": (
        json.dumps({"input_type": "text", "inputs": ["x"] * 100_000}).encode(),
        JSON,
        413,
        "too_large",
    ),
    "100000 tiny inputs in msgpack": (
        msgpack.packb({"input_type": "text", "inputs": ["x"] * 100_000}),
        MSGPACK,
        413,
        "too_large",
    ),
    "a JSON of empty lists": (deep(1, b"[" + b"[]," * 600_000 + b"[", b"]]"), JSON, 413, "too_large"),
    "deep msgpack": (b"\x91" * 100_000, MSGPACK, 400, "invalid_body"),
    "msgpack with a list as a key": (b"\x81\x91\x01\x01", MSGPACK, 400, "invalid_body"),
    "msgpack with a number as a key": (msgpack.packb({1: 2, "input_type": "x", "inputs": [3]}), MSGPACK, 400, None),
    "msgpack with an impossible date": (
        b"\x81\xa6inputs\xc7\x0c\xff\xff\xff\xff\xff" + b"\x7f" * 8,
        MSGPACK,
        400,
        None,
    ),
    "msgpack with invalid UTF-8": (b"\x81\xa6inputs\x91\xa2\xff\xfe", MSGPACK, 400, "invalid_body"),
    "msgpack with bytes as text": (
        msgpack.packb({"input_type": "text", "inputs": [CANARY.encode()]}),
        MSGPACK,
        400,
        "invalid_text_inputs",
        0,
    ),
    "multipart without a boundary": (b"--x\r\n", {"Content-Type": "multipart/form-data"}, 400, None),
    "multipart that is none": (CANARY.encode(), MULTIPART, 400, None),
    "multipart that ends early": (
        b'--limit\r\nContent-Disposition: form-data; name="inputs"\r\n\r\n' + CANARY.encode(),
        MULTIPART,
        None,
        None,
    ),
    "multipart with nameless parts": (b"--limit\r\n\r\nx\r\n--limit--\r\n", MULTIPART, 400, None),
    "XML": (f"<inputs>{CANARY}</inputs>".encode(), {"Content-Type": "text/xml"}, 415, "unsupported_media_type"),
    "a curl form": (
        f"inputs={CANARY}".encode(),
        {"Content-Type": "application/x-www-form-urlencoded"},
        415,
        "unsupported_media_type",
    ),
    "an empty content type": (b"{}", {"Content-Type": ""}, 415, "unsupported_media_type"),
    "a nonsense content type": (b"{}", {"Content-Type": ";;;"}, 415, "unsupported_media_type"),
}


@pytest.mark.parametrize("path", PATHS)
@pytest.mark.parametrize("name", BODIES)
def test_a_bad_body_is_refused(http, path, name):
    """None in the table: some 4xx, or, where the body may be read as one without inputs, what such a body gets."""
    body, headers, status, code, *index = BODIES[name]

    answer = http.post(path, content=body, headers=headers)

    if status is not None and code is not None:
        assert_refused(answer, status, code, *index)
    else:
        assert answer.status_code < 500
        assert CANARY not in answer.text
        assert status in (None, answer.status_code)
        if answer.status_code >= 400:
            assert_refused(answer, answer.status_code, answer.json()["code"], answer.json().get("index"))


@pytest.mark.parametrize("path", PATHS)
@pytest.mark.parametrize(
    ("parts", "expected"),
    [
        ([("input_type", (None, "text")), ("inputs", ("x", CANARY.encode()))], (400, "invalid_text_inputs", 0)),
        ([("input_type", (None, "image")), ("inputs", (None, CANARY))], (400, "image_invalid", 0)),
        ([("inputs", ("x", png()))], (400, "invalid_input_type", None)),
        ([("input_type", ("x", b"image")), ("inputs", ("x", png()))], (400, "invalid_input_type", None)),
        ([("input_type", (None, "image")), *[("inputs", ("x", b"x"))] * 66], (413, "too_large", None)),
        ([("input_type", (None, "image")), *[("inputs", ("x", b"x"))] * 5000], (413, "too_large", None)),
        ([("input_type", (None, "text")), *[("inputs", (None, "x"))] * 5000], (413, "too_large", None)),
        ([("input_type", (None, "image")), ("inputs", ("x", bytes(LIMIT + 1)))], (413, "too_large", 0)),
        ([("input_type", (None, "text")), ("inputs", (None, "x" * (LIMIT + 1)))], (413, "too_large", 0)),
    ],
    ids=[
        "file as text",
        "text as image",
        "no type",
        "type as file",
        "66 files",
        "5000 files",
        "5000 texts",
        "file",
        "text",
    ],
)
def test_a_bad_form_is_refused(http, path, parts, expected):
    assert_refused(http.post(path, files=parts), *expected)


def saved(image, kind, **options):
    buffer = io.BytesIO()
    image.save(buffer, kind, **options)
    return buffer.getvalue()


IMAGES = {
    "empty": (b"", 400, "image_invalid"),
    "text": (CANARY.encode() * 100, 400, "image_invalid"),
    "truncated PNG": (png(300, 300)[:-200], 400, "image_invalid"),
    "truncated JPEG": (jpeg(300, 300)[:-500], 400, "image_invalid"),
    "a PNG's header alone": (png()[:33], 400, "image_invalid"),
    "a PNG without pixels": (png_header(100, 100), 400, "image_invalid"),
    "a PNG of no size": (png_header(0, 0), 400, "image_invalid"),
    "PNG with a wrong checksum": (png().replace(b"IDAT", b"IDAX"), 400, "image_invalid"),
    "PDF": (b"%PDF-1.7\n" + CANARY.encode(), 400, "image_invalid"),
    "SVG": (f'<svg xmlns="http://www.w3.org/2000/svg"><text>{CANARY}</text></svg>'.encode(), 400, "image_invalid"),
    "EPS": (b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 10 10\n", 400, "image_invalid"),
    "ZIP": (b"PK\x03\x04" + CANARY.encode(), 400, "image_invalid"),
    "a header of 70000 x 10": (png_header(70_000, 10), 400, "image_aspect_ratio"),
    "a header of 10 x 70000": (png_header(10, 70_000), 400, "image_aspect_ratio"),
    "a header of 2^31 x 2^31": (png_header(2**31 - 1, 2**31 - 1), 413, "image_too_large"),
    "a decompression bomb": (bomb(12_000, 12_000), 413, "image_too_large"),
    "a long thin line": (saved(page(804, 4), "PNG"), 400, "image_aspect_ratio"),
}


@pytest.mark.parametrize("name", IMAGES)
def test_a_bad_image_is_refused_and_its_neighbour_embedded(http, name):
    data, status, code = IMAGES[name]
    body = {"input_type": "image", "inputs": [as_base64(png()), as_base64(data)]}

    assert_refused(http.post("/embeddings", json=body), status, code, 1)

    job = http.post("/jobs", json=body).json()
    while not job["finished_at"]:
        job = http.get(f"/jobs/{job['id']}", params={"wait": 60}).json()
    assert (job["status"], job["completed"], job["failed"]) == ("completed", 1, 1)
    result = http.get(f"/jobs/{job['id']}/result")
    assert [(error["index"], error["code"]) for error in result.json()["errors"]] == [(1, code)]
    assert CANARY not in result.text


@pytest.mark.parametrize(
    "text",
    [
        "",
        " ",
        "\0",
        "<|image_pad|>",
        "<|vision_start|><|image_pad|><|vision_end|> <|im_end|> <|endoftext|>",
        "\u202e\ufeff\u0301\U0010ffff",
        "🏳️‍🌈" * 50,
    ],
    ids=["empty", "blank", "NUL", "image_pad", "special tokens", "odd characters", "flags"],
)
def test_a_strange_text_is_a_text(http, text):
    """The tokens that mark an image are ordinary characters in a caller's text."""
    answer = http.post("/embeddings", json={"input_type": "text", "inputs": [text, "plain"]})

    assert answer.status_code == 200
    strange, plain = answer.json()["embeddings"]
    assert len(plain) >= 10
    assert len(strange) >= 10


def test_a_text_of_too_many_tokens_is_refused(http):
    """Short enough for the door, too long for the model: 500 KB."""
    answer = http.post("/embeddings", json={"input_type": "text", "inputs": ["fine", CANARY * 40_000]})

    assert_refused(answer, 413, "text_too_long", 1)


@pytest.mark.parametrize(
    ("method", "path", "status"),
    [
        ("GET", "/nothing", 404),
        ("POST", "/", 404),
        ("GET", "/embeddings", 405),
        ("PUT", "/jobs", 405),
        ("POST", "/health", 405),
        ("GET", "/jobs/unknown", 404),
        ("GET", "/jobs/unknown/result", 404),
        ("GET", "/jobs/unknown/nothing", 404),
        ("DELETE", "/jobs/unknown", 404),
        ("GET", "/jobs/%00", 404),
        ("GET", "/jobs/%ff%fe", 404),
        ("GET", "/jobs/" + "x" * 5000, 404),
        ("GET", "/jobs/..%2f..%2fetc", 404),
        ("GET", "/jobs/some:payloads", 404),
        ("BREW", "/embeddings", 405),
    ],
)
def test_a_path_or_method_nobody_has_is_refused(http, method, path, status):
    answer = http.request(method, path)

    assert answer.status_code == status
    assert set(answer.json()) == {"error", "code"}


@pytest.mark.parametrize("query", ["wait=x", "wait=-1", "wait=61", "wait=nan", "wait=inf", "wait="])
def test_a_bad_query_parameter_is_refused(http, query):
    job = http.post("/jobs", json={"input_type": "text", "inputs": ["x"]}).json()

    answer = http.get(f"/jobs/{job['id']}?{query}")

    assert_refused(answer, 422, "invalid_job")


FORM = b'--limit\r\nContent-Disposition: form-data; name="inputs"; filename="x"\r\n\r\n'
ENDLESS = {
    "JSON": (JSON, b'{"input_type": "text", "inputs": ["'),
    "msgpack": (MSGPACK, b"\x81\xa6inputs\x91\xdb\x7f\xff\xff\xff"),
    "multipart": (MULTIPART, FORM),
}


@pytest.mark.parametrize("form", ENDLESS)
@pytest.mark.parametrize("path", PATHS)
def test_a_body_over_the_limit_is_refused_also_when_it_does_not_say_its_length(http, path, form):
    headers, beginning = ENDLESS[form]

    def endless():
        yield beginning
        for _ in range(200):
            yield CANARY.encode() * 8000

    answer = http.post(path, content=endless(), headers=headers)

    assert_refused(answer, 413, "too_large")


def exchange(stack, request, *, until=b"\r\n\r\n"):
    """Send raw bytes and return what comes back until the header's end or the connection's."""
    with socket.create_connection(("127.0.0.1", stack.port), timeout=60) as connection:
        connection.sendall(request)
        answer = b""
        while until not in answer and (received := connection.recv(65_536)):
            answer += received
    return answer


def raw_post(*headers, body=b""):
    lines = [b"POST /embeddings HTTP/1.1", b"Host: x", b"Authorization: Bearer " + KEY.encode(), *headers]
    return b"\r\n".join(lines) + b"\r\n\r\n" + body


def test_a_huge_declared_length_is_refused_before_the_body_comes(stack):
    answer = exchange(stack, raw_post(b"Content-Type: application/json", b"Content-Length: 1000000000000", body=b"{"))

    assert answer.startswith(b"HTTP/1.1 413 ")


@pytest.mark.parametrize(
    "headers",
    [
        [b"Content-Length: -1"],
        [b"Content-Length: many"],
        [b"Content-Length: 5", b"Content-Length: 6"],
        [b"Transfer-Encoding: chunked", b"Content-Length: 2"],
        [b"Transfer-Encoding: nonsense"],
        [b"X: " + b"y" * 200_000],
    ],
)
def test_a_request_that_is_not_http_never_gets_a_500(stack, headers):
    answer = exchange(stack, raw_post(*headers, body=b"0\r\n\r\n"))

    assert answer == b"" or answer.split()[1].startswith((b"2", b"4"))


def test_a_caller_that_leaves_in_the_middle_of_its_body_does_no_harm(stack):
    request = raw_post(b"Content-Type: application/json", b"Content-Length: 1000", body=b'{"input_type"')
    with socket.create_connection(("127.0.0.1", stack.port), timeout=60) as connection:
        connection.sendall(request)


def test_no_payload_stands_in_any_log(stack, http):
    """Last in this file: after all of the above, at the level that says most."""
    http.post("/embeddings", json={"input_type": "text", "inputs": [CANARY]})

    logs = {name: process.log.read_text() for name, process in stack.processes.items()}

    assert set(logs) >= {"api", "worker", "flower"}
    assert '"level": "debug"' in logs["worker"]
    for name, log in logs.items():
        assert CANARY not in log, name
        assert KEY not in log, name
        assert "Traceback" not in log, (
            f"{name}: nothing above is a fault of ours\n{log[log.index('Traceback') - 500 :][:3000]}"
        )
