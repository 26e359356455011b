"""Three forms of body, three forms of answer, the same values in all."""

import gzip
import io
import json

import msgpack
import numpy as np
import pytest
from acceptance.pictures import as_base64, jpeg, png
from backports import zstd

JSON, NPZ, MSGPACK = "application/json", "application/x-npz", "application/msgpack"
FILES = [png(100, 140, 1), jpeg(300, 80, 2)]
TEXTS = ["one", "and a longer one"]
INPUTS = {"image": [as_base64(file) for file in FILES], "text": TEXTS}


def read(answer):
    """Return the answer's arrays, whatever its form."""
    assert answer.status_code == 200, answer.text
    media_type = answer.headers["content-type"]
    if media_type == JSON:
        embeddings = answer.json()["embeddings"]
        return [None if rows is None else np.array(rows, np.float32) for rows in embeddings]
    if media_type == NPZ:
        archive = np.load(io.BytesIO(answer.content), allow_pickle=False)
        return [
            archive[name] if (name := f"emb_{index}") in archive else None for index in range(int(archive["count"]))
        ]
    assert media_type == MSGPACK
    return [
        rows and np.frombuffer(rows["data"], rows["dtype"]).reshape(rows["shape"])
        for rows in msgpack.unpackb(answer.content)["embeddings"]
    ]


def finished(http, job):
    while not job["finished_at"]:
        job = http.get(f"/jobs/{job['id']}", params={"wait": 60}).json()
    return job


def assert_same(*answers):
    first, *others = answers
    for other in others:
        assert len(other) == len(first)
        for one, again in zip(first, other, strict=True):
            np.testing.assert_array_equal(one, again)


@pytest.mark.parametrize("path", ["/embeddings", "/npz/embeddings"])
@pytest.mark.parametrize("input_type", ["image", "text"])
@pytest.mark.parametrize("accept", [JSON, NPZ, MSGPACK])
def test_an_answer_has_the_form_it_was_asked_for(http, path, input_type, accept):
    answer = http.post(path, json={"input_type": input_type, "inputs": INPUTS[input_type]}, headers={"Accept": accept})

    assert answer.headers["content-type"] == accept
    rows = read(answer)
    assert len(rows) == 2
    assert all(one.dtype == np.float32 and one.shape[1] == 128 for one in rows)


@pytest.mark.parametrize(("path", "form"), [("/embeddings", JSON), ("/npz/embeddings", NPZ)])
@pytest.mark.parametrize("accept", ["*/*", "text/html", "", "application/*;q=0.1", "nonsense", ";;q=,,"])
def test_a_caller_that_asks_for_nothing_we_have_gets_the_endpoints_own_form(http, path, form, accept):
    answer = http.post(path, json={"input_type": "text", "inputs": ["one"]}, headers={"Accept": accept})

    assert (answer.status_code, answer.headers["content-type"]) == (200, form)


@pytest.mark.parametrize(
    ("accept", "form"),
    [
        (f"text/html, {MSGPACK}, */*", MSGPACK),
        (f"{JSON};q=0.5, {NPZ}", NPZ),
        (f"{JSON};q=0.5, {NPZ};q=0.4", JSON),
        ("APPLICATION/X-NPZ", NPZ),
        ("application/x-msgpack", MSGPACK),
    ],
)
def test_the_best_known_form_of_a_list_is_taken(http, accept, form):
    answer = http.post("/embeddings", json={"input_type": "text", "inputs": ["one"]}, headers={"Accept": accept})

    assert (answer.status_code, answer.headers["content-type"]) == (200, form)


@pytest.mark.parametrize("accept", [JSON, NPZ, MSGPACK])
@pytest.mark.parametrize("path", ["/embeddings", "/npz/embeddings"])
def test_no_inputs_give_an_empty_answer_in_every_form(http, path, accept):
    assert read(http.post(path, json={"inputs": []}, headers={"Accept": accept})) == []


@pytest.mark.parametrize("path", ["/embeddings", "/npz/embeddings"])
def test_an_error_is_json_whatever_was_asked_for(http, path):
    answer = http.post(path, json={"input_type": "x", "inputs": ["x"]}, headers={"Accept": NPZ})

    assert (answer.status_code, answer.headers["content-type"]) == (400, JSON)
    assert answer.json() == {"error": "Invalid input_type", "code": "invalid_input_type"}


@pytest.mark.parametrize("input_type", ["image", "text"])
def test_the_result_of_a_job_has_equal_values_in_every_form(http, input_type):
    submitted = http.post("/jobs", json={"input_type": input_type, "inputs": INPUTS[input_type]})
    finished(http, submitted.json())

    answers = {
        form: http.get(f"{submitted.headers['location']}/result", headers={"Accept": form})
        for form in (JSON, NPZ, MSGPACK)
    }

    assert [answer.headers["content-type"] for answer in answers.values()] == list(answers)
    assert_same(*map(read, answers.values()))
    assert answers[JSON].json()["errors"] == []
    assert msgpack.unpackb(answers[MSGPACK].content)["errors"] == []


def test_a_partial_result_says_the_same_in_every_form(http):
    inputs = [INPUTS["image"][0], as_base64(b"no image"), INPUTS["image"][1]]
    submitted = http.post("/jobs", json={"input_type": "image", "inputs": inputs})
    finished(http, submitted.json())

    answers = [
        http.get(f"{submitted.headers['location']}/result", headers={"Accept": form}) for form in (JSON, NPZ, MSGPACK)
    ]

    assert [[rows is None for rows in read(answer)] for answer in answers] == [[False, True, False]] * 3
    from_json, npz, packed = answers
    expected = from_json.json()["errors"]
    assert [(error["index"], error["code"]) for error in expected] == [(1, "image_invalid")]
    assert json.loads(str(np.load(io.BytesIO(npz.content))["errors"])) == expected
    assert msgpack.unpackb(packed.content)["errors"] == expected


def bodies(input_type):
    """Return the same request in every form, as arguments of `post`."""
    raw = FILES if input_type == "image" else TEXTS
    if input_type == "image":
        files = [("inputs", (f"{index}.img", file)) for index, file in enumerate(raw)]
        form = {"data": {"input_type": "image"}, "files": files}
    else:
        form = {"files": [("input_type", (None, "text")), *(("inputs", (None, text)) for text in raw)]}
    fields = {"input_type": input_type, "inputs": raw}
    coded = {"input_type": input_type, "inputs": INPUTS[input_type]}
    return {
        "JSON": {"json": coded},
        "JSON without a content type": {"content": json.dumps(coded)},
        "JSON with a charset": {
            "content": json.dumps(coded),
            "headers": {"Content-Type": "application/json; charset=utf-8"},
        },
        "msgpack": {"content": msgpack.packb(fields), "headers": {"Content-Type": MSGPACK}},
        "msgpack of base64": {"content": msgpack.packb(coded), "headers": {"Content-Type": "application/x-msgpack"}},
        "multipart": form,
    }


@pytest.mark.parametrize("input_type", ["image", "text"])
@pytest.mark.parametrize("path", ["/embeddings", "/npz/embeddings"])
def test_equal_requests_in_every_form_get_equal_answers(http, path, input_type):
    answers = [read(http.post(path, **body)) for body in bodies(input_type).values()]

    assert len(answers[0]) == 2
    first, *others = answers
    for other in others:
        for one, again in zip(first, other, strict=True):
            np.testing.assert_allclose(one, again, rtol=0, atol=1e-5)


@pytest.mark.parametrize("form", bodies("image"))
def test_a_job_is_taken_in_every_form(http, form):
    answer = http.post("/jobs", **bodies("image")[form])

    assert answer.status_code == 202
    job = finished(http, answer.json())
    assert (job["status"], job["completed"], job["total"]) == ("completed", 2, 2)


@pytest.mark.parametrize(("encoding", "pack"), [("gzip", gzip.compress), ("zstd", zstd.compress)])
@pytest.mark.parametrize("form", ["json", "msgpack", "multipart"])
def test_a_compressed_body_is_read_in_every_form(http, encoding, pack, form):
    bodies = {
        "json": http.build_request("POST", "/embeddings", json={"input_type": "image", "inputs": [as_base64(png())]}),
        "msgpack": http.build_request(
            "POST",
            "/embeddings",
            content=msgpack.packb({"input_type": "image", "inputs": [png()]}),
            headers={"Content-Type": "application/msgpack"},
        ),
        "multipart": http.build_request(
            "POST", "/embeddings", data={"input_type": "image"}, files=[("inputs", ("page.png", png()))]
        ),
    }
    content = pack(bodies[form].read())
    headers = {"Content-Type": bodies[form].headers["Content-Type"], "Content-Encoding": encoding}

    answer = http.post("/embeddings", content=content, headers=headers)

    assert (answer.status_code, len(answer.json()["embeddings"])) == (200, 1)


def test_an_unknown_encoding_is_415_and_a_bomb_413_and_neither_without_a_key(stack, http):
    bomb = gzip.compress(bytes(50 * 2**20))
    headers = {"Content-Type": "application/json"}

    unknown = http.post("/embeddings", content=b"{}", headers=headers | {"Content-Encoding": "br"})
    large = http.post("/embeddings", content=bomb, headers=headers | {"Content-Encoding": "gzip"})

    assert (unknown.status_code, unknown.json()["code"]) == (415, "unsupported_encoding")
    assert unknown.headers["accept-encoding"] == "gzip, zstd"
    assert (large.status_code, large.json()["code"]) == (413, "too_large")
    with stack.client(key=None) as nobody:
        for encoding in ("br", "gzip"):
            assert nobody.post("/embeddings", content=bomb, headers={"Content-Encoding": encoding}).status_code == 401
