"""The render process: opens documents and turns their pages into image files. Knows pypdfium2 and Pillow; no network.

A process of its own, because a native library that crashes or hangs on a broken file must take nothing else with it,
and because pypdfium2 may be used from one thread only. It reads tasks from stdin and writes answers to stdout, each as
msgpack behind its length; it ends with its stdin, and by SIGALRM when a task takes too long.
"""

import hashlib
import io
import os
import signal
import sys
import warnings
from collections.abc import Callable
from contextlib import closing
from pathlib import Path
from typing import Any, BinaryIO, Final

import msgpack
import pypdfium2
from PIL import Image

from colqueue_client.backfill.renderers import LENGTH
from colqueue_client.backfill.sources import IMAGE, PDF, signature

__all__ = ["answer", "main", "serve"]

_POINTS_PER_INCH: Final = 72
# A plan on A0 at 150 dpi is 35 million pixels; whatever is larger is rendered more coarsely.
_MAX_PIXELS: Final = 40_000_000
# pdfium's own number for a document that wants a password.
_PASSWORD: Final = 4
# What Pillow's TIFF plugin raises on damaged files.
_DAMAGE: Final = (OSError, ValueError, SyntaxError, EOFError, TypeError, LookupError, OverflowError, RuntimeError)

Failure = tuple[str, str]
"""A stable code, and a sentence."""


def answer(task: dict[str, Any]) -> dict[str, Any]:
    """Open a document, or render some of its pages.

    `{"path", "kind"}` is answered `{"sha256", "pages", "signature"}` or `{"failure": [code, sentence]}`, and with
    `"pages": [1, 4], "dpi", "signature"` it is `{"pages": [bytes | [code, sentence], ...]}`.
    """
    path, kind = os.fsdecode(task["path"]), task["kind"]
    try:
        if "pages" not in task:
            return _opened(path, kind)
        if signature(path) != task["signature"]:
            return _all_failed(task, ("source_changed", "the file changed while it was being embedded"))
        pages = _rendered(path, kind, task["pages"], task["dpi"])
        if signature(path) != task["signature"]:
            return _all_failed(task, ("source_changed", "the file changed while it was being embedded"))
    except OSError as error:
        return _all_failed(task, ("unreadable", f"the file cannot be read: {error.strerror or error}"))
    except MemoryError:
        return _all_failed(task, ("unreadable", "the file does not fit into memory"))
    return {"pages": pages}


def _all_failed(task: dict[str, Any], failure: Failure) -> dict[str, Any]:
    return {"pages": [failure for _ in task["pages"]]} if "pages" in task else {"failure": failure}


def _opened(path: str, kind: str) -> dict[str, Any]:
    before = signature(path)
    with Path(path).open("rb") as file:
        sha256 = hashlib.file_digest(file, "sha256").hexdigest()
    counted = _pages_of_pdf(path) if kind == PDF else 1 if kind == IMAGE else _pages_of_tiff(path)
    facts = {"sha256": sha256, "signature": before}
    return facts | ({"pages": counted} if isinstance(counted, int) else {"failure": counted})


def _pages_of_pdf(path: str) -> int | Failure:
    try:
        with closing(pypdfium2.PdfDocument(path)) as document:
            return len(document) or ("pdf_empty", "the PDF has no pages")
    except pypdfium2.PdfiumError as error:
        if getattr(error, "err_code", None) == _PASSWORD:
            return "pdf_encrypted", "the PDF wants a password"
        return "pdf_invalid", f"the PDF cannot be opened: {error}"


def _pages_of_tiff(path: str) -> int | Failure:
    try:
        with Image.open(path, formats=["TIFF"]) as image:
            return int(getattr(image, "n_frames", 1))
    except _DAMAGE as error:
        return "image_invalid", f"the TIFF cannot be opened: {error}"


def _rendered(path: str, kind: str, pages: list[int], dpi: int) -> list[bytes | Failure]:
    if kind == IMAGE:
        return [Path(path).read_bytes()]
    if kind == PDF:
        with closing(pypdfium2.PdfDocument(path)) as document:
            return [_pdf_page(document, page, dpi) for page in pages]
    with Image.open(path, formats=["TIFF"]) as image:
        return [_tiff_page(image, page) for page in pages]


def _pdf_page(document: pypdfium2.PdfDocument, number: int, dpi: int) -> bytes | Failure:
    try:
        with closing(document[number - 1]) as page:
            width, height = page.get_size()
            scale = dpi / _POINTS_PER_INCH
            scale *= min(1.0, (_MAX_PIXELS / max(1.0, width * height * scale**2)) ** 0.5)
            with closing(page.render(scale=scale)) as bitmap:
                return _png(bitmap.to_pil())
    except (pypdfium2.PdfiumError, ValueError) as error:
        return "pdf_page_invalid", f"the page cannot be rendered: {error}"


def _tiff_page(image: Image.Image, number: int) -> bytes | Failure:
    try:
        image.seek(number - 1)
        # Fax pages are bilevel, prints CMYK; PNG knows neither of the deep or the many-inked ones.
        return _png(image if image.mode in {"1", "L", "LA", "RGB", "RGBA", "I;16"} else image.convert("RGB"))
    except _DAMAGE as error:
        return "image_invalid", f"the page cannot be decoded: {error}"


def _png(image: Image.Image) -> bytes:
    data = io.BytesIO()
    image.save(data, "PNG", compress_level=1)  # a fifth of the time of the default, for a quarter more bytes
    return data.getvalue()


def serve(
    source: BinaryIO, target: BinaryIO, page_timeout_s: int, do: Callable[[dict[str, Any]], Any] = answer
) -> None:
    """Answer tasks until `source` ends or nobody reads `target`."""
    while header := source.read(LENGTH.size):
        task = msgpack.unpackb(source.read(*LENGTH.unpack(header)))
        signal.alarm(page_timeout_s * len(task.get("pages", [0])))
        packed = msgpack.packb(do(task))
        signal.alarm(0)
        target.write(LENGTH.pack(len(packed)) + packed)
        target.flush()


def main(do: Callable[[dict[str, Any]], Any] = answer) -> int:
    """Serve on stdin and stdout."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C reaches the whole group: our parent ends us
    signal.signal(signal.SIGALRM, signal.SIG_DFL)
    warnings.simplefilter("ignore")
    # What a native library prints must not come between the answers.
    target = os.fdopen(os.dup(sys.stdout.fileno()), "wb")
    os.dup2(sys.stderr.fileno(), sys.stdout.fileno())
    try:
        serve(sys.stdin.buffer, target, int(sys.argv[1]), do)
    except BrokenPipeError:
        os._exit(0)  # not by way of a flush that breaks again
    return 0


if __name__ == "__main__":
    sys.exit(main())
