"""Opens PDFs with PDFium and renders their pages as a reader on a screen would show them."""

import math
import os
from collections.abc import Iterable, Iterator
from contextlib import closing, contextmanager
from typing import Any, Final

import numpy as np
import pypdfium2
import pypdfium2.raw as pdfium
from numpy.typing import NDArray

from colqueue_client.pages.errors import RenderError
from colqueue_client.pages.limits import MAX_ASPECT

__all__ = ["MAX_RENDERED_PIXELS", "open_pdf", "render_pdf_page"]

MAX_RENDERED_PIXELS: Final = 40_000_000
"""A page is rendered more coarsely where its pixels would be more. A0 at 150 dpi has 35 million."""

_POINTS_PER_INCH: Final = 72
# Bounds the memory of pages that are only a few points high and kilometres long.
_MAX_SIDE: Final = 30_000

_REFUSALS: Final = {
    pdfium.FPDF_ERR_FILE: ("unreadable", "the file cannot be read"),
    pdfium.FPDF_ERR_FORMAT: ("pdf_invalid", "the file is not a PDF, or it is damaged or cut short"),
    pdfium.FPDF_ERR_SECURITY: ("pdf_encrypted", "the PDF is encrypted in a way that cannot be read"),
}


@contextmanager
def open_pdf(path: str | os.PathLike[str], passwords: Iterable[str] = ()) -> Iterator[pypdfium2.PdfDocument]:
    """Open a PDF with its form fields; try each of `passwords` where it is encrypted.

    Raises RenderError with `pdf_invalid`, `pdf_encrypted`, `pdf_empty`, or `pdf_xfa` for a form whose pages only Adobe
    Reader can draw.
    """
    with closing(pypdfium2.PdfDocument(_load(path, list(passwords)))) as document:
        if len(document) < 1:
            raise RenderError("pdf_empty", "the PDF has no pages, or its list of pages is damaged")
        if document.get_formtype() != pdfium.FORMTYPE_NONE:
            if _is_placeholder(document):
                raise RenderError("pdf_xfa", "the PDF is a dynamic XFA form, which only Adobe Reader can display")
            _init_forms(document)
        yield document


def render_pdf_page(document: pypdfium2.PdfDocument, number: int, dpi: int, max_pixels: int) -> NDArray[np.uint8]:
    """Return page `number` (from 1) as height x width x 3 RGB values, with its annotations and filled-in fields.

    Raises RenderError where the page is damaged.
    """
    max_pixels = min(max_pixels, MAX_RENDERED_PIXELS)
    try:
        with closing(document[number - 1]) as page:
            width, height = (max(side, 1e-3) for side in page.get_size())
            scale = min(dpi / _POINTS_PER_INCH, (max_pixels / (width * height)) ** 0.5, _MAX_SIDE / max(width, height))
            # The number of pixels on each side is rounded up.
            while math.ceil(width * scale) * math.ceil(height * scale) > max_pixels:
                scale *= 0.999
            # PDFium draws the text of fields with coloured edges, as for an LCD, unless the bitmap has transparency.
            layout = pdfium.FPDFBitmap_BGRA if document.formenv else pdfium.FPDFBitmap_BGR
            with closing(page.render(scale=scale, rev_byteorder=True, force_bitmap_format=layout)) as bitmap:
                return _pad(bitmap.to_numpy()[..., :3])
    except (pypdfium2.PdfiumError, ValueError) as error:
        raise RenderError("pdf_page_invalid", f"the page cannot be rendered: {error}") from error


def _load(path: str | os.PathLike[str], passwords: list[str]) -> Any:
    """Return PDFium's handle.

    pypdfium2 also asks PDFium for the error where a document was loaded and has no pages, and is then told the error of
    whichever document failed before.
    """
    for password in [None, *passwords]:
        if handle := pdfium.FPDF_LoadDocument(os.fsencode(path), None if password is None else password.encode()):
            return handle
        if (error := pdfium.FPDF_GetLastError()) != pdfium.FPDF_ERR_PASSWORD:
            raise RenderError(*_REFUSALS.get(error, ("pdf_invalid", "the PDF is damaged")))
    tried = "none of the given passwords opens it" if passwords else "no password is given"
    raise RenderError("pdf_encrypted", f"the PDF is encrypted and {tried}")


def _init_forms(document: pypdfium2.PdfDocument) -> None:
    try:
        document.init_forms()
    except pypdfium2.PdfiumError as error:
        raise RenderError("pdf_invalid", "the form fields of the PDF cannot be read") from error


def _is_placeholder(document: pypdfium2.PdfDocument) -> bool:
    """Return whether the only page stands in for an XFA form that PDFium cannot lay out.

    A dynamic XFA form says that it `NeedsRendering`; older ones only ask the reader to wait for Adobe Reader. A form
    with fields on its page is one that any reader shows.
    """
    kind = document.get_formtype()
    if kind not in {pdfium.FORMTYPE_XFA_FULL, pdfium.FORMTYPE_XFA_FOREGROUND} or len(document) > 1:
        return False
    try:
        with closing(document[0]) as page:
            if _has_fields(page):
                return False
            if kind == pdfium.FORMTYPE_XFA_FULL:
                return True
            with closing(page.get_textpage()) as text:
                words = text.get_text_range().lower()
    except pypdfium2.PdfiumError:
        return False  # the page is damaged, and rendering it says so
    return "please wait" in words or "adobe" in words


def _has_fields(page: pypdfium2.PdfPage) -> bool:
    for index in range(pdfium.FPDFPage_GetAnnotCount(page)):
        annotation = pdfium.FPDFPage_GetAnnot(page, index)
        kind = pdfium.FPDFAnnot_GetSubtype(annotation)
        pdfium.FPDFPage_CloseAnnot(annotation)
        if kind == pdfium.FPDF_ANNOT_WIDGET:
            return True
    return False


def _pad(pixels: NDArray[np.uint8]) -> NDArray[np.uint8]:
    """Widen a page that is too narrow for the service with white."""
    height, width, channels = pixels.shape
    least = math.ceil(max(height, width) / MAX_ASPECT)
    if min(height, width) >= least:
        return pixels
    padded = np.full((max(height, least), max(width, least), channels), 255, np.uint8)
    padded[:height, :width] = pixels
    return padded
