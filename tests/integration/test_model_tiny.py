"""The tiny checkpoint itself: the same bytes for the same seed, complete or absent."""

import json
import signal
import subprocess
import sys
from filecmp import cmpfiles

import pytest
from safetensors.torch import load_file

from worker.model import tiny
from worker.model.libraries import ColQwen2_5

FILES = ["config.json", "model.safetensors", "processor_config.json", "tokenizer.json", "tokenizer_config.json"]


def test_the_same_seed_makes_the_same_bytes(tmp_path, tiny_checkpoint):
    again = tiny.tiny_checkpoint(tmp_path)
    assert sorted(path.name for path in again.iterdir()) == FILES
    assert cmpfiles(tiny_checkpoint, again, FILES, shallow=False) == (FILES, [], [])


def test_another_seed_makes_another_checkpoint(tmp_path, tiny_checkpoint):
    other = load_file(tiny.tiny_checkpoint(tmp_path, seed=1) / "model.safetensors")
    one = load_file(tiny_checkpoint / "model.safetensors")
    assert one.keys() == other.keys()
    assert not one["custom_text_proj.weight"].equal(other["custom_text_proj.weight"])


def test_the_structure_is_that_of_the_real_model(tiny_checkpoint):
    config = json.loads((tiny_checkpoint / "config.json").read_text())
    text, vision = config["text_config"], config["vision_config"]
    assert 1 < text["num_key_value_heads"] < text["num_attention_heads"]
    assert len(text["rope_parameters"]["mrope_section"]) == 3
    assert 0 < len(vision["fullatt_block_indexes"]) < vision["depth"]
    assert config["tie_word_embeddings"]


def test_both_generations_of_the_adapter_hold_the_same_weights(model_cache, tiny_adapter):
    today = load_file(tiny_adapter / "adapter_model.safetensors")
    published = load_file(tiny.tiny_adapter(model_cache, keys_of_2025=True) / "adapter_model.safetensors")
    renamed = {name.replace("model.model.layers", "model.language_model.layers"): w for name, w in published.items()}
    assert today.keys() == renamed.keys() != published.keys()
    assert all(weight.equal(renamed[name]) for name, weight in today.items())


def test_a_checkpoint_that_is_there_is_not_built_again(tiny_checkpoint, model_cache, monkeypatch):
    monkeypatch.delattr(tiny, "_network")
    assert tiny.tiny_checkpoint(model_cache) == tiny_checkpoint


def test_two_builders_who_race_both_get_the_checkpoint(tmp_path, monkeypatch):
    save = ColQwen2_5.save_pretrained

    def overtaken(network, folder):
        monkeypatch.setattr(ColQwen2_5, "save_pretrained", save)
        tiny.tiny_checkpoint(tmp_path)
        save(network, folder)

    monkeypatch.setattr(ColQwen2_5, "save_pretrained", overtaken)
    folder = tiny.tiny_checkpoint(tmp_path)
    assert list(tmp_path.iterdir()) == [folder]
    assert sorted(path.name for path in folder.iterdir()) == FILES


def test_a_failed_build_leaves_nothing(tmp_path, monkeypatch):
    def full_disk(*_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("worker.model.tiny.ColQwen2_5_Processor.save_pretrained", full_disk)
    with pytest.raises(OSError, match="No space"):
        tiny.tiny_checkpoint(tmp_path)
    assert list(tmp_path.iterdir()) == []


def test_a_builder_killed_half_way_leaves_no_half_built_checkpoint(tmp_path):
    program = f"""
import os, signal
from pathlib import Path
from worker.model import tiny
tiny.ColQwen2_5_Processor.save_pretrained = lambda *_: os.kill(os.getpid(), signal.SIGKILL)
tiny.tiny_checkpoint(Path({str(tmp_path)!r}))
"""
    assert subprocess.run([sys.executable, "-c", program], check=False).returncode == -signal.SIGKILL
    assert any(tmp_path.rglob("model.safetensors")), "it was killed before it wrote anything"
    assert sorted(path.name for path in tiny.tiny_checkpoint(tmp_path).iterdir()) == FILES
