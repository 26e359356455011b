"""Encodes page images, losslessly and fast, and makes those smaller that the service would refuse."""

import io
import struct
import zlib
from typing import Final

import numpy as np
from isal import isal_zlib
from numpy.typing import NDArray
from PIL import Image

from colqueue_client.pages.errors import RenderError
from colqueue_client.pages.limits import Limits, PageImage

__all__ = ["encode_image", "encode_pixels", "encode_png"]

Pixels = NDArray[np.uint8]
"""Height x width (grey) or height x width x 3 (RGB)."""

# Level 1 of Intel's ISA-L: about ten times as fast as zlib's level 1 on pages, for about as many bytes
# (`python -m bench.rendering`).
_LEVEL: Final = 1
# Filter types 0 and 2 of the PNG specification, section 9.2.
_NO_FILTER: Final = 0
_UP_FILTER: Final = 2
# Text and drawings compress to less than a tenth of their pixels without a filter; photographs to most of them.
_PHOTO_RATIO: Final = 0.3
_SAMPLED_ROW: Final = 16

_JPEG_QUALITY: Final = 95
_MAX_JPEG_SIDE: Final = 65_000
# Modes that JPEG holds without a change of meaning: no deep grey, no palette, no inks, no transparency.
_JPEG_MODES: Final = frozenset({"1", "L", "RGB"})
# Modes whose pixels PNG holds exactly. What else Pillow has goes into a TIFF of the same mode.
_PNG_MODES: Final = frozenset({"1", "L", "LA", "P", "RGB", "RGBA"})
_SMALLEST_SIDE: Final = 28


def encode_pixels(pixels: Pixels, limits: Limits) -> PageImage:
    """Return 8-bit pixels as a PNG, grey ones with one channel. What is too large becomes a JPEG, then a smaller one.

    The pixels must be within `limits.max_pixels`. Raises RenderError where not even a tiny image is within `max_bytes`.
    """
    if pixels.ndim == 3 and _is_grey(pixels):  # noqa: PLR2004 - three axes: there are channels
        pixels = pixels[..., 0]
    data = encode_png(pixels)
    if len(data) <= limits.max_bytes:
        height, width = pixels.shape[:2]
        return PageImage(data, width, height)
    return _shrink(Image.fromarray(pixels), limits)


def encode_image(image: Image.Image, limits: Limits) -> PageImage:
    """Return an image of any mode as a file with exactly its pixels, scaled down only where that exceeds the limits.

    The service decides how deep grey, palettes, inks and transparency become RGB, so the mode is kept.

    Raises RenderError where not even a tiny image is within the limits.
    """
    image = _scale(image, min(1.0, (limits.max_pixels / (image.width * image.height)) ** 0.5))
    if image.mode in {"L", "RGB"}:
        return encode_pixels(np.asarray(image), limits)
    data = _encode_mode(image)
    return PageImage(data, *image.size) if len(data) <= limits.max_bytes else _shrink(image, limits)


def encode_png(pixels: Pixels) -> bytes:
    """Return pixels as a PNG.

    Pillow tries five filters on every row, which takes most of its time and makes pages of text larger. Here all rows
    have the same filter: none, or for photographs the difference from the row above.
    """
    height, width = pixels.shape[:2]
    rows = np.empty((height, 1 + pixels.size // height), np.uint8)
    flat = pixels.reshape(height, -1)
    if _is_photo(flat):
        rows[:, 0] = _UP_FILTER
        rows[0, 1:] = flat[0]
        np.subtract(flat[1:], flat[:-1], out=rows[1:, 1:])
    else:
        rows[:, 0] = _NO_FILTER
        rows[:, 1:] = flat
    color_type = 0 if pixels.ndim == 2 else 2  # noqa: PLR2004 - two axes: grey
    header = struct.pack(">IIBBBBB", width, height, 8, color_type, 0, 0, 0)
    chunks = [(b"IHDR", header), (b"IDAT", isal_zlib.compress(rows, _LEVEL)), (b"IEND", b"")]
    return b"\x89PNG\r\n\x1a\n" + b"".join(
        struct.pack(">I", len(data)) + name + data + struct.pack(">I", zlib.crc32(data, zlib.crc32(name)))
        for name, data in chunks
    )


def _is_grey(pixels: Pixels) -> bool:
    red, green, blue = pixels[..., 0], pixels[..., 1], pixels[..., 2]
    # Most coloured pages show it in a few rows already.
    return all(
        np.array_equal(red[start::_SAMPLED_ROW], other[start::_SAMPLED_ROW])
        for start in range(_SAMPLED_ROW)
        for other in (green, blue)
    )


def _is_photo(flat: Pixels) -> bool:
    sample = np.ascontiguousarray(flat[::_SAMPLED_ROW])
    return len(isal_zlib.compress(sample, _LEVEL)) > _PHOTO_RATIO * sample.size


def _encode_mode(image: Image.Image) -> bytes:
    data = io.BytesIO()
    if image.mode in _PNG_MODES:
        image.save(data, "PNG", compress_level=1)
    else:
        # libtiff reads compressed YCbCr as something else than what was written.
        image.save(data, "TIFF", compression="raw" if image.mode == "YCbCr" else "tiff_adobe_deflate")
    return data.getvalue()


def _encode_jpeg(image: Image.Image) -> bytes:
    data = io.BytesIO()
    image.save(data, "JPEG", quality=_JPEG_QUALITY, subsampling=0)
    return data.getvalue()


def _shrink(image: Image.Image, limits: Limits) -> PageImage:
    """Return an image whose lossless file is too large as a JPEG, if its mode allows that, scaled down as needed."""
    is_jpeg = image.mode in _JPEG_MODES
    encode = _encode_jpeg if is_jpeg else _encode_mode
    factor = min(1.0, _MAX_JPEG_SIDE / max(image.size)) if is_jpeg else 1.0
    while True:
        image = _scale(image, factor)
        data = encode(image)
        if len(data) <= limits.max_bytes:
            return PageImage(data, *image.size)
        if max(image.size) <= _SMALLEST_SIDE:
            raise RenderError("too_large", f"the page does not fit into {limits.max_bytes} bytes at any size")
        factor = min(0.9, 0.9 * (limits.max_bytes / len(data)) ** 0.5)


def _scale(image: Image.Image, factor: float) -> Image.Image:
    if factor == 1:
        return image
    smooth = {"1": "L", "P": "RGBA", "PA": "RGBA"}  # an average of palette indices means nothing
    if image.mode in smooth:
        image = image.convert(smooth[image.mode])
    width, height = (max(1, int(side * factor)) for side in image.size)
    return image.resize((width, height), Image.Resampling.BOX)
