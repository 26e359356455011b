import io

import pypdfium2
from PIL import Image

from colqueue_client.pages import render_pages
from colqueue_client.sample import SAMPLE_PDF, SAMPLE_QUERY
from colqueue_client.sample.make_sample import make_sample


def test_the_committed_sample_is_what_the_script_makes():
    assert SAMPLE_PDF.read_bytes() == make_sample() == make_sample()
    assert len(make_sample()) < 50_000


def test_the_sample_holds_the_answer_to_its_query():
    with pypdfium2.PdfDocument(SAMPLE_PDF) as document:
        texts = [page.get_textpage().get_text_range() for page in document]

    assert len(texts) == 4
    assert "month was the most water delivered" in SAMPLE_QUERY
    assert "June was the peak" in texts[2]
    assert "Gärten" in texts[3]


def test_pages_are_rendered_as_png_in_order_and_at_150_dpi():
    images = [Image.open(io.BytesIO(png)) for png in render_pages(SAMPLE_PDF)]

    assert [image.format for image in images] == ["PNG"] * 4
    assert {image.size for image in images} == {(1240, 1755)}
    top_left = [image.convert("RGB").getpixel((5, 5)) for image in images]
    assert top_left[0] == (18, 84, 140), "the overview's blue band comes first"
    assert top_left[1:] == [(255, 255, 255)] * 3
