from dataclasses import FrozenInstanceError

import pytest

from worker.model.options import ModelOptions


def test_the_hub_token_is_not_shown():
    assert "hf_secret" not in repr(ModelOptions(name="tiny", hub_token="hf_secret"))  # noqa: S106 - a made-up one


def test_options_cannot_be_changed_after_they_were_read():
    with pytest.raises(FrozenInstanceError):
        ModelOptions(name="tiny").device = "cuda"


def test_a_page_is_seen_as_the_model_was_trained_to_unless_told_otherwise():
    assert ModelOptions(name="tiny").max_visual_tokens == 768
