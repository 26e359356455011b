"""The Python client against the real stack: its own example, and what it says of failures."""

import asyncio
import doctest

import numpy as np
import pytest
from acceptance.pictures import A4, jpeg, png
from stack import KEY

import colqueue_client
from colqueue_client import AsyncClient, Client, Options, ServiceError
from colqueue_client.pages import render_pages
from colqueue_client.sample import SAMPLE_PDF


@pytest.fixture
def client(stack):
    with Client(stack.url, KEY) as client:
        yield client


def test_the_example_in_the_docstring_runs(stack, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("COLQUEUE_URL", stack.url)
    monkeypatch.setenv("SERVICE_API_KEY", KEY)
    (tmp_path / "page.png").write_bytes(next(render_pages(SAMPLE_PDF)))

    outcome = doctest.testmod(colqueue_client)

    assert outcome.attempted > 3
    assert outcome.failed == 0


def test_more_pages_than_the_service_takes_at_once_come_back_in_order(client, http):
    """The session's stack takes 6 MB and 64 inputs at once; these pages are 1 MB each."""
    pages = [png(84, 112, seed=seed) + bytes(900_000) for seed in range(20)]
    assert http.post("/embeddings", content=b"x" * (7 * 2**20)).status_code == 413

    found = client.embed_images(pages)

    assert len(found) == 20
    for number in (0, 7, 19):
        (alone,) = client.embed_images([png(84, 112, seed=number)])
        np.testing.assert_allclose(found[number], alone, rtol=0, atol=1e-5)


def test_a_bad_page_far_behind_is_named_by_its_index(client):
    with pytest.raises(ServiceError) as caught:
        client.embed_images([png()] * 21 + [b"no image"])

    assert (caught.value.status, caught.value.code, caught.value.index) == (400, "image_invalid", 21)


def test_jobs_and_streams_agree_in_every_form(stack, client):
    pages = [jpeg(84, 112, seed=1), b"no image", png(112, 84, seed=2)]
    result = client.result(client.wait(client.submit(images=pages, options=Options(output_dtype="float16"))))
    outcomes = list(client.iter_results(images=pages, job_size=2, options=Options(output_dtype="float16")))

    async def collected():
        async with AsyncClient(stack.url, KEY) as asynchronous:
            return [outcome async for outcome in asynchronous.iter_results(images=pages, job_size=1)]

    assert [failure.index for failure in result.failures] == [1]
    for other in (outcomes, asyncio.run(collected())):
        assert [outcome.failure and outcome.failure.code for outcome in other] == [None, "image_invalid", None]
        for index in (0, 2):
            np.testing.assert_allclose(other[index].embedding, result.embeddings[index], rtol=0, atol=1e-3)
    assert result.embeddings[0].dtype == np.float16


def test_an_idempotency_key_sent_again_is_the_same_job(client):
    first, second = (client.submit(texts=["once"], idempotency_key="client-key") for _ in range(2))

    assert first.id == second.id
    assert client.cancel(first).id == first.id


def test_a_page_over_the_limit_is_one_failure_of_many(client):
    """The session's stack takes images of 1 MB."""
    pages = [png(), png() + bytes(2**20), jpeg(*A4)]

    outcomes = list(client.iter_results(images=pages))

    assert [outcome.failure and outcome.failure.code for outcome in outcomes] == [None, "too_large", None]
