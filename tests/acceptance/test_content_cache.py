"""The same page again, on a stack that keeps results by content and on one that does not."""

import re
import time

import numpy as np
import pytest
import redis
from acceptance.pictures import as_base64, png
from stack import OTHER_KEY, Stack, eventually

from shared import keys

PAGE = as_base64(png(seed=2024))


@pytest.fixture(scope="module")
def remembering(redis_program, models_dir, tmp_path_factory):
    """A stack with a cache."""
    del redis_program
    settings = {"COLQUEUE_CACHE_DIR": str(models_dir), "COLQUEUE_BATCH_TOKENS": "4096"}
    with Stack(tmp_path_factory.mktemp("remembering"), COLQUEUE_CACHE_BYTES=str(2**20), **settings) as stack:
        stack.start_worker()
        stack.start_api()
        stack.wait_until_ready()
        yield stack


def embed(http, **options):
    """Return the page's rows: by `/embeddings`, or by a job where there are options."""
    body = {"input_type": "image", "inputs": [PAGE]}
    if not options:
        answer = http.post("/embeddings", json=body)
    else:
        job = http.post("/jobs", json=body | options).json()
        eventually(lambda: http.get(f"/jobs/{job['id']}", params={"wait": 60}).json()["finished_at"])
        answer = http.get(f"/jobs/{job['id']}/result")
    assert answer.status_code == 200, answer.text
    return np.array(answer.json()["embeddings"][0])


def counts(stack):
    """Return the worker's inputs, hits and misses as /metrics has them, said anew."""
    with redis.Redis.from_url(stack.redis.url) as connection, stack.client() as http:
        for _ in range(2):  # the first may have been counted before, and published after we asked
            asked_at = time.time()
            eventually(lambda asked_at=asked_at: connection.zcount(keys.WORKERS, asked_at, "+inf"))
        text = http.get("/metrics").text
    found = dict(re.findall(r"^colqueue_worker_(inputs|cache_hits|cache_misses)_total{.*} (.+)$", text, re.MULTILINE))
    return {name: float(value) for name, value in found.items()}


def test_a_page_that_comes_again_is_not_embedded_again(remembering):
    with remembering.client() as http:
        first, again = embed(http), embed(http)
    np.testing.assert_array_equal(again, first)
    assert counts(remembering) == {"inputs": 1, "cache_hits": 1, "cache_misses": 1}

    with remembering.client() as http, remembering.client(OTHER_KEY) as other:
        embed(http, output_dtype="int8")
        embed(http, pool_factor=2)
        embed(other)
    assert counts(remembering) == {"inputs": 4, "cache_hits": 1, "cache_misses": 4}


def test_by_default_nothing_is_kept_by_content(stack, http):
    before = counts(stack)
    for _ in range(2):
        embed(http)
    assert counts(stack) == {"inputs": before["inputs"] + 2}
