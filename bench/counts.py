"""`python -m bench.counts MODEL`: what a page costs in operators and bytes, ours and stock; prints JSON.

Counted on one page, so free of noise: leaf operators (those that call no other) as torch.profiler sees them, and bytes
of the tensors handed to the model's device.
"""

import argparse
import io
import sys
from collections import Counter
from dataclasses import fields, is_dataclass
from typing import Any

import orjson
import torch
from PIL import Image

from bench.pages import page
from bench.profiles import leaf_operators
from worker.model.colqwen import load
from worker.model.libraries import ColQwen2_5, ColQwen2_5_Processor
from worker.model.options import ModelOptions

__all__ = ["count", "device_bytes", "main"]

# On a GPU each of these makes the host wait for a value.
_SYNCHRONISING = ("aten::_local_scalar_dense", "aten::nonzero", "aten::is_nonzero", "aten::_unique2")


def main() -> int:
    """Count, and tell."""
    parser = argparse.ArgumentParser(prog="python -m bench.counts")
    parser.add_argument("model", help="a checkpoint's folder")
    counted = count(parser.parse_args().model)
    sys.stdout.write(orjson.dumps(counted).decode() + "\n")
    return 0


def count(model: str) -> dict[str, Any]:
    """Return the counts of both, and ours over stock's."""
    ours, stock = _ours(model), _stock(model)
    return {
        "ours": ours,
        "stock": stock,
        "dispatch_ratio": (ours["prepare"] + ours["forward"]) / (stock["prepare"] + stock["forward"]),
        "dispatch_ratio_forward": ours["forward"] / stock["forward"],
        "device_bytes_ratio": ours["device_bytes"] / stock["device_bytes"],
    }


def device_bytes(value: Any) -> int:
    """Return the bytes of all tensors in `value`, a tensor or a nest of dataclasses, mappings and sequences of them."""
    if isinstance(value, torch.Tensor):
        return value.nbytes
    if is_dataclass(value):
        return sum(device_bytes(getattr(value, field.name)) for field in fields(value))
    if isinstance(value, dict):
        return sum(map(device_bytes, value.values()))
    return sum(map(device_bytes, value)) if isinstance(value, list | tuple) else 0


def _ours(model: str) -> dict[str, int]:
    ours = load(ModelOptions(name=model, device="cpu"))
    ours.warm_up()
    prepared = ours.prepare_page(page(0))
    prepare = leaf_operators(lambda: ours.prepare_page(page(0)))
    return _counts(prepare, leaf_operators(lambda: ours.embed([prepared])), device_bytes(prepared.features))


def _stock(model: str) -> dict[str, int]:
    network = ColQwen2_5.from_pretrained(model, dtype=torch.float32, attn_implementation="sdpa").eval()
    processor = ColQwen2_5_Processor.from_pretrained(model, max_num_visual_tokens=768)
    image = Image.open(io.BytesIO(page(0))).convert("RGB")
    batch = dict(processor.process_images([image]))
    prepare = leaf_operators(lambda: processor.process_images([image]))
    with torch.no_grad():
        network(**batch)
        return _counts(prepare, leaf_operators(lambda: network(**batch)), device_bytes(batch))


def _counts(prepare: Counter[str], forward: Counter[str], handed_over: int) -> dict[str, int]:
    return {
        "prepare": prepare.total(),
        "forward": forward.total(),
        "synchronising": sum(forward[name] for name in _SYNCHRONISING),
        "device_bytes": handed_over,
    }


if __name__ == "__main__":
    sys.exit(main())
