"""Counts and renders the pages of a document of any kind: a PDF, a TIFF of several frames, or another image."""

import os
import struct
import zlib
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Final

from PIL import Image, ImageOps

from colqueue_client.pages.encoding import encode_image, encode_pixels
from colqueue_client.pages.errors import RenderError
from colqueue_client.pages.limits import Limits, PageImage
from colqueue_client.pages.pdf import open_pdf, render_pdf_page

__all__ = ["count_pages", "render_pages", "render_selected"]

PDF: Final = "pdf"
TIFF: Final = "tiff"

# Pillow's formats that the service decodes. Others are slow, or start a program of their own (EPS).
_FORMATS: Final = ("JPEG", "PNG", "WEBP", "TIFF", "GIF", "BMP", "JPEG2000", "AVIF", "PPM")
# What Pillow's plugins raise on damaged files.
_DAMAGE: Final = (
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
# Of one decoded frame. A plan on A0 at 600 dpi in black and white has 0.56 GB in Pillow.
_MAX_DECODED_BYTES: Final = 2**30
_BYTES_A_PIXEL: Final = {"1": 1, "L": 1, "P": 1, "I;16": 2, "I;16B": 2}
_EXIF_ORIENTATION: Final = 0x0112
_FIRST_SIDEWAYS: Final = 5


def count_pages(path: str, kind: str, passwords: Sequence[str] = ()) -> int:
    """Return how many pages a document has; RenderError or OSError where it cannot be opened."""
    if kind == PDF:
        with open_pdf(path, passwords) as document:
            return len(document)
    if kind != TIFF:
        return 1
    with _open_tiff(path) as image:
        return int(getattr(image, "n_frames", 1))


def render_pages(pdf: str | os.PathLike[str], *, dpi: int = 150) -> Iterator[bytes]:
    """Yield each page of a PDF as an image file that the service takes."""
    with open_pdf(pdf) as document:
        for number in range(1, len(document) + 1):
            yield encode_pixels(render_pdf_page(document, number, dpi, Limits().max_pixels), Limits()).data


def render_selected(  # noqa: PLR0913 - a document, its pages, and how
    path: str, kind: str, pages: Sequence[int], *, dpi: int, limits: Limits, passwords: Sequence[str] = ()
) -> Iterator[PageImage | RenderError]:
    """Yield what becomes of each of these pages (from 1), in order; RenderError or OSError for the whole document."""
    if kind == PDF:
        with open_pdf(path, passwords) as document:
            for number in pages:
                try:
                    yield encode_pixels(render_pdf_page(document, number, dpi, limits.max_pixels), limits)
                except RenderError as error:
                    yield error
    elif kind == TIFF:
        with _open_tiff(path) as image:
            for number in pages:
                try:
                    yield _cut_frame(image, number, limits, path)
                except RenderError as error:
                    yield error
    else:
        yield _read_image(path, limits)


@contextmanager
def _open_tiff(path: str) -> Iterator[Image.Image]:
    try:
        image = Image.open(path, formats=["TIFF"])
    except _DAMAGE as error:
        raise RenderError("image_invalid", f"the TIFF cannot be opened: {error}") from error
    with image:
        yield image


def _cut_frame(image: Image.Image, number: int, limits: Limits, path: str) -> PageImage:
    """Return one frame as a file of its own, with its mode and exactly its pixels.

    The only frame of a file goes as the file is.
    """
    try:
        image.seek(number - 1)
        if getattr(image, "n_frames", 1) == 1 and _fits(image, path, limits):
            return PageImage(Path(path).read_bytes(), *image.size)
        _require_memory(image)
        image.load()  # which also turns it upright
    except _DAMAGE as error:
        raise RenderError("image_invalid", f"the page cannot be decoded: {error}") from error
    return encode_image(image, limits)


def _read_image(path: str, limits: Limits) -> PageImage:
    """Return an image file as it is, or one that is smaller where the service would refuse it for its size."""
    try:
        with Image.open(path, formats=_FORMATS) as image:
            if _fits(image, path, limits):
                return PageImage(Path(path).read_bytes(), *_upright_size(image))
            _require_memory(image)
            image.load()
            ImageOps.exif_transpose(image, in_place=True)
            return encode_image(image, limits)
    except _DAMAGE as error:
        if Path(path).stat().st_size > limits.max_bytes:
            raise RenderError("image_invalid", f"the image cannot be decoded: {error}") from error
    return PageImage(Path(path).read_bytes(), 0, 0)  # the service says what is wrong with it


def _fits(image: Image.Image, path: str, limits: Limits) -> bool:
    return image.width * image.height <= limits.max_pixels and Path(path).stat().st_size <= limits.max_bytes


def _require_memory(image: Image.Image) -> None:
    if image.width * image.height * _BYTES_A_PIXEL.get(image.mode, 4) > _MAX_DECODED_BYTES:
        raise RenderError("image_too_large", "the image would take more than 1 GB of memory")


def _upright_size(image: Image.Image) -> tuple[int, int]:
    # Pillow's TIFF plugin has done this already.
    turned = image.format != "TIFF" and image.getexif().get(_EXIF_ORIENTATION, 1) >= _FIRST_SIDEWAYS
    return (image.height, image.width) if turned else image.size
