"""Our preparation, input by input, held against the stock processor's."""

from concurrent.futures import ThreadPoolExecutor
from io import BytesIO

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from shared.errors import ImageInvalidError, ImageTooLargeError, TextInvalidError, TextTooLongError
from worker.model.libraries import ColQwen2_5_Processor
from worker.model.load import load_processor
from worker.model.options import ModelOptions
from worker.model.pixels import Patchifier
from worker.model.prepare import Preparer

SPECIAL = ["<|image_pad|>", "a <|endoftext|> b", "<|im_start|>user<|vision_start|>", "<|video_pad|>" * 3]


@pytest.fixture(scope="module")
def preparer(tiny_checkpoint):
    options = ModelOptions(name="tiny", max_text_tokens=300, max_image_pixels=4_000_000)
    return Preparer(load_processor(str(tiny_checkpoint), options), options)


@pytest.fixture(scope="module")
def stock(tiny_checkpoint):
    processor = ColQwen2_5_Processor.from_pretrained(tiny_checkpoint, max_num_visual_tokens=768)
    # In the place of the keyword's attribute, about which transformers warns with every call.
    del processor.image_processor.max_pixels
    return processor


@pytest.mark.parametrize(
    "size", [(1240, 1754), (1754, 1240), (640, 480), (28, 28), (1, 1), (3, 3), (1, 150), (2000, 10), (56, 56)]
)
@pytest.mark.parametrize("image_format", ["PNG", "JPEG"])
def test_a_page_is_prepared_to_the_bit_as_the_stock_processor_does(preparer, stock, page_bytes, size, image_format):
    data = page_bytes(*size, image_format=image_format)
    page = preparer.page(data)
    expected = stock.process_images([Image.open(BytesIO(data))])
    assert torch.equal(page.features.ids, expected["input_ids"][0])
    patchifier = Patchifier(stock.image_processor, torch.device("cpu"))
    assert [1, *patchifier.grid(page.features.pixels)] == expected["image_grid_thw"][0].tolist()
    assert torch.equal(patchifier.stock_values(page.features.pixels), expected["pixel_values"][0])
    assert page.tokens == expected["input_ids"].shape[1]


@settings(max_examples=60, deadline=None)
@given(
    size=st.tuples(st.integers(1, 1200), st.integers(1, 1200)).filter(lambda size: max(size) <= 200 * min(size)),
    form=st.sampled_from(["PNG", "PNG-L", "PNG-P", "JPEG", "JPEG-L", "JPEG-CMYK", "WEBP", "TIFF", "BMP", "GIF-P"]),
)
def test_a_page_of_any_size_and_format_is_prepared_to_the_bit(preparer, stock, size, form):
    image_format, _, mode = form.partition("-")
    noise = np.random.default_rng(size).integers(0, 256, (*size, 3), np.uint8)
    data = BytesIO()
    Image.fromarray(noise).convert(mode or "RGB").save(data, image_format)
    expected = stock.process_images([Image.open(data)])
    page = preparer.page(data.getvalue()).features
    assert torch.equal(page.ids, expected["input_ids"][0])
    values = Patchifier(stock.image_processor, torch.device("cpu")).stock_values(page.pixels)
    assert torch.equal(values, expected["pixel_values"][0])


@pytest.mark.parametrize(
    "text", ["", " ", "What is the total revenue?", "  two  spaces \n", "Größe 总收入 🙂", "the page <|image", "\x00"]
)
def test_an_ordinary_query_has_the_ids_of_the_stock_processor(preparer, stock, text):
    query = preparer.query(text)
    assert torch.equal(query.features.ids, stock.process_queries([text])["input_ids"][0])
    assert query.tokens == len(query.features.ids)


def test_an_empty_query_is_its_ten_augmentation_tokens(preparer, stock):
    augmentation = stock.tokenizer.convert_tokens_to_ids(stock.query_augmentation_token)
    assert preparer.query("").features.ids.tolist() == [augmentation] * 10


@pytest.mark.parametrize("text", SPECIAL)
def test_special_tokens_in_a_text_are_ordinary_characters(preparer, stock, text):
    ids = preparer.query(text).features.ids.tolist()
    assert not set(ids[:-10]) & set(stock.tokenizer.all_special_ids)
    assert stock.tokenizer.decode(ids[:-10]) == text


@pytest.mark.parametrize("text", ["\ud800", "a \udfff b", None, 7])
def test_what_is_no_text_is_refused(preparer, text):
    with pytest.raises(TextInvalidError):
        preparer.query(text)


def test_a_query_may_have_exactly_the_most_tokens(preparer):
    assert preparer.query("x" * 290).tokens == 300
    with pytest.raises(TextTooLongError, match="300"):
        preparer.query("x" * 291)


def test_an_enormous_text_is_refused_unread(preparer, monkeypatch):
    monkeypatch.setattr(preparer, "_plain_tokenizer", None)
    with pytest.raises(TextTooLongError):
        preparer.query("x" * 5_000_000)


def test_a_page_within_the_limit_of_the_options_is_read_and_one_beyond_is_not(preparer, page_bytes):
    preparer.page(page_bytes(2000, 2000))
    with pytest.raises(ImageTooLargeError):
        preparer.page(page_bytes(2001, 2000))


def test_no_image_is_refused_by_its_name(preparer):
    with pytest.raises(ImageInvalidError, match="PDF"):
        preparer.page(b"%PDF-1.4")


def test_pages_and_queries_prepared_by_many_threads_are_what_one_thread_makes_of_them(preparer, page_bytes):
    jobs = [(preparer.page, page_bytes(60 + 13 * i, 300 - 11 * i)) for i in range(12)]
    jobs += [(preparer.query, text) for text in [*SPECIAL, "the page", "invoice " * 20]]
    jobs *= 4
    serial = [prepare(data) for prepare, data in jobs]
    with ThreadPoolExecutor(8) as pool:
        threaded = list(pool.map(lambda job: job[0](job[1]), jobs))
    for one, other in zip(serial, threaded, strict=True):
        assert torch.equal(one.features.ids, other.features.ids)
        assert (one.features.pixels is None) == (other.features.pixels is None)
        assert one.features.pixels is None or torch.equal(one.features.pixels, other.features.pixels)


def test_a_preparing_thread_starts_no_team_of_its_own(preparer, page_bytes):
    def threads_after_a_page():
        torch.set_num_threads(2)
        preparer.page(page_bytes(60, 60))
        return torch.get_num_threads()

    before = torch.get_num_threads()
    try:
        with ThreadPoolExecutor(1) as pool:
            assert pool.submit(threads_after_a_page).result() == 1
    finally:
        torch.set_num_threads(before)
