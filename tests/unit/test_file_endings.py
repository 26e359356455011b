"""The client takes the files that the service's decoder reads, by the endings of their names."""

import io

import pytest
from PIL import Image

from colqueue_client.backfill.sources import IMAGE, KINDS, TIFF
from worker.model.decode import FORMATS, decode_page

# Pillow reads MPO, the photos of stereo cameras, by way of its JPEG format.
READ = {*FORMATS, "MPO"}


def endings():
    Image.init()
    return {ending: form for ending, form in Image.registered_extensions().items() if form in READ}


def test_the_client_has_exactly_the_endings_of_the_formats_that_the_service_decodes():
    images = {ending for ending, kind in KINDS.items() if kind in {IMAGE, TIFF}}

    assert images == set(endings())


@pytest.mark.parametrize("ending", sorted(ending for ending, kind in KINDS.items() if kind in {IMAGE, TIFF}))
def test_a_file_of_each_ending_is_decoded(ending):
    image = Image.linear_gradient("L").resize((40, 30)).convert({".pbm": "1", ".pfm": "F"}.get(ending, "RGB"))
    data = io.BytesIO()
    image.save(data, endings()[ending])

    page = decode_page(data.getvalue(), max_pixels=10_000)

    assert (page.mode, page.size) == ("RGB", (40, 30))
