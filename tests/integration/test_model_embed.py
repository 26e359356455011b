"""The tiny checkpoint behind our model seam, held against colpali-engine's own classes on the same folder."""

import shutil
import weakref
from io import BytesIO

import numpy as np
import pytest
import torch
from PIL import Image
from structlog.testing import capture_logs

from shared.errors import DeviceMemoryError, ModelError
from worker.model.colqwen import load
from worker.model.libraries import ColQwen2_5, ColQwen2_5_Processor
from worker.model.options import ModelOptions
from worker.model.seam import ModelLostError

TOLERANCE = 1e-5
SIZES = [(1240, 1754), (300, 200), (640, 480), (40, 900), (17, 23)]
QUERIES = ["What is the total revenue of 2023?", "", "Größe", "the quick page " * 40, "总收入 и выручка"]


@pytest.fixture(scope="module")
def pages(page_bytes):
    return [page_bytes(*size) for size in SIZES]


@pytest.fixture(scope="module", params=["fast", "stock"])
def model(request, tiny_checkpoint):
    return load(ModelOptions(name=str(tiny_checkpoint), device="cpu", engine=request.param))


@pytest.fixture(scope="module")
def stock(tiny_checkpoint):
    """Embed as colpali-engine does: one padded batch, valid rows picked by the mask."""
    network = ColQwen2_5.from_pretrained(tiny_checkpoint).eval()
    processor = ColQwen2_5_Processor.from_pretrained(tiny_checkpoint, max_num_visual_tokens=768)
    # In the place of the keyword's attribute, about which transformers warns with every call.
    del processor.image_processor.max_pixels

    def embed(*, pages=(), queries=()):
        images = [Image.open(BytesIO(page)) for page in pages]
        batch = processor.process_images(images) if pages else processor.process_queries(list(queries))
        with torch.inference_mode():
            rows = network(**batch)
        return [row[mask.bool()].numpy() for row, mask in zip(rows, batch["attention_mask"], strict=True)]

    return embed


def prepared(model, *, pages=(), queries=()):
    return [*map(model.prepare_page, pages), *map(model.prepare_query, queries)]


def assert_same(ours, theirs):
    assert [rows.shape for rows in ours] == [rows.shape for rows in theirs]
    for mine, other in zip(ours, theirs, strict=True):
        assert np.abs(mine - other).max() <= TOLERANCE


def test_pages_of_many_sizes_in_one_batch_are_what_colpali_engine_makes_of_them(model, stock, pages):
    assert_same(model.embed(prepared(model, pages=pages)), stock(pages=pages))


def test_queries_of_many_lengths_in_one_batch_are_what_colpali_engine_makes_of_them(model, stock):
    assert_same(model.embed(prepared(model, queries=QUERIES)), stock(queries=QUERIES))


def test_pages_and_queries_share_a_batch_in_any_order(model, stock, pages):
    inputs = prepared(model, pages=pages[1:3], queries=QUERIES[:2])
    expected = stock(pages=pages[1:3]) + stock(queries=QUERIES[:2])
    order = [2, 0, 3, 1]
    assert_same(model.embed([inputs[i] for i in order]), [expected[i] for i in order])


def test_an_input_has_the_same_rows_whatever_its_neighbours(model, pages):
    inputs = prepared(model, pages=pages, queries=QUERIES)
    alone = [model.embed([one])[0] for one in inputs]
    assert_same(model.embed(inputs), alone)


def test_rows_are_unit_vectors_without_padding_at_the_promised_cost(model, pages):
    inputs = prepared(model, pages=pages, queries=QUERIES)
    for one, rows in zip(inputs, model.embed(inputs), strict=True):
        assert rows.shape == (one.tokens, 128)
        assert rows.dtype == np.float32
        assert rows.flags.c_contiguous
        assert np.allclose(np.linalg.norm(rows, axis=1), 1, atol=1e-5)


def test_a_page_is_shown_at_the_resolution_the_model_was_trained_with(tiny_model, page_bytes):
    visual_tokens = tiny_model.prepare_page(page_bytes(1240, 1754)).tokens - 11  # the prompt around them
    assert visual_tokens == 736


def test_rows_tell_pages_and_queries_apart(tiny_model, page_bytes):
    pages = [page_bytes(400, 300, seed=seed) for seed in range(3)]
    *pages, query, other = tiny_model.embed(prepared(tiny_model, pages=pages, queries=["the total", "an invoice"]))
    scores = [(asked @ page.T).max(axis=1).sum() for page in pages for asked in (query, other)]
    assert np.unique(np.round(scores, 3)).size == len(scores)
    assert np.tril(pages[0] @ pages[0].T, -1).min() < 0.5


def test_an_empty_batch_is_nothing(tiny_model):
    assert tiny_model.embed([]) == []


@pytest.mark.parametrize("dtype", ["bfloat16", "float16"])
def test_a_half_precision_model_gives_half_precision_rows(tiny_checkpoint, tiny_model, pages, dtype):
    model = load(ModelOptions(name=str(tiny_checkpoint), device="cpu", dtype=dtype))
    inputs = prepared(model, pages=pages[1:2], queries=QUERIES)
    for half, full in zip(model.embed(inputs), tiny_model.embed(inputs), strict=True):
        assert half.dtype == np.float16
        assert (half.astype(np.float32) * full).sum(axis=1).mean() > 0.98


def test_a_query_in_half_precision_does_not_feel_its_padding(tiny_checkpoint):
    model = load(ModelOptions(name=str(tiny_checkpoint), device="cpu", dtype="bfloat16"))
    inputs = prepared(model, queries=["the total", "the total revenue of the year " * 10])
    assert np.abs(model.embed(inputs)[0] - model.embed(inputs[:1])[0]).max() < 1e-3


def test_the_query_prefix_of_the_options_precedes_every_query(tiny_checkpoint, stock):
    model = load(ModelOptions(name=str(tiny_checkpoint), device="cpu", query_prefix="Query: "))
    assert_same(model.embed(prepared(model, queries=["of the page"])), stock(queries=["Query: of the page"]))


def failing(error):
    def forward(*_):
        raise error

    return forward


def test_a_device_out_of_memory_is_told_apart(tiny_model, monkeypatch):
    monkeypatch.setattr(tiny_model, "_forward", lambda: failing(torch.OutOfMemoryError("CUDA out of memory")))
    with pytest.raises(DeviceMemoryError) as failure:
        tiny_model.embed(prepared(tiny_model, queries=["the page"]))
    # Either would keep the failed pass, and with it the device's memory, alive.
    assert failure.value.__cause__ is None
    assert failure.value.__context__ is None


def test_a_failed_forward_pass_is_a_model_error_that_holds_no_tensors(tiny_model, monkeypatch):
    monkeypatch.setattr(tiny_model, "_forward", lambda: failing(RuntimeError("shapes do not match")))
    with pytest.raises(ModelError) as failure:
        tiny_model.embed(prepared(tiny_model, queries=["the page"]))
    assert not isinstance(failure.value, DeviceMemoryError)
    assert str(failure.value.__cause__) == "shapes do not match"
    assert failure.value.__cause__.__traceback__ is None


def test_a_lost_device_is_not_blamed_on_the_input(tiny_model, monkeypatch):
    monkeypatch.setattr(tiny_model, "_forward", lambda: failing(torch.AcceleratorError("device-side assert", 710)))
    with pytest.raises(ModelLostError, match="device-side assert"):
        tiny_model.embed(prepared(tiny_model, queries=["the page"]))


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_rows_that_are_no_numbers_are_a_model_error(tiny_model, monkeypatch, value):
    monkeypatch.setattr(tiny_model, "_forward", lambda: lambda inputs: [torch.full((len(inputs[0].ids), 128), value)])
    with pytest.raises(ModelError, match="finite"):
        tiny_model.embed(prepared(tiny_model, queries=["the page"]))


def test_an_unloaded_model_holds_no_weight_and_the_next_batch_loads_it_again(tiny_checkpoint):
    model = load(ModelOptions(name=str(tiny_checkpoint), device="cpu"))
    model.warm_up()
    inputs = prepared(model, queries=["the page"])
    before = model.embed(inputs)
    weight = weakref.ref(model._passes.network.custom_text_proj.weight)  # noqa: SLF001  # what must go has no other name
    assert weight() is not None

    model.unload()

    assert not model.loaded
    assert weight() is None
    assert (model.engine, model.dtype) == ("fast", torch.float32)
    prepared(model, queries=["is prepared all the same"])
    with capture_logs() as logs:
        np.testing.assert_array_equal(model.embed(inputs)[0], before[0])
    assert [entry["event"] for entry in logs] == ["model.loaded_again"]
    assert model.loaded


def test_a_model_that_cannot_be_loaded_again_is_lost_and_no_input_is_blamed(tiny_checkpoint, tmp_path):
    folder = shutil.copytree(tiny_checkpoint, tmp_path / "checkpoint")
    model = load(ModelOptions(name=str(folder), device="cpu"))
    inputs = prepared(model, queries=["the page"])
    model.unload()
    shutil.rmtree(folder)
    with pytest.raises(ModelLostError, match="cannot be loaded again"):
        model.start(inputs)
