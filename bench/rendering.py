"""Measures how fast one core turns PDF pages into page images, for each lossless form that the service reads.

`python -m bench.rendering [FILE.pdf ...]` renders the first pages of the given files, or of the sample, at 150 dpi, and
one page of noise on a slope in place of a photograph. Times are processor time, so that other programs matter little.
"""

import argparse
import io
import sys
import time
from collections.abc import Callable, Iterator, Mapping
from functools import partial
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from colqueue_client.pages import Limits
from colqueue_client.pages.encoding import encode_pixels
from colqueue_client.pages.pdf import open_pdf, render_pdf_page
from colqueue_client.sample import SAMPLE_PDF
from worker.model.decode import decode_page

__all__ = ["main"]

_DPI: Final = 150
_PAGES_A_FILE: Final = 20
_REPEATS: Final = 3
_MAX_PIXELS: Final = 75_000_000


def _saved(pixels: NDArray[np.uint8], form: str, **options: Any) -> bytes:
    data = io.BytesIO()
    Image.fromarray(pixels).save(data, form, **options)
    return data.getvalue()


FORMS: Final[Mapping[str, Callable[[NDArray[np.uint8]], bytes]]] = {
    "PNG by Pillow, level 1 (before)": partial(_saved, form="PNG", compress_level=1),
    "PNG by Pillow, level 6": partial(_saved, form="PNG", compress_level=6),
    "WebP lossless, fastest": partial(_saved, form="WEBP", lossless=True, quality=0, method=0),
    "TIFF, deflate": partial(_saved, form="TIFF", compression="tiff_adobe_deflate"),
    "PPM": partial(_saved, form="PPM"),
    "encode_pixels (now)": lambda pixels: encode_pixels(pixels, Limits()).data,
}


def main() -> None:
    """Print a table for the pages of the PDFs, and one for the photograph."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("files", nargs="*", default=[str(SAMPLE_PDF)], metavar="FILE.pdf")
    files = parser.parse_args().files
    # Both renderers differ in what follows the rendering only.
    started = time.process_time()
    pages = list(_pages(files))
    rendering_ms = 1000 * (time.process_time() - started) / len(pages)
    grey = sum(bool((page == page[..., :1]).all()) for page in pages)
    sys.stdout.write(
        f"{len(pages)} pages at {_DPI} dpi, {grey} of them grey; rendering: {rendering_ms:.1f} ms per page\n"
    )
    _table(pages, rendering_ms)
    sys.stdout.write("\none page of noise on a slope, in place of a photograph; rendering is left out\n")
    _table([_photo()], 0)


def _pages(files: list[str]) -> Iterator[NDArray[np.uint8]]:
    for file in files:
        with open_pdf(file) as document:
            for number in range(1, min(len(document), _PAGES_A_FILE) + 1):
                yield render_pdf_page(document, number, _DPI, _MAX_PIXELS)


def _photo() -> NDArray[np.uint8]:
    noise = np.random.default_rng(0)
    slope = np.linspace(0, 200, 1754)[:, None, None] + np.linspace(0, 40, 1240)[None, :, None]
    return (slope + noise.normal(0, 3, (1754, 1240, 3))).clip(0, 255).astype(np.uint8)


def _table(pages: list[NDArray[np.uint8]], rendering_ms: float) -> None:
    sys.stdout.write(f"{'form':34}{'encode ms':>10}{'KiB':>8}{'decode ms':>10}{'pages/s/core':>14}\n")
    for name, encode in FORMS.items():
        encode_ms, images = _measure(encode, pages)
        decode_ms, decoded = _measure(lambda image: np.asarray(decode_page(image, _MAX_PIXELS)), images)
        if not all(map(np.array_equal, pages, decoded)):
            raise SystemExit(f"{name}: the service sees other pixels")
        size = sum(map(len, images)) / len(images) / 1024
        rate = 1000 / (rendering_ms + encode_ms)
        sys.stdout.write(f"{name:34}{encode_ms:10.1f}{size:8.0f}{decode_ms:10.1f}{rate:14.1f}\n")


def _measure(do: Callable[[Any], Any], values: list[Any]) -> tuple[float, list[Any]]:
    """Return the milliseconds of processor time per value, the least of some rounds, and the results."""
    taken = []
    for _ in range(_REPEATS):
        started = time.process_time()
        results = [do(value) for value in values]
        taken.append(1000 * (time.process_time() - started) / len(values))
    return min(taken), results


if __name__ == "__main__":
    main()
