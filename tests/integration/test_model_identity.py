"""What a checkpoint is known by: other rows, another identity."""

import shutil

import pytest
from safetensors.torch import load_file, save_file

from worker.model.colqwen import load
from worker.model.options import ModelOptions
from worker.model.seam import ModelLostError

TEXT = "What is the total revenue?"


def loaded(folder, **options):
    return load(ModelOptions(name=str(folder), device="cpu", **options))


@pytest.fixture
def copy(tiny_checkpoint, tmp_path):
    """A checkpoint of the same name every time, whose weights may be changed."""
    return shutil.copytree(tiny_checkpoint, tmp_path / "checkpoint")


def change_one_weight(folder):
    weights = load_file(folder / "model.safetensors")
    name = next(name for name in weights if "custom_text_proj.weight" in name)
    weights[name][0, 0] += 1e-3
    save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})


def test_the_same_weights_have_the_same_identity_wherever_they_lie(tiny_checkpoint, copy):
    """Also after they were used, which joins some of them in memory."""
    used = loaded(tiny_checkpoint)
    used.warm_up()
    assert used.identity() == loaded(copy).identity()


def test_one_weight_changed_in_place_is_another_identity(copy):
    before = loaded(copy).identity()
    change_one_weight(copy)
    assert loaded(copy).identity() != before


@pytest.mark.parametrize(
    "options",
    [
        {"dtype": "bfloat16"},
        {"engine": "stock"},
        {"max_visual_tokens": 512},
        {"query_prefix": "Question: "},
    ],
    ids=lambda options: next(iter(options)),
)
def test_what_changes_the_rows_changes_the_identity(tiny_checkpoint, options):
    assert loaded(tiny_checkpoint, **options).identity() != loaded(tiny_checkpoint).identity()


def test_the_engine_is_part_of_the_results_and_not_of_the_model(tiny_checkpoint):
    """A fleet may run both engines behind one queue: the worker compares them when it starts."""
    stock, fast = (loaded(tiny_checkpoint, engine=engine).identity() for engine in ("stock", "fast"))
    assert stock.model_id == fast.model_id
    assert stock.results_key != fast.results_key


def test_another_release_computes_other_results_with_the_same_model(tiny_checkpoint, monkeypatch):
    """Work that waits while the service is upgraded is done by the new release."""
    model = loaded(tiny_checkpoint)
    before = model.identity()
    monkeypatch.setattr("worker.model.identity.version", lambda library: f"{library} of tomorrow")
    after = model.identity()
    assert after.model_id == before.model_id
    assert after.results_key != before.results_key


def test_limits_change_no_row_and_no_identity(tiny_checkpoint):
    limits = {"max_text_tokens": 100, "max_image_pixels": 10**6}
    assert loaded(tiny_checkpoint, **limits).identity() == loaded(tiny_checkpoint).identity()


def test_an_idle_model_comes_back_as_itself_or_not_at_all(copy):
    """Its results are kept under its identity."""
    model = loaded(copy)
    identity = model.identity()
    model.unload()
    model.embed([model.prepare_query(TEXT)])
    assert model.identity() == identity

    model.unload()
    change_one_weight(copy)
    with pytest.raises(ModelLostError, match="not what it was"):
        model.embed([model.prepare_query(TEXT)])
