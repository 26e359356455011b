"""What callers hand in as images and texts, and how it becomes the bytes and strings that are sent."""

import os
from collections.abc import Iterable, Iterator
from io import BytesIO
from pathlib import Path
from typing import IO, Any, Final, Protocol, TypeVar

from colqueue_client.wire import Input

__all__ = ["Image", "PillowImage", "SequenceOf", "StreamOf", "as_inputs", "images_as_bytes", "texts_as_list"]

T_co = TypeVar("T_co", covariant=True)


class PillowImage(Protocol):
    """The part of `PIL.Image.Image` that the client needs, so that it works without Pillow."""

    @property
    def mode(self) -> str:
        """The layout of its pixels: `RGB`, `L`, ..."""

    def convert(self, mode: str) -> Any:
        """Return a copy in another mode."""

    def getexif(self) -> Any:
        """Return the image's Exif block, which says among other things which side is up."""

    def save(self, fp: IO[bytes], format: str, **params: Any) -> None:  # noqa: A002 - Pillow names it so
        """Write the image file."""


Image = bytes | os.PathLike[str] | PillowImage
"""An image file (PNG, JPEG, WebP, TIFF ...), as its bytes or its path, or an image of Pillow's."""


class SequenceOf(Protocol[T_co]):
    """A list, a tuple or the like. A bare `str` or `bytes` is none, though Python takes it for a sequence.

    A `str` can only be asked whether it contains a `str`; that is how type checkers tell it from a list.
    """

    def __contains__(self, value: object, /) -> bool:
        """Return whether it holds the value."""

    def __iter__(self) -> Iterator[T_co]:
        """Go through it in order."""

    def __len__(self) -> int:
        """Return how many there are."""


StreamOf = SequenceOf[T_co] | Iterator[T_co]
"""Likewise, or a generator or another iterator."""

# PNG stores these modes as they are. TIFF stores all others but a few, which are converted without a visible loss.
_PNG_MODES: Final = frozenset({"1", "L", "LA", "I;16", "P", "RGB", "RGBA"})
_CONVERTED: Final = {"HSV": "RGB", "La": "LA", "RGBa": "RGBA"}


def images_as_bytes(images: Iterable[Image]) -> Iterator[bytes]:
    """Yield each image as the bytes of an image file; TypeError for one image where several are expected."""
    if isinstance(images, str | bytes | bytearray | memoryview | os.PathLike) or hasattr(images, "getexif"):
        raise TypeError("give a list of images: this is one image, or the path of one")
    return map(_image_bytes, images)


def texts_as_list(texts: Iterable[str]) -> list[str]:
    """Return the texts; TypeError for one text where several are expected."""
    return list(_texts(texts))


def as_inputs(images: Iterable[Image] | None, texts: Iterable[str] | None) -> tuple[str, Iterable[Input]]:
    """Return the input type and the inputs of a call that takes images or texts."""
    if (images is None) == (texts is None):
        raise TypeError("give images or texts, one of them")
    if images is not None:
        return "image", images_as_bytes(images)
    return "text", _texts(texts or ())


def _texts(texts: Iterable[str]) -> Iterable[str]:
    # Its letters would be embedded one by one.
    if isinstance(texts, str | bytes):
        raise TypeError("give a list of texts: this is one text")
    return texts


def _image_bytes(image: Image) -> bytes:
    if isinstance(image, bytes):
        return image
    if isinstance(image, str | os.PathLike):
        return Path(image).read_bytes()
    return _encode(image)


def _encode(image: PillowImage) -> bytes:
    """Return the image as a lossless file, so that the service decodes it by the same rules as any other file."""
    if not hasattr(image, "getexif"):
        raise TypeError(f"an image is bytes, a path, or an image of Pillow's, not {type(image).__name__}")
    if image.mode in _CONVERTED:
        image = image.convert(_CONVERTED[image.mode])
    file = BytesIO()
    if image.mode in _PNG_MODES:
        # The fastest level: the bytes go over the network once.
        image.save(file, "PNG", exif=image.getexif(), compress_level=1)
    else:
        image.save(file, "TIFF", exif=image.getexif())
    return file.getvalue()
