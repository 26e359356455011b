"""Decode the bytes of one page into the RGB image that a reader would see."""

import struct
import zlib
from contextlib import suppress
from io import BytesIO

import numpy as np
from PIL import Image, ImageOps

from shared.cost import MAX_ASPECT
from shared.errors import ImageAspectError, ImageInvalidError, ImageTooLargeError

__all__ = ["FORMATS", "decode_page"]

# Pillow's other formats are rare, slow, or start a program of their own (EPS).
FORMATS = ("JPEG", "PNG", "WEBP", "TIFF", "GIF", "BMP", "JPEG2000", "AVIF", "PPM")
"""The formats of documents that are read; the client's list of file endings follows from them."""

# What Pillow's plugins raise on damaged files.
_DAMAGE = (
    OSError,
    ValueError,
    SyntaxError,
    EOFError,
    TypeError,
    LookupError,
    OverflowError,
    RuntimeError,
    struct.error,
    zlib.error,
)


def decode_page(data: bytes, max_pixels: int) -> Image.Image:
    """Return the page as an upright, opaque RGB image: the first frame, on white, at 8 bits.

    Raises `ImageInvalidError`, `ImageTooLargeError` or `ImageAspectError`, the last two before pixels are read.
    """
    try:
        image: Image.Image = Image.open(BytesIO(data), formats=FORMATS)
        _check_size(*image.size, max_pixels)
        image.load()
        return _rgb(_upright(image))
    except (Image.DecompressionBombError, Image.DecompressionBombWarning) as error:
        raise _too_large(max_pixels) from error
    except _DAMAGE as error:
        raise ImageInvalidError(_why_not(data)) from error


def _check_size(width: int, height: int, max_pixels: int) -> None:
    if width * height > max_pixels:
        raise _too_large(max_pixels)
    if max(width, height) > MAX_ASPECT * min(width, height):
        raise ImageAspectError(f"one side of the image is more than {MAX_ASPECT} times the other")


def _too_large(max_pixels: int) -> ImageTooLargeError:
    return ImageTooLargeError(f"the image has more than {max_pixels} pixels")


def _why_not(data: bytes) -> str:
    start = data[:1024].lstrip().lower()
    if not data:
        return "the image is empty"
    if start.startswith(b"%pdf-"):
        return "this is a PDF: send its pages as images"
    if start.startswith((b"<svg", b"<?xml")) and b"<svg" in start:
        return "this is an SVG: send it as PNG"
    return f"the image cannot be decoded: it is damaged, cut short, or none of {', '.join(FORMATS)}"


def _upright(image: Image.Image) -> Image.Image:
    with suppress(*_DAMAGE):  # a damaged orientation is no reason to refuse the pixels
        ImageOps.exif_transpose(image, in_place=True)
    return image


def _rgb(image: Image.Image) -> Image.Image:
    if image.mode.startswith(("I", "F")):
        image = _eight_bits(image)
    if image.has_transparency_data:
        page = image.convert("RGBA")
        image = Image.alpha_composite(Image.new("RGBA", page.size, "white"), page)
    return image.convert("RGB")


def _eight_bits(image: Image.Image) -> Image.Image:
    """Scale deep greyscale to 0..255: integers from 16 bits, floats from the least usual scale that holds them."""
    values = np.nan_to_num(np.asarray(image, dtype=np.float32), posinf=0, neginf=0)
    top = float(values.max())
    scales = (1.0, 255.0, 65535.0) if image.mode == "F" else (65535.0,)
    scale = next((scale for scale in scales if top <= scale), top)
    return Image.fromarray((values.clip(0) * (255 / scale)).round().astype(np.uint8))
