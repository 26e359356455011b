"""Loading the tiny checkpoint in every form it may come in, and refusing it in every form it may not."""

import json
import re
import shutil

import huggingface_hub.constants
import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file

from shared.errors import CheckpointError
from worker.model import tiny
from worker.model.colqwen import load
from worker.model.libraries import ColQwen2_5, ColQwen2_5_Processor
from worker.model.load import load_processor
from worker.model.options import ModelOptions

QUERIES = ["What is the total revenue?", "invoice"]
WEIGHTS, ADAPTER_WEIGHTS = "model.safetensors", "adapter_model.safetensors"


@pytest.fixture
def changed(tmp_path):
    """Copy a checkpoint and change its tensors, or the keys of one of its JSON files."""

    def change(folder, *, tensors=None, settings=None):
        copy = tmp_path / "changed"
        shutil.copytree(folder, copy)
        if tensors:
            file = copy / (ADAPTER_WEIGHTS if (copy / ADAPTER_WEIGHTS).exists() else WEIGHTS)
            stored = load_file(file)
            save_file(tensors(stored) or stored, file, metadata={"format": "pt"})
        for name, values in (settings or {}).items():
            (copy / name).write_text(json.dumps(json.loads((copy / name).read_text()) | values))
        return copy

    return change


@pytest.fixture
def offline(monkeypatch):
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", True)


def read(folder, **options):
    return load(ModelOptions(name=str(folder), device="cpu", **options))


def without(name):
    return lambda stored: {other: weight for other, weight in stored.items() if other != name}


def set_base(adapter, base):
    file = adapter / "adapter_config.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | {"base_model_name_or_path": str(base)}))


def rows_of(model):
    return np.concatenate(model.embed([model.prepare_query(text) for text in QUERIES]))


def stock_rows(network, folder):
    batch = ColQwen2_5_Processor.from_pretrained(folder).process_queries(QUERIES)
    with torch.inference_mode():
        rows = network.eval()(**batch)
    return rows[batch["attention_mask"].bool()].numpy()


def test_tiny_is_built_where_the_options_say_and_loads_like_any_other_name(model_cache, tiny_model):
    model = load(ModelOptions(name="tiny", cache_dir=model_cache, device="cpu"))
    assert model.name == "tiny"
    assert (model.device, model.dtype) == (torch.device("cpu"), torch.float32)
    assert np.array_equal(rows_of(model), rows_of(tiny_model))


def test_a_checkpoint_with_the_tensor_names_of_2025_loads(changed, tiny_checkpoint, tiny_model):
    def renamed(stored):
        return {name.replace("language_model.", "model."): weight for name, weight in stored.items()}

    assert np.array_equal(rows_of(read(changed(tiny_checkpoint, tensors=renamed))), rows_of(tiny_model))


def test_an_unused_output_head_is_let_pass(changed, tiny_checkpoint, tiny_model):
    def with_head(stored):
        stored["lm_head.weight"] = stored["language_model.embed_tokens.weight"].clone()

    assert np.array_equal(rows_of(read(changed(tiny_checkpoint, tensors=with_head))), rows_of(tiny_model))


def test_a_missing_tensor_is_refused_by_its_name(changed, tiny_checkpoint):
    folder = changed(tiny_checkpoint, tensors=without("custom_text_proj.bias"))
    with pytest.raises(CheckpointError, match=r"lacks custom_text_proj\.bias"):
        read(folder)


def test_many_missing_tensors_are_counted(changed, tiny_checkpoint):
    def without_vision(stored):
        return {name: weight for name, weight in stored.items() if not name.startswith("visual")}

    with pytest.raises(CheckpointError, match=r"lacks visual\..* and \d+ more"):
        read(changed(tiny_checkpoint, tensors=without_vision))


def test_a_tensor_of_another_shape_is_refused_by_its_name(changed, tiny_checkpoint):
    def wider(stored):
        stored["custom_text_proj.weight"] = torch.zeros(128, 65)

    with pytest.raises(CheckpointError, match=r"wrong shape for custom_text_proj\.weight"):
        read(changed(tiny_checkpoint, tensors=wider))


def test_a_tensor_nobody_knows_is_refused_by_its_name(changed, tiny_checkpoint):
    def more(stored):
        stored["second_projection.weight"] = torch.zeros(2, 2)

    with pytest.raises(CheckpointError, match=r"second_projection\.weight"):
        read(changed(tiny_checkpoint, tensors=more))


def test_another_kind_of_model_is_refused(changed, tiny_checkpoint):
    folder = changed(tiny_checkpoint, settings={"config.json": {"model_type": "qwen2_vl"}})
    with pytest.raises(
        CheckpointError, match=r"not a ColQwen2\.5 checkpoint: the model type in its config.json is qwen2_vl"
    ):
        read(folder)


@pytest.mark.parametrize("file", ["config.json", WEIGHTS, "tokenizer.json", "processor_config.json"])
@pytest.mark.parametrize("damage", ["missing", "cut"])
def test_a_missing_or_damaged_file_is_refused(changed, tiny_checkpoint, file, damage):
    path = changed(tiny_checkpoint) / file
    content = path.read_bytes()
    path.unlink()
    if damage == "cut":
        path.write_bytes(content[: len(content) // 2])
    with pytest.raises(CheckpointError, match=re.escape(str(path.parent))):
        read(path.parent)


def test_a_folder_that_is_not_there_is_named(tmp_path):
    with pytest.raises(CheckpointError, match=f"there is no folder {tmp_path}/nowhere"):
        read(tmp_path / "nowhere")


@pytest.mark.usefixtures("offline")
def test_a_name_the_hub_does_not_give_us_is_named():
    with pytest.raises(
        CheckpointError, match=r"colqueue/no-such-model, which is no folder here, from the hub: .*connect"
    ):
        read("colqueue/no-such-model")


def test_a_page_has_no_more_visual_tokens_than_the_options_allow(tiny_checkpoint, page_bytes):
    page = page_bytes(1240, 1754)
    prompt = read(tiny_checkpoint).prepare_page(page).tokens - 736
    assert read(tiny_checkpoint, max_visual_tokens=100).prepare_page(page).tokens - prompt in range(80, 101)


def test_the_limit_of_visual_tokens_is_the_one_the_stock_keyword_sets(tiny_checkpoint):
    ours = load_processor(str(tiny_checkpoint), ModelOptions(name="tiny"))
    stock = ColQwen2_5_Processor.from_pretrained(tiny_checkpoint, max_num_visual_tokens=768)
    assert ours.image_processor.size["longest_edge"] == stock.image_processor.size["longest_edge"] == 768 * 28 * 28
    assert ours.image_processor.size["shortest_edge"] == stock.image_processor.size["shortest_edge"]


def test_a_processor_whose_class_never_was_in_transformers_loads(changed, tiny_checkpoint, tiny_model):
    parts = json.loads((tiny_checkpoint / "processor_config.json").read_text())
    parts["image_processor"]["image_processor_type"] = "Qwen2_5_VLImageProcessor"
    folder = changed(tiny_checkpoint, settings={"processor_config.json": parts})
    with pytest.raises(ValueError, match="Unrecognized"):
        ColQwen2_5_Processor.from_pretrained(folder)
    assert np.array_equal(rows_of(read(folder)), rows_of(tiny_model))


def test_a_processor_saved_in_the_form_of_2025_loads(changed, tiny_checkpoint, page_bytes, tiny_model):
    folder = changed(tiny_checkpoint)
    parts = json.loads((folder / "processor_config.json").read_text())
    image_processor = parts["image_processor"] | {"image_processor_type": "Qwen2_5_VLImageProcessor"}
    (folder / "processor_config.json").unlink()
    (folder / "preprocessor_config.json").write_text(json.dumps(image_processor))
    page = page_bytes(300, 400)
    assert torch.equal(read(folder).prepare_page(page).features.pixels, tiny_model.prepare_page(page).features.pixels)


@pytest.mark.parametrize("times", [1, 2])
def test_an_adapter_is_merged_into_its_base(changed, tiny_checkpoint, tiny_adapter, tmp_path, times):
    # The reference: the LoRA paper's W + BA (alpha = rank), computed by hand and loaded as a whole checkpoint.
    delta = load_file(tiny_adapter / ADAPTER_WEIGHTS)

    def merged(stored):
        for name in [name for name in delta if "lora_A" in name]:
            weight = name.removeprefix("base_model.model.").replace(".lora_A", "")
            stored[weight] += times * (delta[name.replace("lora_A", "lora_B")] @ delta[name])

    expected = stock_rows(ColQwen2_5.from_pretrained(changed(tiny_checkpoint, tensors=merged)), tiny_checkpoint)
    adapter = tiny_adapter
    if times == 2:  # an adapter on an adapter
        adapter = shutil.copytree(tiny_adapter, tmp_path / "second")
        set_base(adapter, tiny_adapter)
    rows = rows_of(read(adapter))
    assert np.abs(rows - expected).max() <= 1e-5


def test_an_adapter_makes_a_difference(tiny_adapter, tiny_model):
    assert np.abs(rows_of(read(tiny_adapter)) - rows_of(tiny_model)).max() > 0.1


def test_an_adapter_with_the_tensor_names_of_2025_is_the_same(model_cache, tiny_adapter):
    published = tiny.tiny_adapter(model_cache, keys_of_2025=True)
    assert any("base_model.model.model.layers" in name for name in load_file(published / ADAPTER_WEIGHTS))
    assert np.array_equal(rows_of(read(published)), rows_of(read(tiny_adapter)))


def test_an_adapter_on_a_half_precision_base_is_close_to_the_full_one(tiny_adapter):
    rows, full = rows_of(read(tiny_adapter, dtype="bfloat16")).astype(np.float32), rows_of(read(tiny_adapter))
    assert (rows * full).sum(axis=1).mean() > 0.98


def test_an_adapter_without_one_of_its_tensors_is_refused(changed, tiny_adapter):
    name = "base_model.model.language_model.layers.1.self_attn.q_proj.lora_B.weight"
    with pytest.raises(CheckpointError, match=r"lacks .*layers\.1\.self_attn\.q_proj\.lora_B"):
        read(changed(tiny_adapter, tensors=without(name)))


def test_an_adapter_with_a_tensor_that_fits_no_module_is_refused(changed, tiny_adapter):
    settings = {"adapter_config.json": {"target_modules": ".*custom_text_proj"}}
    with pytest.raises(CheckpointError, match=r"fits no module, .*layers\.0\.mlp"):
        read(changed(tiny_adapter, settings=settings))


def test_an_adapter_that_was_never_trained_is_refused(changed, tiny_adapter):
    def untrained(stored):
        stored["base_model.model.custom_text_proj.lora_B.weight"].zero_()

    with pytest.raises(CheckpointError, match=r"never trained at .*custom_text_proj\.lora_B"):
        read(changed(tiny_adapter, tensors=untrained))


def test_an_adapter_on_a_base_that_lacks_a_tensor_is_refused(changed, tiny_checkpoint, tiny_adapter, tmp_path):
    base = changed(tiny_checkpoint, tensors=without("custom_text_proj.weight"))
    adapter = shutil.copytree(tiny_adapter, tmp_path / "adapter")
    set_base(adapter, base)
    with pytest.raises(CheckpointError, match=r"lacks custom_text_proj\.weight"):
        read(adapter)


@pytest.mark.usefixtures("offline")
def test_an_adapter_whose_base_cannot_be_had_is_refused_by_the_name_of_the_base(changed, tiny_adapter):
    settings = {"adapter_config.json": {"base_model_name_or_path": "colqueue/no-such-base"}}
    with pytest.raises(CheckpointError, match="colqueue/no-such-base"):
        read(changed(tiny_adapter, settings=settings))
