"""Reads a ColQwen2.5 checkpoint, whole or as a LoRA adapter, and refuses it where a weight would be left random.

Knows where checkpoints come from and how they go wrong; knows no input and no forward pass.
"""

import json
import warnings
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError

from shared.errors import CheckpointError
from worker.model.device import choose_attention, choose_device, choose_dtype
from worker.model.libraries import (
    AutoTokenizer,
    ColQwen2_5,
    ColQwen2_5_Processor,
    PeftModel,
    Qwen2_5_VLConfig,
    Qwen2VLImageProcessor,
    Qwen2VLVideoProcessor,
    find_adapter_config_file,
    get_peft_model_state_dict,
    load_peft_weights,
)
from worker.model.options import TINY, ModelOptions
from worker.model.tiny import tiny_checkpoint

__all__ = ["load_checkpoint", "load_processor"]

# A visual token covers 2 x 2 patches of 14 x 14 pixels (Qwen2.5-VL technical report, section 2.1).
_PIXELS_PER_VISUAL_TOKEN = 28 * 28

# The projection takes the language model's last hidden states, so a saved output head is of no use.
_UNUSED = {"lm_head.weight"}


def load_checkpoint(options: ModelOptions) -> tuple[ColQwen2_5, ColQwen2_5_Processor]:
    """Return the network, on its device, ready for inference, and its processor.

    Raises `CheckpointError` where the checkpoint cannot be read, is not ColQwen2.5, or does not hold every weight.
    """
    source = str(tiny_checkpoint(options.cache_dir)) if options.name == TINY else _source(options.name)
    device = choose_device(options.device)
    network = _network(source, device, choose_dtype(options.dtype, device), options.hub_token)
    with _translated(source):
        processor = load_processor(source, options)
    if processor.image_token_id != network.config.image_token_id:
        # As where tokenizer.json is missing: transformers makes a tokenizer without words, and says nothing.
        raise CheckpointError(f"the tokenizer in {source} is not the one its model was trained with")
    return network.to(device).eval().requires_grad_(requires_grad=False), processor


def _source(name: str) -> str:
    folder = Path(name).expanduser()
    if folder.is_dir():
        return str(folder)
    if name.startswith(("/", "./", "../", "~")):
        raise CheckpointError(f"there is no folder {name}")
    return name


@contextmanager
def _translated(source: str) -> Iterator[None]:
    """Turn what the libraries raise while reading `source` into one sentence for the operator."""
    try:
        yield
    except (OSError, ValueError, RuntimeError, KeyError, SafetensorError) as error:
        reason = (str(error).splitlines() or [type(error).__name__])[0]
        where = "" if Path(source).is_dir() else ", which is no folder here, from the hub"
        raise CheckpointError(f"cannot read the checkpoint {source}{where}: {reason}") from error


def _network(source: str, device: torch.device, dtype: torch.dtype, token: str | None) -> ColQwen2_5:
    with _translated(source):
        adapter = _adapter_config(source, token)
        if adapter is None:
            return _whole_network(source, dtype, choose_attention(device, dtype), token)
        base = adapter["base_model_name_or_path"]
    network = _network(base, device, dtype, token)
    with _translated(source):
        return _with_adapter(network, source, token)


def _adapter_config(source: str, token: str | None) -> dict[str, Any] | None:
    path = find_adapter_config_file(source, token=token)
    if path is None:
        return None
    config: dict[str, Any] = json.loads(Path(path).read_text(encoding="utf-8"))
    return config


def _whole_network(source: str, dtype: torch.dtype, attention: str, token: str | None) -> ColQwen2_5:
    config, _ = Qwen2_5_VLConfig.get_config_dict(source, token=token)
    kind = config.get("model_type", "missing")
    if kind != "qwen2_5_vl":
        raise CheckpointError(f"{source} is not a ColQwen2.5 checkpoint: the model type in its config.json is {kind}")
    network, found = ColQwen2_5.from_pretrained(
        source,
        dtype=dtype,
        attn_implementation=attention,
        ignore_mismatched_sizes=True,  # they are reported like the others, and refused below
        output_loading_info=True,
        token=token,
    )
    _refuse(source, "lacks", found["missing_keys"])
    _refuse(source, "has the wrong shape for", (name for name, *_ in found["mismatched_keys"]))
    _refuse(source, "holds what ColQwen2.5 does not know,", set(found["unexpected_keys"]) - _UNUSED)
    _refuse(source, "does not convert:", found["error_msgs"])
    return network


def _with_adapter(network: ColQwen2_5, source: str, token: str | None) -> ColQwen2_5:
    """Merge the LoRA adapter into `network`. The product is computed in float32 whatever the network's type."""
    with warnings.catch_warnings():
        # peft asks transformers a question under its old name.
        warnings.filterwarnings("ignore", "`is_gradient_checkpointing` is deprecated", FutureWarning)
        # Told below, with what peft passes over in silence: tensors that fit no module.
        warnings.filterwarnings("ignore", "Found missing adapter keys", UserWarning)
        adapted = PeftModel.from_pretrained(network, source, token=token)
    known = get_peft_model_state_dict(adapted, save_embedding_layers=False)
    renamed = network._checkpoint_conversion_mapping  # noqa: SLF001 - by this mapping peft reads the names of 2025
    stored = load_peft_weights(source, device="cpu", key_mapping=renamed, token=token)
    _refuse(source, "lacks", known.keys() - stored.keys())
    _refuse(source, "holds what fits no module,", stored.keys() - known.keys())
    _refuse(
        source,
        "was never trained at",
        (name for name, weight in known.items() if "lora_B" in name and not weight.any()),
    )
    merged: ColQwen2_5 = adapted.merge_and_unload(safe_merge=True)
    return merged


def _refuse(source: str, complaint: str, names: Iterable[str]) -> None:
    shown = sorted(names)
    if shown:
        more = f" and {len(shown) - 5} more" if len(shown) > 5 else ""  # noqa: PLR2004 - enough to see the pattern
        raise CheckpointError(f"the checkpoint {source} {complaint} {', '.join(shown[:5])}{more}")


def load_processor(source: str, options: ModelOptions) -> ColQwen2_5_Processor:
    """Return the processor saved in `source`, with the limits and the query prefix of `options`."""
    try:
        processor = ColQwen2_5_Processor.from_pretrained(source, token=options.hub_token)
    except ValueError as error:
        # Some checkpoints name a class that never was in transformers (Qwen2_5_VLImageProcessor).
        if "Unrecognized image processor" not in str(error):
            raise
        processor = ColQwen2_5_Processor(
            image_processor=Qwen2VLImageProcessor.from_pretrained(source, token=options.hub_token),
            tokenizer=AutoTokenizer.from_pretrained(source, token=options.hub_token),
            video_processor=Qwen2VLVideoProcessor(),
        )
    # What max_num_visual_tokens does; a limit saved with a processor is not applied.
    processor.image_processor.size["longest_edge"] = options.max_visual_tokens * _PIXELS_PER_VISUAL_TOKEN
    if options.query_prefix is not None:
        processor.query_prefix = options.query_prefix
    return processor
