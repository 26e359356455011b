"""Both generations of morphik-core's client against one running service, with nothing changed but the domain."""

from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
from acceptance.morphik_core import DocumentFailedError, MorphikCore
from acceptance.pictures import as_base64, jpeg, png
from stack import KEY, OTHER_KEY

DOCUMENT = [as_base64(png(60 + 14 * number, 120, number)) for number in range(20)]


def generations(url, keys=(KEY, OTHER_KEY)):
    return MorphikCore.of_may_2025(url, keys[0]), MorphikCore.of_today(f"{url}/npz", keys[1])


def test_both_generations_ingest_and_ask_at_the_same_time(stack):
    old, new = generations(stack.url)

    with ThreadPoolExecutor(4) as callers:
        ingestions = [callers.submit(core.embed_for_ingestion, DOCUMENT) for core in (old, new)]
        queries = [callers.submit(core.embed_for_query, "Who is supplied first?") for core in (old, new)]
        first, second = (ingestion.result() for ingestion in ingestions)
        asked, asked_again = (query.result() for query in queries)

    assert len(first) == len(second) == len(DOCUMENT)
    for one, other in zip(first, second, strict=True):
        assert one.ndim == 2
        assert one.shape[1] == 128
        np.testing.assert_allclose(one, other, rtol=0, atol=1e-5)
        assert np.abs(one).max(axis=1).all(), "no zero rows"
    np.testing.assert_allclose(asked, asked_again, rtol=0, atol=1e-5)
    assert sorted(old.asked) == sorted(new.asked) == [(1, 200), (4, 200), (16, 200)]


def test_a_batch_that_is_too_much_is_halved_until_it_passes(stack):
    """Ten pages of 700 KB pass the limit for one input and, together, not the one for a body."""
    noise = np.random.default_rng(0)
    pages = [_noisy_page(noise) for _ in range(10)]
    assert sum(map(len, pages)) > 6 * 2**20

    for core in generations(stack.url):
        rows = core.embed_for_ingestion(pages)

        assert len(rows) == 10
        assert core.asked == [(10, 413), (5, 200), (5, 200)]


def test_a_single_page_that_is_too_much_is_a_permanent_error(stack):
    for core in generations(stack.url):
        with pytest.raises(DocumentFailedError, match="413"):
            core.embed_for_ingestion([as_base64(bytes(2**20 + 1))])

        assert core.asked == [(1, 413)]


def test_a_wrong_key_is_a_permanent_error(stack):
    for core in generations(stack.url, ("wrong", "wrong")):
        with pytest.raises(DocumentFailedError, match="403"):
            core.embed_for_query("x")


def _noisy_page(noise):
    return as_base64(jpeg(28, 28) + noise.bytes(700 * 2**10))
