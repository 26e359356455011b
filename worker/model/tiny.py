"""Builds `tiny` and its bigger siblings: real ColQwen2.5 checkpoints, and LoRA adapters, from a seed. Loads none.

Their weights are random: they prove the plumbing, never the quality of a search. Their structure is the real one in
small: windowed vision attention with full-attention blocks, grouped-query attention, M-RoPE, tied embeddings, a
projection to 128 dimensions.
"""

import re
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory

import torch
from safetensors.torch import load_file, save_file
from tokenizers.pre_tokenizers import ByteLevel

from worker.model.libraries import (
    ColQwen2_5,
    ColQwen2_5_Processor,
    LoraConfig,
    Qwen2_5_VLConfig,
    Qwen2Tokenizer,
    Qwen2VLImageProcessor,
    Qwen2VLVideoProcessor,
)

__all__ = ["SHAPES", "Shape", "random_checkpoint", "tiny_adapter", "tiny_checkpoint"]

# Part of the folder's name: raise it when anything below changes what is built.
_VERSION = 1

# Qwen2.5-VL's special tokens, in its own order.
_SPECIAL = (
    "<|endoftext|>",
    "<|im_start|>",
    "<|im_end|>",
    "<|object_ref_start|>",
    "<|object_ref_end|>",
    "<|box_start|>",
    "<|box_end|>",
    "<|quad_start|>",
    "<|quad_end|>",
    "<|vision_start|>",
    "<|vision_end|>",
    "<|vision_pad|>",
    "<|image_pad|>",
    "<|video_pad|>",
)
# Words with a token of their own, like each of their beginnings; all else is spelled in bytes. Ġ is a leading space.
_WORDS = "Ġthe Ġof Ġand Ġtotal Ġrevenue Ġinvoice Ġpage Ġtable Ġreport Ġimage Describe Query user what How Ġquick Ġyear"
_RANK = 4
_TARGETS = r".*model(?!.*visual).*\.(q|k|v|o|gate|up|down)_proj|.*custom_text_proj"


@dataclass(frozen=True, slots=True)
class Shape:
    """How large a checkpoint is. The real one: 36 x 2048, 16 heads, 2 of keys; vision 32 x 1280, 16 heads."""

    hidden: int
    layers: int
    heads: int
    kv_heads: int
    mlp: int
    mrope_section: tuple[int, int, int]
    vision_hidden: int
    vision_blocks: int
    vision_heads: int
    vision_mlp: int
    full_attention_blocks: tuple[int, ...]


SHAPES = {
    "tiny": Shape(64, 2, 4, 2, 128, (2, 3, 3), 64, 4, 2, 96, (1, 3)),
    # An eighth of the real widths, heads as wide as the real ones: for measuring arithmetic.
    "midsize": Shape(256, 6, 2, 1, 1376, (16, 24, 24), 160, 8, 2, 428, (3, 7)),
    # All the real layers, hardly any width: for counting operators.
    "real_depth": Shape(64, 36, 4, 2, 64, (2, 3, 3), 32, 32, 2, 32, (7, 15, 23, 31)),
}


def tiny_checkpoint(cache_dir: Path, seed: int = 0) -> Path:
    """Return the folder of `random_checkpoint` in the shape `tiny`."""
    return random_checkpoint(cache_dir, "tiny", seed)


def random_checkpoint(cache_dir: Path, shape: str, seed: int = 0) -> Path:
    """Return the folder of the checkpoint made from `seed` in one of `SHAPES`, building it first where it is missing.

    The same seed makes the same bytes. Any number of processes may race: the folder appears complete or not at all.
    """

    def build(folder: Path) -> None:
        tokenizer = _tokenizer()
        _network(tokenizer, SHAPES[shape], seed).save_pretrained(folder)
        ColQwen2_5_Processor(
            image_processor=Qwen2VLImageProcessor(), tokenizer=tokenizer, video_processor=Qwen2VLVideoProcessor()
        ).save_pretrained(folder)

    return _once(cache_dir, f"{shape}-v{_VERSION}-{seed}", build)


def tiny_adapter(cache_dir: Path, seed: int = 0, *, keys_of_2025: bool = False) -> Path:
    """Return the folder of a LoRA adapter on `tiny_checkpoint(cache_dir, seed)`, building both where they are missing.

    With `keys_of_2025` its tensors are named as in the adapters published then (`base_model.model.model.layers`), else
    as peft names them today; the weights are the same.
    """
    base = tiny_checkpoint(cache_dir, seed).resolve()

    def build(folder: Path) -> None:
        processor = ColQwen2_5_Processor.from_pretrained(base)
        processor.save_pretrained(folder)
        LoraConfig(
            r=_RANK,
            lora_alpha=_RANK,
            target_modules=_TARGETS,
            task_type="FEATURE_EXTRACTION",
            base_model_name_or_path=str(base),
            inference_mode=True,
        ).save_pretrained(str(folder))
        save_file(
            _lora(load_file(base / "model.safetensors"), seed, keys_of_2025=keys_of_2025),
            folder / "adapter_model.safetensors",
            metadata={"format": "pt"},
        )

    return _once(cache_dir, f"{base.name}-lora{'-2025' if keys_of_2025 else ''}", build)


def _once(cache_dir: Path, name: str, build: Callable[[Path], None]) -> Path:
    cache_dir = cache_dir.expanduser()
    folder = cache_dir / name
    if folder.is_dir():
        return folder
    cache_dir.mkdir(parents=True, exist_ok=True)
    with TemporaryDirectory(prefix=f".{name}-", dir=cache_dir) as scratch:
        built = Path(scratch, name)
        build(built)
        try:
            built.rename(folder)
        except OSError:
            # A directory cannot be renamed onto a full one: another process was first, and its bytes are ours.
            if not folder.is_dir():
                raise
    return folder


def _tokenizer() -> Qwen2Tokenizer:
    """A byte-level BPE whose merges spell each word from its left."""
    merges = dict.fromkeys((word[:end], word[end]) for word in _WORDS.split() for end in range(1, len(word)))
    symbols = [*sorted(ByteLevel.alphabet()), *("".join(pair) for pair in merges)]
    return Qwen2Tokenizer(
        vocab={symbol: index for index, symbol in enumerate(symbols)},
        merges=list(merges),  # type: ignore[arg-type]  # annotated as strings, read as pairs
        extra_special_tokens=list(_SPECIAL[1:]),
        model_max_length=131_072,
        padding_side="left",
    )


def _network(tokenizer: Qwen2Tokenizer, shape: Shape, seed: int) -> ColQwen2_5:
    ids = tokenizer.get_vocab()
    config = Qwen2_5_VLConfig(
        text_config={
            "vocab_size": len(tokenizer),
            "hidden_size": shape.hidden,
            "intermediate_size": shape.mlp,
            "num_hidden_layers": shape.layers,
            "num_attention_heads": shape.heads,
            "num_key_value_heads": shape.kv_heads,
            "max_position_embeddings": 128_000,
            "rope_parameters": {"rope_type": "default", "rope_theta": 1e6, "mrope_section": list(shape.mrope_section)},
            "bos_token_id": ids["<|endoftext|>"],
            "eos_token_id": ids["<|im_end|>"],
            "tie_word_embeddings": True,
        },
        vision_config={
            "depth": shape.vision_blocks,
            "hidden_size": shape.vision_hidden,
            "num_heads": shape.vision_heads,
            "intermediate_size": shape.vision_mlp,
            "out_hidden_size": shape.hidden,
            "fullatt_block_indexes": list(shape.full_attention_blocks),
            "window_size": 112,
        },
        image_token_id=ids["<|image_pad|>"],
        video_token_id=ids["<|video_pad|>"],
        vision_start_token_id=ids["<|vision_start|>"],
        vision_end_token_id=ids["<|vision_end|>"],
        tie_word_embeddings=True,
    )
    with torch.random.fork_rng(devices=[]):
        network = ColQwen2_5(config)
    draw = torch.Generator().manual_seed(seed)
    for name, weight in sorted(network.state_dict().items()):
        if weight.ndim > 1:
            # Unit-sized signals all the way, so that rows depend on what was read and MaxSim tells pages apart.
            scale = 1.0 if "embed_tokens" in name else weight[0].numel() ** -0.5
            weight.normal_(std=scale, generator=draw)
        elif name.endswith("bias"):
            weight.normal_(std=0.02, generator=draw)
    return network


def _lora(base: dict[str, torch.Tensor], seed: int, *, keys_of_2025: bool) -> dict[str, torch.Tensor]:
    draw = torch.Generator().manual_seed(seed)
    tensors = {}
    for name, weight in sorted(base.items()):
        module = name.removesuffix(".weight")
        if not re.fullmatch(_TARGETS, module):
            continue
        if keys_of_2025:
            module = module.replace("language_model.layers", "model.layers")
        rows, columns = weight.shape
        for matrix, shape in (("lora_A", (_RANK, columns)), ("lora_B", (rows, _RANK))):
            tensors[f"base_model.model.{module}.{matrix}.weight"] = torch.empty(shape).normal_(
                std=shape[1] ** -0.5, generator=draw
            )
    return tensors
