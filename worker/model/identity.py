"""All that a model's rows depend on beside the input, in one word. Knows weights and settings; knows no input."""

import hashlib
from importlib.metadata import version

import torch

from worker.model.libraries import ColQwen2_5, ColQwen2_5_Processor

__all__ = ["identity"]

# What decodes, prepares, embeds and pools; a release of any may change the last bits of a row.
_LIBRARIES = (
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


def identity(network: ColQwen2_5, processor: ColQwen2_5_Processor, engine: str) -> str:
    """Return a checksum of the weights as loaded, of how inputs are prepared, and of the versions of the libraries.

    Of the weights and not of their name: a hub's branch and a folder may hold others tomorrow. Reads all of them, at
    0.6 to 0.9 GiB/s on the machine where this was written.
    """
    told = hashlib.sha256()
    settings = (
        engine,
        str(network.device.type),
        processor.query_prefix,
        processor.query_augmentation_token,
        processor.visual_prompt_prefix,
        processor.image_processor.to_json_string(),
        processor.tokenizer.backend_tokenizer.to_str(),
        *(f"{library} {version(library)}" for library in _LIBRARIES),
    )
    for setting in settings:
        told.update(setting.encode() + b"\0")
    for name, weight in sorted(network.state_dict().items()):
        told.update(f"{name} {weight.dtype} {tuple(weight.shape)}".encode() + b"\0")
        told.update(weight.cpu().reshape(-1).view(torch.uint8).numpy())
    return told.hexdigest()
