"""The pages and queries that every contestant reads, the same bytes each time. Knows drawing; knows no contestant."""

import io
import random
from functools import cache

import pypdfium2
from PIL import Image, ImageDraw, ImageFont

from colqueue_client.sample import SAMPLE_PDF

__all__ = ["DISTINCT", "page", "pages", "query"]

DISTINCT = 16
"""So many different pages there are; more repeat."""

_DPI = 150  # morphik-core's choice; A4 is then 1240 x 1754
_INK = (34, 40, 51)
_PROSE = """
the of and report water revenue quarter delivered total invoice table page contract between parties shall
increase margin cost station pressure valve network customer region annual figure decrease average litre
"""
_WORDS = _PROSE.split()


@cache
def page(number: int) -> bytes:
    """Return one A4 page as PNG: a page of the sample document with text, a table and bars of its own below."""
    draw = random.Random(number % DISTINCT)  # noqa: S311 - the same pages each time, nothing secret
    with pypdfium2.PdfDocument(SAMPLE_PDF) as document:
        image = document[number % len(document)].render(scale=_DPI / 72).to_pil().convert("RGB")
    brush = ImageDraw.Draw(image)
    top = int(image.height * draw.uniform(0.45, 0.6))
    brush.rectangle((0, top, image.width, image.height), "white")
    top = _text(brush, draw, top, lines=12)
    top = _table(brush, draw, top, rows=6)
    _bars(brush, draw, top, image.height - 60)
    return _png(image)


def pages(count: int) -> list[bytes]:
    """Return the first `count` pages."""
    return [page(number % DISTINCT) for number in range(count)]


def query(number: int) -> str:
    """Return a question of some 12 words."""
    draw = random.Random(number)  # noqa: S311 - the same queries each time, nothing secret
    return f"In which {' '.join(draw.choices(_WORDS, k=10))}?"


def _text(brush: ImageDraw.ImageDraw, draw: random.Random, top: int, lines: int) -> int:
    font = ImageFont.load_default(22)
    for line in range(lines):
        brush.text((118, top + 30 * line), " ".join(draw.choices(_WORDS, k=13)), _INK, font)
    return top + 30 * lines + 20


def _table(brush: ImageDraw.ImageDraw, draw: random.Random, top: int, rows: int) -> int:
    font = ImageFont.load_default(20)
    for row in range(rows):
        y = top + 32 * row
        brush.line((118, y, 1122, y), (200, 206, 214), 2)
        brush.text((118, y + 5), draw.choice(_WORDS), _INK, font)
        for column in range(4):
            brush.text((420 + 180 * column, y + 5), f"{draw.uniform(0, 9999):,.2f}", _INK, font)
    return top + 32 * rows + 30


def _bars(brush: ImageDraw.ImageDraw, draw: random.Random, top: int, bottom: int) -> None:
    for bar in range(16):
        height = draw.uniform(0.1, 1) * max(bottom - top, 0)
        brush.rectangle((118 + 63 * bar, bottom - height, 160 + 63 * bar, bottom), (18, 84 + 7 * bar, 140))


def _png(image: Image.Image) -> bytes:
    data = io.BytesIO()
    image.save(data, "PNG")
    return data.getvalue()
