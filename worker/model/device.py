"""Which device, number type and attention suit this machine. Knows torch's devices; knows no checkpoint."""

from importlib.util import find_spec

import torch

from worker.model.options import DType

__all__ = ["choose_attention", "choose_device", "choose_dtype", "has_flash_attention"]

# The first generation that computes in bfloat16 and runs flash attention 2. (is_bf16_supported() is true by emulation
# on older ones, too.)
_AMPERE = (8, 0)


def choose_device(name: str) -> torch.device:
    """Return the device called `name`; for `auto` the first GPU, else Apple's, else the CPU."""
    if name == "auto":
        apple = "mps" if torch.backends.mps.is_available() else "cpu"  # never run: no Mac was at hand
        name = "cuda" if torch.cuda.is_available() else apple
    return torch.device(name)


def choose_dtype(name: DType, device: torch.device) -> torch.dtype:
    """Return the type called `name`; for `auto` what `device` computes in natively, at half width where it can."""
    if name != "auto":
        return {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}[name]
    if device.type != "cuda":
        return torch.float32
    return torch.bfloat16 if torch.cuda.get_device_capability(device) >= _AMPERE else torch.float16


def choose_attention(device: torch.device, dtype: torch.dtype) -> str:
    """Return transformers' name of the fastest attention that `device` runs in `dtype` and that is installed."""
    flash = has_flash_attention(device, dtype) and find_spec("flash_attn") is not None
    return "flash_attention_2" if flash else "sdpa"


def has_flash_attention(device: torch.device, dtype: torch.dtype) -> bool:
    """Return whether torch's own flash attention, for segments of any length, runs on `device` in `dtype`."""
    return device.type == "cuda" and dtype != torch.float32 and torch.cuda.get_device_capability(device) >= _AMPERE
