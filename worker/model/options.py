"""How a model is loaded and what it accepts. Knows no environment variable and no torch."""

from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

__all__ = ["TINY", "DType", "Engine", "ModelOptions"]

TINY = "tiny"

DType = Literal["auto", "float32", "bfloat16", "float16"]

Engine = Literal["auto", "fast", "stock"]


@dataclass(frozen=True, slots=True)
class ModelOptions:
    """What `worker.model.colqwen.load` needs to know. Immutable; the hub token stays out of `repr`."""

    name: str
    """A hub id, a folder, or `tiny` (built on first use, random weights)."""

    cache_dir: Path = Path("~/.cache/colqueue")
    """Where `tiny` is built; hub downloads follow HF_HOME."""

    device: str = "auto"
    """A torch device, or `auto`: the first GPU, else Apple's, else the CPU."""

    dtype: DType = "auto"
    """`auto`: bfloat16 on GPUs that compute in it, float16 on older ones, float32 elsewhere."""

    engine: Engine = "auto"
    """`auto`: the fast forward pass where it agrees with the stock one at start-up, else the stock one."""

    compile: bool = False
    """Compile what lies between the fast pass's matrix products (`worker.model.blocks.compiled`)."""

    max_visual_tokens: int = 768
    """Raised: pages are read at a finer resolution than the model was trained with (768), at more than linear cost."""

    max_text_tokens: int = 8192
    """Raised: longer queries pass (augmentation tokens count), and one alone may fill the device's memory."""

    max_image_pixels: int = 75_000_000
    """Raised: larger scans pass (A3 at 600 dpi is 70 million), and one needs 13 bytes a pixel while prepared."""

    query_prefix: str | None = None
    """Put before every query, as plain text; None keeps colpali-engine's own (`"Query: "` up to 0.3.9, empty since)."""

    hub_token: str | None = field(default=None, repr=False)
    """Opens private and gated repositories."""

    torch_threads: int | None = None
    """Raised: the forward pass uses more CPU cores, and preparation has fewer; None is torch's own choice."""
