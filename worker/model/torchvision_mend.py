"""Lets torchvision's Python part load beside a torch its compiled part was not built for. Knows no model.

A CPU-only torch beside PyPI's torchvision (a CUDA build) cannot load `torchvision._C`; torchvision then describes
operators nobody declared, and its import fails. We need its Python part and never those operators.
"""

import sys
from importlib.machinery import PathFinder
from importlib.util import find_spec

import torch

__all__ = ["mend"]

_SCHEMA = "(Tensor dets, Tensor scores, float iou_threshold) -> Tensor"


def mend() -> bool:
    """Declare the operators that torchvision describes and cannot load, and return whether that was needed.

    Call before anything imports torchvision. Does nothing on a healthy installation, where torchvision is imported
    already, or on a second call.
    """
    if "torchvision" in sys.modules or _compiled_part_loads() or hasattr(torch.ops.torchvision, "nms"):
        return False
    for name in ("nms", "qnms"):
        torch.library.define(f"torchvision::{name}", _SCHEMA)
    return True


def _compiled_part_loads() -> bool:
    package = find_spec("torchvision")
    compiled = package and PathFinder.find_spec("_C", package.submodule_search_locations)
    if not compiled or not compiled.origin:
        return False
    try:
        torch.ops.load_library(compiled.origin)  # type: ignore[no-untyped-call]  # torch.ops is untyped
    except OSError:
        return False
    return True
