"""Turn documents into page images that the service takes: PDF pages, TIFF frames and image files.

Needs the extra `backfill`. PDFium is not thread-safe: use this package from one thread of a process at a time.
"""

from colqueue_client.pages.documents import count_pages, render_pages, render_selected
from colqueue_client.pages.errors import RenderError
from colqueue_client.pages.limits import Limits, PageImage

__all__ = ["Limits", "PageImage", "RenderError", "count_pages", "render_pages", "render_selected"]
