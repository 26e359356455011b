import base64
import io
import json

import httpx2
import numpy as np
import pytest

from colqueue_client.embeddings import EmbeddingsClient, Readiness
from colqueue_client.errors import ServiceError, UnreachableError


def client(answer):
    return EmbeddingsClient(httpx2.Client(base_url="http://service", transport=httpx2.MockTransport(answer)))


def npz(*embeddings, count=None):
    buffer = io.BytesIO()
    arrays = {f"emb_{index}": embedding for index, embedding in enumerate(embeddings)}
    np.savez(buffer, count=len(embeddings) if count is None else count, input_type="image", **arrays)
    return httpx2.Response(200, content=buffer.getvalue())


def test_pages_travel_as_base64_and_come_back_as_float32_in_order():
    seen = []

    def answer(request):
        seen.append(request)
        return npz(np.full((3, 128), 0.5, np.float16), np.full((2, 128), 0.25, np.float32))

    first, second = client(answer).embed_pages([b"one", b"two"])

    assert first.dtype == second.dtype == np.float32
    assert (first.shape, second.shape) == ((3, 128), (2, 128))
    assert (first[0, 0], second[0, 0]) == (0.5, 0.25)
    assert (seen[0].method, seen[0].url.path) == ("POST", "/embeddings")
    assert seen[0].headers["accept"] == "application/x-npz"
    body = json.loads(seen[0].content)
    assert body["input_type"] == "image"
    assert [base64.b64decode(image) for image in body["inputs"]] == [b"one", b"two"]


def test_queries_travel_as_text():
    seen = []

    def answer(request):
        seen.append(json.loads(request.content))
        return npz(np.zeros((4, 128), np.float32))

    client(answer).embed_queries(["where?"])

    assert seen == [{"input_type": "text", "inputs": ["where?"]}]


def test_a_refusal_carries_the_services_status_code_and_sentence():
    def answer(_):
        return httpx2.Response(400, json={"error": "Input processing error: input 1", "code": "image_invalid"})

    with pytest.raises(ServiceError) as caught:
        client(answer).embed_pages([b"x"])

    error = caught.value
    assert (error.status, error.code, error.message) == (400, "image_invalid", "Input processing error: input 1")
    assert str(error) == "Input processing error: input 1 (400 image_invalid)"


def test_a_refusal_without_our_error_body_still_says_its_status():
    with pytest.raises(ServiceError, match="HTTP 502"):
        client(lambda _: httpx2.Response(502, text="<html>")).embed_queries(["x"])


@pytest.mark.parametrize(
    "answer",
    [
        httpx2.Response(200, content=b"not an archive"),
        httpx2.Response(200, content=b"PK\x03\x04cut off"),
        httpx2.Response(200, content=b""),
        npz(np.zeros((1, 128), np.float32), count=2),
        npz(),
    ],
)
def test_an_answer_that_is_not_the_npz_asked_for_is_no_answer(answer):
    with pytest.raises(UnreachableError):
        client(lambda _: answer).embed_queries(["x"])


def test_a_service_that_is_away_is_unreachable():
    def answer(request):
        raise httpx2.ConnectError("refused", request=request)

    with pytest.raises(UnreachableError, match="http://service"):
        client(answer).readiness()


def test_readiness_gives_the_reason_when_not():
    body = {"status": "unavailable", "reason": "the model is loading"}

    assert client(lambda _: httpx2.Response(503, json=body)).readiness() == Readiness(
        ready=False, reason="the model is loading"
    )
    assert client(lambda _: httpx2.Response(200, json={"status": "ready"})).readiness().ready
