"""What the service takes as one page image, and the record of a page image that fits."""

from dataclasses import dataclass
from typing import Final

__all__ = ["MAX_ASPECT", "Limits", "PageImage"]

MAX_ASPECT: Final = 200
"""The service refuses an image whose one side is more than so many times the other (the model's own limit)."""


@dataclass(frozen=True, slots=True)
class Limits:
    """What the service takes as one image. The defaults are the service's own defaults."""

    max_bytes: int = 32 * 2**20
    """The service's `COLQUEUE_MAX_INPUT_BYTES`."""
    max_pixels: int = 75_000_000
    """The service's `COLQUEUE_MAX_IMAGE_PIXELS`."""


@dataclass(frozen=True, slots=True)
class PageImage:
    """One page as an image file."""

    data: bytes
    width: int
    """In pixels of the upright image, as the service sees it; 0 where the image's header cannot be read."""
    height: int
    """Likewise."""
