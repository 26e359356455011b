"""Identify a loaded checkpoint, and the results that a process computes with it."""

import hashlib
from dataclasses import dataclass
from importlib.metadata import version
from typing import Final

import torch

from worker.model.libraries import ColQwen2_5, ColQwen2_5_Processor

__all__ = ["Identity", "identify"]

_MODEL_ID_DIGITS: Final = 12

# Libraries that decode, prepare, embed and pool. A release of any of them may change the last bits of a row.
_LIBRARIES: Final = (
    "colpali-engine",
    "colqueue",
    "numpy",
    "pillow",
    "scipy",
    "tokenizers",
    "torch",
    "torchvision",
    "transformers",
)


@dataclass(frozen=True, slots=True)
class Identity:
    """Two checksums of one model."""

    model_id: str
    """12 hex digits of SHA-256 over the weights as loaded and the preparation's settings.

    Jobs are bound to it. It is the same in every process that loads the same checkpoint at the same precision with the
    same settings, also after an upgrade of colqueue.
    """
    results_key: str
    """SHA-256 over the same, the engine, the kind of device and the versions of the libraries.

    Results kept by content are found under it: they must be equal to the last bit.
    """


def identify(network: ColQwen2_5, processor: ColQwen2_5_Processor, engine: str) -> Identity:
    """Return the identity of a model.

    The weights count and not their name: a hub's branch and a folder may hold others tomorrow. This reads all of them,
    at 0.6 to 0.9 GiB/s on two CPU cores.
    """
    checkpoint = hashlib.sha256()
    settings = (
        processor.query_prefix,
        processor.query_augmentation_token,
        processor.visual_prompt_prefix,
        processor.image_processor.to_json_string(),
        processor.tokenizer.backend_tokenizer.to_str(),
    )
    for setting in settings:
        checkpoint.update(setting.encode() + b"\0")
    for name, weight in sorted(network.state_dict().items()):
        checkpoint.update(f"{name} {weight.dtype} {tuple(weight.shape)}".encode() + b"\0")
        checkpoint.update(weight.cpu().reshape(-1).view(torch.uint8).numpy())
    digest = checkpoint.hexdigest()
    process = (digest, engine, network.device.type, *(f"{library} {version(library)}" for library in _LIBRARIES))
    return Identity(digest[:_MODEL_ID_DIGITS], hashlib.sha256("\0".join(process).encode()).hexdigest())
