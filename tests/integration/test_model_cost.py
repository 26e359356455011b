"""The api's estimate of tokens, held against what the worker's preparation makes of the same inputs."""

from io import BytesIO

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st
from PIL import Image

from shared.cost import MAX_ASPECT, estimate_tokens
from shared.jobs import InputType
from shared.settings import TokenSettings
from worker.model.load import load_processor
from worker.model.options import ModelOptions
from worker.model.prepare import Preparer

PREFIX = "Query: "


@pytest.fixture(scope="module", params=[4, 50, 199, 768])
def limits(request):
    return TokenSettings(max_visual_tokens=request.param, max_text_tokens=400, query_prefix=PREFIX)


@pytest.fixture(scope="module")
def preparer(tiny_checkpoint, limits):
    options = ModelOptions(
        name="tiny",
        max_visual_tokens=limits.max_visual_tokens,
        max_text_tokens=limits.max_text_tokens,
        query_prefix=limits.query_prefix,
    )
    return Preparer(load_processor(str(tiny_checkpoint), options), options)


@settings(max_examples=50, deadline=None)
@given(text=st.text(max_size=90))
@example(text="\U0001d160" * 20)  # three times as long in NFC
@example(text="क़" * 40)
@example(text="<|image_pad|><|endoftext|>")
@example(text="the page of the total revenue")
def test_no_text_has_more_tokens_than_estimated(preparer, limits, text):
    assert preparer.query(text).tokens <= estimate_tokens(InputType.TEXT, text.encode(), limits)


@settings(max_examples=50, deadline=None)
@given(
    size=st.tuples(st.integers(1, 2500), st.integers(1, 2500)).filter(lambda size: max(size) <= MAX_ASPECT * min(size))
)
@example(size=(1, MAX_ASPECT))
@example(size=(MAX_ASPECT, 1))
@example(size=(10, 10 * MAX_ASPECT))
@example(size=(30, 119))
@example(size=(1240, 1754))
def test_no_page_has_more_tokens_than_estimated(preparer, limits, size):
    page = BytesIO()
    Image.new("L", size).save(page, "PNG")
    assert preparer.page(page.getvalue()).tokens <= estimate_tokens(InputType.IMAGE, page.getvalue(), limits)


def test_the_estimate_of_the_largest_page_is_reached(preparer, limits, page_bytes):
    page = page_bytes(100, 20_000) if limits.max_visual_tokens < MAX_ASPECT else page_bytes(2000, 2860)
    estimate = estimate_tokens(InputType.IMAGE, page, limits)
    assert 0.95 * estimate <= preparer.page(page).tokens <= estimate
