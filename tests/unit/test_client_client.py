"""Both clients over httpx2's own transport double: what is said of one holds of the other."""

import asyncio
import inspect
from io import BytesIO

import httpx2
import msgpack
import numpy as np
import pytest
from PIL import Image

from colqueue_client import AsyncClient, Client, Retry, ServiceError, UnreachableError
from colqueue_client.connections import DEFAULT_URL


class Awaited:
    """An AsyncClient that can be called like a Client."""

    def __init__(self, *arguments, **options):
        self._client = AsyncClient(*arguments, **options)

    def __getattr__(self, name):
        call = getattr(self._client, name)

        def run(*arguments, **options):
            async def collected():
                found = call(*arguments, **options)
                return [one async for one in found] if inspect.isasyncgen(found) else await found

            return asyncio.run(collected())

        return run if callable(call) else call


@pytest.fixture(params=[Client, Awaited], ids=["sync", "async"])
def client_of(request):
    def make(answer, **options):
        return request.param("http://service/", "secret", transport=httpx2.MockTransport(answer), **options)

    return make


def one_row(value):
    rows = np.full((1, 128), value, np.float32)
    body = {"embeddings": [{"dtype": "float32", "shape": [1, 128], "data": rows.tobytes()}]}
    return httpx2.Response(200, content=msgpack.packb(body))


def test_a_call_brings_the_key_and_the_address(client_of, tmp_path):
    seen = []
    (tmp_path / "page.png").write_bytes(b"page")

    def answer(request):
        seen.append(request)
        return one_row(3)

    (rows,) = client_of(answer).embed_images([tmp_path / "page.png"])

    assert rows[0, 0] == 3
    assert (str(seen[0].url), seen[0].headers["authorization"]) == ("http://service/embeddings", "Bearer secret")
    assert msgpack.unpackb(seen[0].content)["inputs"] == [b"page"]


def test_it_waits_as_asked_and_tries_again(client_of):
    answers = [httpx2.Response(503, headers={"Retry-After": "0"}), one_row(5)]

    (rows,) = client_of(lambda _: answers.pop(0)).embed_queries(["x"])

    assert rows[0, 0] == 5


def test_a_service_that_is_away_is_unreachable(client_of):
    def answer(request):
        raise httpx2.ConnectError("refused", request=request)

    with pytest.raises(UnreachableError, match="http://service: refused"):
        client_of(answer, retry=Retry(for_s=0)).embed_queries(["x"])


def test_a_refusal_is_raised(client_of):
    refusal = httpx2.Response(403, json={"error": "Forbidden", "code": "forbidden"})

    with pytest.raises(ServiceError) as caught:
        client_of(lambda _: refusal).jobs()

    assert str(caught.value) == "Forbidden (403 forbidden)"


def test_results_are_iterated(client_of):
    def answer(request):
        if request.method == "POST":
            return httpx2.Response(202, json=JOB)
        return one_row(4) if request.url.path.endswith("/result") else httpx2.Response(200, json=JOB)

    outcomes = list(client_of(answer).iter_results(images=[b"a", b"b", b"c"], job_size=1, in_flight=1))

    assert [(outcome.index, outcome.embedding[0, 0]) for outcome in outcomes] == [(0, 4), (1, 4), (2, 4)]


JOB = {
    "id": "j1",
    "status": "completed",
    "input_type": "image",
    "lane": "bulk",
    "total": 1,
    "completed": 1,
    "failed": 0,
    "created_at": "2026-01-02T03:04:05Z",
    "started_at": None,
    "finished_at": None,
    "expires_at": "2026-01-03T03:04:05Z",
}


def test_submit_wait_result_and_cancel_go_where_they_should(client_of):
    seen = []

    def answer(request):
        seen.append(f"{request.method} {request.url.path}")
        if request.url.path.endswith("/result"):
            return one_row(1)
        return httpx2.Response(202 if request.method == "POST" else 200, json=JOB)

    client = client_of(answer)
    job = client.submit(texts=["x"])
    client.result(client.wait(job))
    client.cancel(job.id)
    client.release(job)

    assert seen == ["POST /jobs", "GET /jobs/j1", "GET /jobs/j1/result", "DELETE /jobs/j1", "DELETE /jobs/j1"]


def test_one_text_or_one_image_in_place_of_a_list_is_refused_before_anything_is_sent(client_of):
    client = client_of(lambda request: pytest.fail(f"{request.url} was asked"))

    for call in (
        client.embed_queries,
        lambda one: client.submit(texts=one),
        lambda one: client.iter_results(texts=one),
    ):
        with pytest.raises(TypeError, match="list of texts"):
            list(call("hello"))
    for call in (
        client.embed_images,
        lambda one: client.submit(images=one),
        lambda one: client.submit_split(images=one, idempotency_key="key"),
        lambda one: client.iter_results(images=one),
    ):
        with pytest.raises(TypeError, match="list of images"):
            list(call(b"an image"))


def test_an_image_of_pillows_is_sent_as_a_file(client_of):
    seen = []

    def answer(request):
        seen.append(msgpack.unpackb(request.content)["inputs"])
        return one_row(1)

    client_of(answer).embed_images([Image.new("L", (3, 2), 7)])

    assert Image.open(BytesIO(seen[0][0])).getpixel((0, 0)) == 7


def test_images_and_texts_are_not_mixed(client_of):
    with pytest.raises(TypeError, match="one of them"):
        client_of(lambda _: one_row(1)).submit(images=[b"x"], texts=["x"])


def test_address_and_key_come_from_the_environment(monkeypatch):
    monkeypatch.delenv("COLQUEUE_URL", raising=False)
    monkeypatch.delenv("SERVICE_API_KEY", raising=False)
    with Client() as client:
        assert (client.url, client.options["headers"]) == (DEFAULT_URL, {})
    monkeypatch.setenv("COLQUEUE_URL", "https://elsewhere/")
    monkeypatch.setenv("SERVICE_API_KEY", "first , second")
    with Client() as client:
        assert (client.url, client.options["headers"]) == ("https://elsewhere", {"Authorization": "Bearer first"})
        assert "first" not in repr(client)


def test_an_address_without_a_scheme_is_refused_at_once():
    with pytest.raises(UnreachableError, match="begin with http"):
        Client("service:8000")


def test_both_clients_have_the_same_calls():
    def public(cls):
        names = {name for name in vars(cls) if not name.startswith("_")}
        return {name: list(inspect.signature(getattr(cls, name)).parameters) for name in names}

    assert public(Client) == public(AsyncClient)


@pytest.mark.parametrize(
    ("url", "words"),
    [
        ("service:8000", "does not begin with http"),
        ("http://", "names no host"),
        ("http://service:port", "is not a URL"),
        ("http://[::1", "is not a URL"),
    ],
)
def test_an_address_that_is_none_is_refused_with_a_sentence(url, words):
    with pytest.raises(UnreachableError, match=words):
        Client(url, "secret")


@pytest.mark.parametrize("key", ["schl\u00fcssel", "two\nlines"])
def test_a_key_that_cannot_be_sent_is_refused_with_a_sentence(key):
    with pytest.raises(UnreachableError, match="characters that cannot be sent"):
        Client("http://service", key)


def test_a_password_in_the_address_is_sent_and_never_shown():
    seen = []

    def answer(request):
        seen.append(request.url.userinfo)
        return httpx2.Response(404, html="<html>")

    client = Client("http://user:secret@service", "key", retry=Retry(for_s=0), transport=httpx2.MockTransport(answer))
    with pytest.raises(UnreachableError, match="http://service/metrics answered 404") as caught:
        client.metrics()

    assert seen == [b"user:secret"]
    assert "secret" not in f"{caught.value} {client!r}"
