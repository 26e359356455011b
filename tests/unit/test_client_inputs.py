"""Images and texts as callers hand them in. What Pillow's images become is compared by the service's own decoder."""

from io import BytesIO

import numpy as np
import pytest
from PIL import Image

from colqueue_client.inputs import as_inputs, images_as_bytes, texts_as_list
from worker.model.decode import decode_page

RANDOM = np.random.default_rng(7)
PICTURE = Image.fromarray(RANDOM.integers(0, 255, (40, 30, 4), dtype=np.uint8), "RGBA")
DEEP = Image.fromarray(RANDOM.integers(0, 65_535, (40, 30), dtype=np.uint16))


def in_mode(mode):
    if mode == "I;16":
        return DEEP
    if mode in {"I", "F"}:
        return DEEP.convert("I").convert(mode)
    if mode in {"La", "RGBa"}:
        return PICTURE.convert(mode.upper()).convert(mode)
    if mode in {"HSV", "YCbCr"}:
        return PICTURE.convert("RGB").convert(mode)
    return PICTURE.convert(mode)


def seen(data):
    return np.asarray(decode_page(data, 10**6))


@pytest.mark.parametrize(
    "mode", ["1", "L", "LA", "La", "P", "RGB", "RGBA", "RGBa", "RGBX", "CMYK", "YCbCr", "HSV", "I", "I;16", "F"]
)
def test_an_image_of_pillows_is_sent_without_loss_in_every_mode(mode):
    image = in_mode(mode)
    (data,) = images_as_bytes([image])

    sent = Image.open(BytesIO(data))

    # In these modes no file format has its pixels.
    if mode in (seen_as := {"HSV": "RGB", "La": "LA", "RGBa": "RGBA", "RGBX": "RGB"}):
        image = image.convert(seen_as[mode])
    assert np.array_equal(np.asarray(sent), np.asarray(image))
    assert seen(data).shape == (40, 30, 3)


def test_an_opened_photo_stays_upright_and_equals_its_file():
    exif = Image.Exif()
    exif[0x0112] = 6  # orientation: turn it by 90 degrees
    file = BytesIO()
    PICTURE.convert("RGB").save(file, "JPEG", exif=exif)

    (data,) = images_as_bytes([Image.open(file)])

    assert np.array_equal(seen(data), seen(file.getvalue()))
    assert seen(data).shape == (30, 40, 3)


def test_a_palette_keeps_its_transparent_colour():
    image = Image.new("P", (30, 40), 1)
    image.putpalette([0, 0, 0, 200, 0, 0])
    image.info["transparency"] = 1

    (data,) = images_as_bytes([image])

    assert (seen(data) == 255).all(), "transparent is white"


@pytest.mark.parametrize("one", [b"\x89PNG", "page.png", PICTURE])
def test_one_image_in_place_of_a_list_is_refused(one):
    with pytest.raises(TypeError, match="give a list of images"):
        images_as_bytes(one)


@pytest.mark.parametrize("one", ["hello", b"hello"])
def test_one_text_in_place_of_a_list_is_refused(one):
    for read in (texts_as_list, lambda texts: as_inputs(None, texts)):
        with pytest.raises(TypeError, match="give a list of texts"):
            read(one)


def test_what_is_no_image_at_all_is_named():
    with pytest.raises(TypeError, match="not int"):
        list(images_as_bytes([7]))


def test_tuples_sets_and_generators_are_taken():
    assert texts_as_list(("a", "b")) == ["a", "b"]
    assert list(as_inputs(None, (text for text in "ab"))[1]) == ["a", "b"]
    assert list(images_as_bytes({b"a": 1}.keys())) == [b"a"]
