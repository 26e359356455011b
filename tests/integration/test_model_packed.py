"""The fast forward pass, held against colpali-engine's classes, in what it computes and in what it costs."""

from io import BytesIO

import numpy as np
import pytest
import torch
from PIL import Image
from structlog.testing import capture_logs
from torch.profiler import ProfilerActivity, profile

from worker.model import layout, packed, segments, tiny
from worker.model.blocks import Block
from worker.model.colqwen import load
from worker.model.load import load_checkpoint
from worker.model.options import ModelOptions
from worker.model.packed import PackedForward
from worker.model.pixels import Patchifier
from worker.model.prepare import Preparer
from worker.model.stock import StockForward

CPU = torch.device("cpu")
A4 = (1240, 1754)
QUERIES = ["the total", "", "the quick page " * 30, "an invoice"]


class Network:
    """A random checkpoint, its processor, and both forward passes on it."""

    def __init__(self, folder, dtype="float32"):
        options = ModelOptions(name=str(folder), device="cpu", dtype=dtype)
        self.stock, self.processor = load_checkpoint(options)
        self.preparer = Preparer(self.processor, options)
        self.patchifier = Patchifier(self.processor.image_processor, CPU)
        self.packed = PackedForward(self.stock, self.patchifier)

    def features(self, *, pages=(), queries=()):
        inputs = [*map(self.preparer.page, pages), *map(self.preparer.query, queries)]
        return [one.features for one in inputs]

    def stock_batch(self, data):
        return self.processor.process_images([Image.open(BytesIO(data))])


@pytest.fixture(scope="module")
def midsize(model_cache):
    return Network(tiny.random_checkpoint(model_cache, "midsize"))


@pytest.fixture(scope="module")
def real_depth(model_cache):
    return Network(tiny.random_checkpoint(model_cache, "real_depth"))


def test_pages_and_queries_of_a_mid_size_model_are_what_colpali_engine_makes_of_them(midsize, page_bytes):
    pages = [page_bytes(*size) for size in (A4, (300, 200), (40, 900))]
    rows = midsize.packed(midsize.features(pages=pages, queries=QUERIES))
    with torch.inference_mode():
        expected = [midsize.stock(**midsize.stock_batch(page))[0] for page in pages]
        expected += [midsize.stock(**midsize.processor.process_queries([query]))[0] for query in QUERIES]
    for mine, other in zip(rows, expected, strict=True):
        assert mine.shape == other.shape
        assert (mine - other).abs().max() <= 1e-5


def leaf_operators(step):
    step()
    with profile(activities=[ProfilerActivity.CPU]) as trace:
        step()
    return sum(not event.cpu_children for event in trace.events())


def test_a_page_of_the_real_depth_takes_less_than_a_quarter_of_the_stock_operators(real_depth, page_bytes):
    page = page_bytes(*A4)
    inputs, batch = real_depth.features(pages=[page]), real_depth.stock_batch(page)

    @torch.inference_mode()
    def stock():
        real_depth.stock(**batch)

    assert leaf_operators(lambda: real_depth.packed(inputs)) / leaf_operators(stock) <= 0.25


def test_a_page_hands_the_device_less_than_a_sixth_of_the_stock_bytes(real_depth, page_bytes, monkeypatch):
    handed = []

    def counted(tensor, device):
        handed.append(tensor.nbytes)
        return tensor.to(device)

    for module in (packed, layout, segments):
        monkeypatch.setattr(module, "carried", counted)
    page = page_bytes(*A4)
    forward = PackedForward(real_depth.stock, real_depth.patchifier)
    forward(real_depth.features(pages=[page]))
    stock = sum(tensor.nbytes for tensor in real_depth.stock_batch(page).values())
    assert 896 * 644 * 3 < sum(handed) <= stock / 6


def test_the_forward_pass_never_waits_for_the_device(model_cache, page_bytes):
    # Tensors on the meta device have no values: whatever asks the device for one raises.
    network = Network(tiny.random_checkpoint(model_cache, "real_depth"))
    network.stock.to("meta")
    patchifier = Patchifier(network.processor.image_processor, torch.device("meta"))
    inputs = network.features(pages=[page_bytes(300, 200), page_bytes(200, 300)], queries=QUERIES)
    rows = PackedForward(network.stock, patchifier)(inputs)
    assert [(one.shape, one.device.type) for one in rows] == [((len(one.ids), 128), "meta") for one in inputs]
    with pytest.raises((RuntimeError, NotImplementedError)):
        StockForward(network.stock, patchifier, 0)(inputs)


def test_no_hidden_states_are_kept(midsize, page_bytes, monkeypatch):
    places = []
    run = Block.__call__

    def watched(block, row, *rest):
        run(block, row, *rest)
        places.append(row.data_ptr())

    monkeypatch.setattr(Block, "__call__", watched)
    midsize.packed(midsize.features(pages=[page_bytes(300, 200)]))
    assert len(places) == 8 + 6
    assert len(set(places)) == 2, "each half of the network has one row, which its blocks change in place"


@pytest.fixture
def one_kernel(monkeypatch):
    """Keep oneDNN from choosing its kernel by the number of rows, which changes the last bit on CPUs with AMX."""
    monkeypatch.setattr(torch.backends.mkldnn, "enabled", False)


@pytest.mark.usefixtures("one_kernel")
@pytest.mark.filterwarnings("ignore:TF32 acceleration:UserWarning")  # torch says so whenever a flag of oneDNN is set
@pytest.mark.parametrize("shape", ["tiny", "midsize"])
@pytest.mark.parametrize(("dtype", "tolerance"), [("float32", 1e-6), ("bfloat16", 0), ("float16", 0)])
def test_an_input_has_the_same_rows_in_any_batch(model_cache, page_bytes, shape, dtype, tolerance):
    """To the bit in half precision; in float32 within what MKL, which also chooses its kernel by size, leaves."""
    network = Network(tiny.random_checkpoint(model_cache, shape), dtype)
    pages = [page_bytes(*size) for size in ((300, 200), (200, 300), (90, 250), (300, 200))]
    inputs = network.features(pages=pages, queries=QUERIES)
    alone = [network.packed([one])[0] for one in inputs]
    for batch in ([0, 1, 2, 3, 4, 5, 6, 7], [7, 0], [3, 0, 1], [4, 5, 7, 6], [2, 4, 2, 4]):
        rows = network.packed([inputs[i] for i in batch])
        for i, one in zip(batch, rows, strict=True):
            torch.testing.assert_close(one, alone[i], rtol=0, atol=tolerance)


@pytest.mark.parametrize("shape", ["tiny", "midsize"])
@pytest.mark.parametrize(("dtype", "least"), [("bfloat16", 0.999), ("float16", 0.9999)])
def test_half_precision_stays_close_to_float32(model_cache, page_bytes, shape, dtype, least):
    folder = tiny.random_checkpoint(model_cache, shape)
    half, full = Network(folder, dtype), Network(folder)
    inputs = full.features(pages=[page_bytes(300, 200), page_bytes(640, 480)], queries=QUERIES)
    for mine, other in zip(half.packed(inputs), full.packed(inputs), strict=True):
        assert torch.cosine_similarity(mine.float(), other, dim=-1).min() >= least


def test_the_layout_of_pages_is_worked_out_once(midsize, page_bytes, monkeypatch):
    made = []
    monkeypatch.setattr(packed, "vision_layout", lambda *of, **how: made.append(of) or layout.vision_layout(*of, **how))
    forward = PackedForward(midsize.stock, midsize.patchifier)
    one, other = midsize.features(pages=[page_bytes(60, 60), page_bytes(60, 90)])
    for batch in ([one], [one], [other], [one, other], [one], [one, other]):
        forward(batch)
    assert len(made) == 3
    monkeypatch.setattr(packed, "_LAYOUTS", 1)
    forward = PackedForward(midsize.stock, midsize.patchifier)
    for batch in ([one], [other], [one]):
        forward(batch)
    assert len(made) == 6


def test_the_stock_pass_still_runs_on_the_same_weights(midsize, page_bytes):
    inputs = midsize.features(pages=[page_bytes(300, 200)], queries=QUERIES)
    stock = StockForward(midsize.stock, midsize.patchifier, midsize.processor.tokenizer.pad_token_id)
    for mine, other in zip(midsize.packed(inputs), stock(inputs), strict=True):
        assert (mine - other).abs().max() <= 1e-5


@pytest.fixture
def model(tiny_checkpoint):
    return load(ModelOptions(name=str(tiny_checkpoint), device="cpu"))


def test_at_start_up_the_fast_pass_is_checked_and_kept(model):
    with capture_logs() as logs:
        model.warm_up()
    assert model.engine == "fast"
    assert logs == []


@pytest.mark.parametrize("fault", ["wrong rows", "failure"])
def test_a_fast_pass_that_does_not_agree_is_refused_loudly_and_stock_runs(
    model, tiny_model, page_bytes, monkeypatch, fault
):
    def wrong(query, key, value, _, *, causal):
        if fault == "failure":
            raise RuntimeError("no such kernel")
        everything = segments.on_device([len(query)], CPU)  # as if pages saw their neighbours
        return segments.attend(query, key, value, everything, causal=causal)

    monkeypatch.setattr("worker.model.blocks.attend", wrong)
    with capture_logs() as logs:
        model.warm_up()
    assert [(entry["event"], entry["log_level"]) for entry in logs] == [("engine.refused", "error")]
    assert ("no such kernel" in logs[0]["reason"]) == (fault == "failure")
    assert model.engine == "stock"
    monkeypatch.undo()
    page = model.prepare_page(page_bytes(300, 200))
    assert np.abs(model.embed([page])[0] - tiny_model.embed([page])[0]).max() <= 1e-5


@pytest.mark.filterwarnings("ignore:.torch.jit.script:DeprecationWarning")  # torch's own compiler brings it
def test_compiled_steps_change_no_row(model, tiny_checkpoint, page_bytes):
    compiled = load(ModelOptions(name=str(tiny_checkpoint), device="cpu", compile=True))
    compiled.warm_up()
    assert compiled.engine == "fast"
    batch = [compiled.prepare_page(page_bytes(300, 200)), compiled.prepare_query("the total")]
    for one, other in zip(compiled.embed(batch), model.embed(batch), strict=True):
        assert np.abs(one - other).max() <= 1e-5


@pytest.mark.parametrize("engine", ["fast", "stock"])
def test_an_engine_asked_for_by_name_is_not_checked(tiny_checkpoint, monkeypatch, engine):
    model = load(ModelOptions(name=str(tiny_checkpoint), device="cpu", engine=engine))
    monkeypatch.setattr(model, "_agrees", lambda _: False)
    model.warm_up()
    assert model.engine == engine


def test_two_batches_may_be_under_way_at_once(model, page_bytes):
    first, second = model.prepare_page(page_bytes(300, 200)), model.prepare_query("the total")
    one, other = model.start([first]), model.start([second])
    assert np.array_equal(other()[0], model.embed([second])[0])
    assert np.array_equal(one()[0], model.embed([first])[0])


def test_only_what_is_too_large_for_float16_is_computed_again_in_float32(
    tiny_checkpoint, tiny_model, page_bytes, monkeypatch
):
    model = load(ModelOptions(name=str(tiny_checkpoint), device="cpu", dtype="float16"))
    batch = [model.prepare_page(page_bytes(300, 200)), model.prepare_query("the total"), model.prepare_query("")]
    as_ever = model.embed(batch)
    forward = PackedForward.__call__

    @torch.inference_mode()
    def overflowing(self, inputs, dtype=None):
        rows = forward(self, inputs, dtype)
        if len(inputs) > 1:
            rows[1][-1, 7] = float("inf")
        return rows

    monkeypatch.setattr(PackedForward, "__call__", overflowing)
    with capture_logs() as logs:
        rows = model.embed(batch)
    assert [entry["tokens"] for entry in logs if entry["event"] == "engine.widened"] == [batch[1].tokens]
    assert np.array_equal(rows[0], as_ever[0])
    assert np.array_equal(rows[2], as_ever[2])
    assert rows[1].dtype == np.float16
    # Its weights are those of float16; the arithmetic is not.
    assert np.abs(rows[1] - tiny_model.embed([batch[1]])[0]).max() < 2e-3


@pytest.mark.parametrize(("wide_tail", "finite"), [(0, False), (1, True)])
def test_the_wide_tail_of_the_vision_tower_does_not_overflow(model_cache, page_bytes, wide_tail, finite):
    network = Network(tiny.tiny_checkpoint(model_cache), "float16")
    last = network.stock.visual.blocks[-1].mlp
    last.up_proj.weight.data.mul_(300)
    last.down_proj.weight.data.mul_(3000)
    forward = PackedForward(network.stock, network.patchifier, wide_tail=wide_tail)
    (rows,) = forward(network.features(pages=[page_bytes(300, 200)]))
    assert bool(rows.isfinite().all()) == finite
