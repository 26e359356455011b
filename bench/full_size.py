"""A network of the published model's size with random weights, drawn on the device. Downloads nothing, loads nothing.

Sizes: config.json of Qwen/Qwen2.5-VL-3B-Instruct, on which ColQwen2.5-3B is built. Its tokenizer is our small one, so
that queries are somewhat longer in tokens; the embedding table keeps its real size.
"""

from pathlib import Path

import torch

from worker.model.libraries import ColQwen2_5, ColQwen2_5_Processor, Qwen2_5_VLConfig
from worker.model.load import load_processor
from worker.model.options import ModelOptions
from worker.model.tiny import SHAPES, Shape, random_checkpoint

__all__ = ["SIZES", "checkpoint", "network_of", "random_network"]

SIZES = SHAPES | {"full": Shape(2048, 36, 16, 2, 11008, (16, 24, 24), 1280, 32, 16, 3420, (7, 15, 23, 31))}
_VOCABULARY = 151_936


def checkpoint(size: str, cache_dir: Path, device: str, dtype: str) -> Path:
    """Return the folder of a checkpoint of that size, drawn and saved first where it is missing: `full` takes 8 GB."""
    if size in SHAPES:
        return random_checkpoint(cache_dir, size)
    folder = cache_dir / f"{size}-{dtype}"
    if not (folder / "processor_config.json").exists():  # written last
        network, processor, _ = random_network(size, cache_dir, torch.device(device), getattr(torch, dtype))
        network.save_pretrained(folder)
        processor.save_pretrained(folder)
    return folder


def random_network(
    size: str, cache_dir: Path, device: torch.device, dtype: torch.dtype, seed: int = 0
) -> tuple[ColQwen2_5, ColQwen2_5_Processor, Path]:
    """Return the network on `device`, its processor, and the folder that the processor can be read from."""
    folder = random_checkpoint(cache_dir, "tiny")
    network = network_of(size, folder, device, dtype)
    draw = torch.Generator(device).manual_seed(seed)
    for name, weight in sorted(network.state_dict().items()):
        if weight.ndim > 1:
            # Unit-sized signals all the way, as in `worker.model.tiny`: rows depend on what was read.
            weight.normal_(std=1.0 if "embed_tokens" in name else weight[0].numel() ** -0.5, generator=draw)
    processor = load_processor(str(folder), ModelOptions(name=str(folder)))
    return network.eval().requires_grad_(requires_grad=False), processor, folder


def network_of(size: str, tiny: Path, device: torch.device, dtype: torch.dtype) -> ColQwen2_5:
    """Return a network of that size on `device`; what is not of size is as in the checkpoint `tiny`."""
    config = _config(Qwen2_5_VLConfig.from_pretrained(tiny), SIZES[size], small=size != "full")
    before = torch.get_default_dtype()
    torch.set_default_dtype(dtype)
    try:
        with device:
            return ColQwen2_5(config)
    finally:
        torch.set_default_dtype(before)


def _config(tiny: Qwen2_5_VLConfig, shape: Shape, *, small: bool) -> Qwen2_5_VLConfig:
    told = tiny.to_dict()
    told["text_config"].pop("layer_types", None)  # one a layer, made anew
    told["text_config"] |= {
        "hidden_size": shape.hidden,
        "intermediate_size": shape.mlp,
        "num_hidden_layers": shape.layers,
        "num_attention_heads": shape.heads,
        "num_key_value_heads": shape.kv_heads,
        "max_window_layers": shape.layers,
        "rope_parameters": told["text_config"]["rope_parameters"] | {"mrope_section": list(shape.mrope_section)},
    }
    if not small:
        told["text_config"]["vocab_size"] = _VOCABULARY
    told["vision_config"] |= {
        "depth": shape.vision_blocks,
        "hidden_size": shape.vision_hidden,
        "num_heads": shape.vision_heads,
        "intermediate_size": shape.vision_mlp,
        "out_hidden_size": shape.hidden,
        "fullatt_block_indexes": list(shape.full_attention_blocks),
    }
    config = Qwen2_5_VLConfig(**told)
    config._attn_implementation = "sdpa"  # noqa: SLF001 - from_pretrained's keyword has no counterpart here
    return config
