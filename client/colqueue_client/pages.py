"""Pages of a PDF as image files. Knows pypdfium2, which is not thread-safe: one thread at a time."""

import io
from collections.abc import Iterator
from pathlib import Path

import pypdfium2

__all__ = ["render_pages"]

_POINTS_PER_INCH = 72


def render_pages(pdf: Path, *, dpi: int = 150) -> Iterator[bytes]:
    """Yield each page as a PNG, in order. At 150 dpi, morphik-core's choice, A4 is 1240 x 1754."""
    with pypdfium2.PdfDocument(pdf) as document:
        for page in document:
            png = io.BytesIO()
            page.render(scale=dpi / _POINTS_PER_INCH).to_pil().save(png, "PNG")
            yield png.getvalue()
