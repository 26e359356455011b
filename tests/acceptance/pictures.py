"""Pages to send: deterministic image files of any size, and what a decoder should refuse. Knows PIL only."""

import base64
import io
import struct
import zlib
from typing import Final

import numpy as np
from PIL import Image

__all__ = ["A4", "as_base64", "bomb", "jpeg", "page", "png", "png_header"]

A4: Final = (1240, 1754)
"""A4 at 150 dpi."""


def page(width: int, height: int, seed: int = 0) -> Image.Image:
    """Return a page of dark strokes and grey blocks, different for each seed."""
    draw = np.random.default_rng([seed, width, height])
    pixels = np.full((height, width, 3), 255, np.uint8)
    for _ in range(40):
        top, left = draw.integers(height), draw.integers(width)
        pixels[top : top + 1 + height // 20, left : left + 1 + width // 5] = draw.integers(0, 220, 3)
    return Image.fromarray(pixels)


def png(width: int = 84, height: int = 112, seed: int = 0) -> bytes:
    return _saved(page(width, height, seed), "PNG")


def jpeg(width: int = 84, height: int = 112, seed: int = 0) -> bytes:
    return _saved(page(width, height, seed), "JPEG")


def as_base64(data: bytes) -> str:
    return base64.b64encode(data).decode()


def png_header(width: int, height: int) -> bytes:
    """Return a PNG that declares its size and holds no pixel."""
    return _png(width, height, b"")


def bomb(width: int, height: int) -> bytes:
    """Return a small, whole PNG of one colour that unpacks to 3 x width x height bytes."""
    packer = zlib.compressobj(9)
    line = bytes(1 + 3 * width)
    packed = b"".join(packer.compress(line) for _ in range(height)) + packer.flush()
    return _png(width, height, packed)


def _png(width: int, height: int, packed: bytes) -> bytes:
    header = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + _chunk(b"IHDR", header) + _chunk(b"IDAT", packed) + _chunk(b"IEND", b"")


def _chunk(kind: bytes, data: bytes) -> bytes:
    return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))


def _saved(image: Image.Image, form: str) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, form)
    return buffer.getvalue()
