"""The Modal contract, row by row (contracts.md, section 1)."""

import asyncio

import httpx2
import pytest
from acceptance.pictures import as_base64, png
from stack import KEY, OTHER_KEY, THIRD_KEY, Stack

from api.app import create_app
from api.settings import ApiSettings
from shared.settings import StoreSettings

TEXT = {"input_type": "text", "inputs": ["who is first?"]}
PAGE = as_base64(png())


def post(stack: Stack, body, authorization=f"Bearer {KEY}", url=None):
    headers = {} if authorization is None else {"Authorization": authorization}
    with stack.client(key=None, url=url) as client:
        return client.post("/embeddings", json=body, headers=headers)


@pytest.mark.parametrize("input_type", ["image", "text"])
def test_embeddings_come_back_in_order_with_128_numbers_a_row(http, input_type):
    inputs = [as_base64(png(seed=1)), "data:image/png;base64," + as_base64(png(300, 90, seed=2))]
    if input_type == "text":
        inputs = ["one", "a much longer question than the first one"]

    answer = http.post("/embeddings", json={"input_type": input_type, "inputs": inputs})

    assert answer.status_code == 200
    assert answer.headers["content-type"] == "application/json"
    body = answer.json()
    assert list(body) == ["embeddings"]
    first, second = body["embeddings"]
    assert len(first) < len(second)
    assert {len(row) for row in first + second} == {128}
    assert all(isinstance(number, float) for row in first + second for number in row)


@pytest.mark.parametrize(
    ("authorization", "status", "error"),
    [
        (None, 401, "Unauthorized"),
        ("", 401, "Unauthorized"),
        (f"Basic {KEY}", 403, "Forbidden"),
        (KEY, 403, "Forbidden"),
        ("Bearer", 403, "Forbidden"),
        ("Bearer wrong", 403, "Forbidden"),
        (f"Bearer {KEY}x", 403, "Forbidden"),
        (f"Bearer {KEY[:-1]}", 403, "Forbidden"),
        (f"Bearer {KEY},{OTHER_KEY}", 403, "Forbidden"),
        ("Bearer ,", 403, "Forbidden"),
    ],
)
def test_a_caller_without_the_key_is_refused(stack, authorization, status, error):
    answer = post(stack, TEXT, authorization)

    assert (answer.status_code, answer.json()["error"]) == (status, error)


def test_a_refused_caller_is_refused_before_its_body_is_read(stack):
    with stack.client(key="wrong") as client:
        answer = client.post("/embeddings", content=b"\xff not json")

    assert answer.status_code == 403


@pytest.mark.parametrize("key", [KEY, OTHER_KEY, THIRD_KEY])
def test_each_of_several_keys_opens(stack, key):
    assert post(stack, TEXT, f"Bearer {key}").status_code == 200


@pytest.mark.parametrize("authorization", [None, "Bearer", f"Bearer {KEY}"])
def test_without_a_configured_key_nobody_is_let_in(stack, keyless_api, authorization):
    headers = {} if authorization is None else {"Authorization": authorization}
    with stack.client(key=None, url=keyless_api) as client:
        answers = [
            client.request(method, path, headers=headers)
            for method, path in [
                ("POST", "/embeddings"),
                ("POST", "/npz/embeddings"),
                ("POST", "/jobs"),
                ("GET", "/jobs"),
                ("GET", "/jobs/some"),
                ("GET", "/jobs/some/result"),
                ("GET", "/jobs/some/events"),
                ("DELETE", "/jobs/some"),
                ("GET", "/metrics"),
            ]
        ]

    assert {(answer.status_code, answer.json()["error"]) for answer in answers} == {(401, "Unauthorized")}


@pytest.fixture(scope="module")
def keyless_api(stack):
    """A second api on the same Redis that was given no key."""
    yield stack.start_api("keyless", SERVICE_API_KEY="")
    stack.stop("keyless")


@pytest.mark.parametrize(
    "body",
    [
        {"input_type": "image", "inputs": []},
        {"input_type": "text"},
        {"input_type": "nonsense", "inputs": []},
        {"inputs": []},
        {},
    ],
)
def test_no_inputs_give_no_embeddings_whatever_the_input_type_says(http, body):
    answer = http.post("/embeddings", json=body)

    assert (answer.status_code, answer.json()) == (200, {"embeddings": []})


@pytest.mark.parametrize("input_type", ["video", "IMAGE", "", None, 1, ["text"], {"text": 1}])
def test_an_unknown_input_type_is_refused(http, input_type):
    answer = http.post("/embeddings", json={"input_type": input_type, "inputs": ["x"]})

    assert (answer.status_code, answer.json()["error"]) == (400, "Invalid input_type")


def test_a_missing_input_type_is_refused(http):
    answer = http.post("/embeddings", json={"inputs": ["x"]})

    assert (answer.status_code, answer.json()["error"]) == (400, "Invalid input_type")


@pytest.mark.parametrize("bad", [1, 1.5, None, True, ["x"], {"text": "x"}])
def test_a_text_that_is_no_string_is_refused(http, bad):
    answer = http.post("/embeddings", json={"input_type": "text", "inputs": ["fine", bad]})

    assert answer.status_code == 400
    assert answer.json() == {"error": "Invalid text inputs", "code": "invalid_text_inputs", "index": 1}


@pytest.mark.parametrize(
    "bad",
    [
        as_base64(b"this is no image"),
        as_base64(png()[:200]),
        "",
        "not base64!",
        "data:image/png;base64",
        "data:image/png," + PAGE,
        "data:image/png;base64,!!!",
        7,
        None,
    ],
    ids=[
        "no image",
        "truncated",
        "empty",
        "no base64",
        "no comma",
        "not ;base64",
        "bad base64 in URI",
        "number",
        "null",
    ],
)
def test_an_image_that_cannot_be_decoded_is_refused_with_its_index(http, bad):
    answer = http.post("/embeddings", json={"input_type": "image", "inputs": [PAGE, bad, PAGE]})

    assert answer.status_code == 400
    body = answer.json()
    assert body["error"].startswith("Input processing error: ")
    assert (body["code"], body["index"]) == ("image_invalid", 1)


def test_anything_unexpected_is_an_internal_server_error():
    """Here: the app without what its start gives it. No fault of Redis and no input leads here."""
    app = create_app(ApiSettings(_env_file=None, SERVICE_API_KEY=KEY), StoreSettings(_env_file=None))
    app.state.service = None

    async def asked():
        transport = httpx2.ASGITransport(app, raise_app_exceptions=False)
        async with httpx2.AsyncClient(transport=transport, base_url="http://api") as client:
            return await client.post("/embeddings", json=TEXT, headers={"Authorization": f"Bearer {KEY}"})

    answer = asyncio.run(asked())
    assert answer.status_code == 500
    assert answer.json() == {"error": "Internal server error during embedding", "code": "internal_error"}
