import struct
import zlib
from io import BytesIO

import numpy as np
import pytest
from PIL import Image

from shared.errors import ImageAspectError, ImageInvalidError, ImageTooLargeError
from worker.model.decode import decode_page

LIMIT = 1_000_000
ORIENTATION = 0x0112


def saved(image, image_format="PNG", **options):
    data = BytesIO()
    image.save(data, image_format, **options)
    return data.getvalue()


def decoded(image, image_format="PNG", **options):
    return decode_page(saved(image, image_format, **options), LIMIT)


def gradient(width=64, height=48):
    values = np.arange(width * height * 3, dtype=np.uint32).reshape(height, width, 3) * 7 % 256
    return Image.fromarray(values.astype(np.uint8))


def header_of_png(width, height):
    """A PNG that says it is this large and holds no pixels."""
    chunks = ((b"IHDR", struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)), (b"IDAT", b""))
    return b"\x89PNG\r\n\x1a\n" + b"".join(
        struct.pack(">I", len(data)) + name + data + struct.pack(">I", zlib.crc32(name + data)) for name, data in chunks
    )


@pytest.mark.parametrize("image_format", ["PNG", "WEBP", "TIFF", "BMP", "JPEG2000", "PPM", "GIF", "JPEG", "AVIF"])
def test_the_usual_formats_are_read_as_pillow_reads_them(image_format):
    data = saved(gradient(), image_format, **({"lossless": True} if image_format == "WEBP" else {}))
    assert np.array_equal(decode_page(data, LIMIT), Image.open(BytesIO(data)).convert("RGB"))


@pytest.mark.parametrize("mode", ["1", "L", "P", "CMYK"])
def test_an_opaque_page_is_what_pillow_makes_of_it(mode):
    page = gradient().convert(mode)
    image_format = "TIFF" if mode == "CMYK" else "PNG"
    assert np.array_equal(decoded(page, image_format), page.convert("RGB"))


@pytest.mark.parametrize("mode", ["RGBA", "LA"])
def test_an_opaque_page_with_an_alpha_channel_is_what_pillow_makes_of_it(mode):
    page = gradient().convert(mode)
    assert np.array_equal(decoded(page), page.convert("RGB"))


@pytest.mark.parametrize("mode", ["RGBA", "LA"])
def test_a_transparent_page_is_white(mode):
    page = Image.new(mode, (40, 30), (0,) * len(mode))
    assert decoded(page).getcolors() == [(40 * 30, (255, 255, 255))]


def test_a_half_transparent_page_shows_white_through():
    assert decoded(Image.new("RGBA", (4, 4), (0, 0, 0, 128))).getpixel((0, 0)) == (127, 127, 127)


@pytest.mark.parametrize("image_format", ["PNG", "GIF"])
def test_a_transparent_palette_colour_is_white(image_format):
    page = Image.new("P", (40, 30), 1)
    page.putpalette([0, 0, 0, 10, 20, 30])
    page.putpixel((0, 0), 0)
    assert decoded(page, image_format, transparency=1).getpixel((5, 5)) == (255, 255, 255)
    assert decoded(page, image_format, transparency=1).getpixel((0, 0)) == (0, 0, 0)


def test_a_transparent_colour_of_a_page_without_alpha_is_white():
    page = Image.new("RGB", (4, 4), (1, 2, 3))
    assert decoded(page, transparency=(1, 2, 3)).getpixel((0, 0)) == (255, 255, 255)


@pytest.mark.parametrize("image_format", ["PNG", "TIFF", "PPM"])
def test_16_bit_greyscale_is_scaled_to_8_bit(image_format):
    page = Image.fromarray(np.array([[0, 257 * 10, 257 * 128, 65535]], np.uint16))
    assert np.array_equal(np.asarray(decoded(page, image_format))[0, :, 0], [0, 10, 128, 255])


@pytest.mark.parametrize(
    ("values", "grey"),
    [
        ([0, 0.5, 1], [0, 128, 255]),
        ([0, 100, 255], [0, 100, 255]),
        ([0, 257 * 100, 65535], [0, 100, 255]),
        ([0, 2.5e5, 1e6], [0, 64, 255]),
        ([-1, np.nan, 0.2], [0, 0, 51]),
        ([0, 0, 0], [0, 0, 0]),
    ],
)
def test_float_greyscale_is_scaled_to_8_bit(values, grey):
    page = Image.fromarray(np.array([values], np.float32))
    assert np.array_equal(np.asarray(decoded(page, "TIFF"))[0, :, 0], grey)


@pytest.mark.parametrize("image_format", ["JPEG", "PNG", "WEBP", "TIFF"])
def test_a_page_photographed_sideways_is_turned_upright(image_format):
    page = Image.new("RGB", (60, 40), "white")
    page.paste("black", (0, 0, 60, 8))
    exif = Image.Exif()
    exif[ORIENTATION] = 6  # the camera's top is the page's right
    upright = decoded(page, image_format, exif=exif)
    assert upright.size == (40, 60)
    assert upright.getpixel((38, 30))[0] < 60
    assert upright.getpixel((2, 30))[0] > 200


def test_a_damaged_orientation_does_not_cost_the_page():
    page = gradient()
    assert np.array_equal(decoded(page, exif=b"Exif\x00\x00not a TIFF header"), page)


@pytest.mark.parametrize("image_format", ["GIF", "TIFF", "PNG", "WEBP"])
def test_the_first_of_several_frames_is_the_page(image_format):
    first, second = Image.new("RGB", (30, 30), (255, 0, 0)), Image.new("RGB", (30, 30), (0, 0, 255))
    page = decoded(first, image_format, save_all=True, append_images=[second])
    assert page.getpixel((3, 3))[0] > 200
    assert page.getpixel((3, 3))[2] < 60


@pytest.mark.parametrize("size", [(200, 1), (1, 200), (1000, 5)])
def test_a_page_200_times_as_long_as_wide_is_read(size):
    assert decoded(Image.new("RGB", size)).size == size


@pytest.mark.parametrize("size", [(201, 1), (1, 201), (2010, 10)])
def test_a_page_longer_than_200_times_its_width_is_refused(size):
    with pytest.raises(ImageAspectError):
        decoded(Image.new("RGB", size))


def test_the_largest_page_is_read():
    assert decode_page(saved(Image.new("L", (1000, 1000))), LIMIT).size == (1000, 1000)


def test_a_page_over_the_limit_is_refused_from_its_header():
    with pytest.raises(ImageTooLargeError, match="1000000"):
        decode_page(header_of_png(1001, 1000), LIMIT)


def test_a_bomb_that_pillow_knows_is_refused_from_its_header():
    with pytest.raises(ImageTooLargeError):
        decode_page(header_of_png(40_000, 40_000), LIMIT)


@pytest.mark.parametrize(
    ("data", "sentence"),
    [
        pytest.param(b"", "the image is empty", id="empty"),
        pytest.param(b"%PDF-1.7\n%\xe2\xe3", "this is a PDF: send its pages as images", id="PDF"),
        pytest.param(b"\n <svg></svg>", "this is an SVG: send it as PNG", id="SVG"),
        pytest.param(b'<?xml version="1.0"?>\n<svg/>', "this is an SVG: send it as PNG", id="SVG-with-prolog"),
        pytest.param(b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n", "cannot be decoded", id="EPS"),
        pytest.param(saved(gradient(), "PCX"), "cannot be decoded", id="rare-format"),
        pytest.param(b"no image at all", "cannot be decoded", id="garbage"),
        pytest.param(saved(gradient())[:-60], "cannot be decoded", id="cut-PNG"),
        pytest.param(saved(gradient())[:20], "cannot be decoded", id="cut-PNG-header"),
        pytest.param(saved(gradient(), "JPEG")[:700], "cannot be decoded", id="cut-JPEG"),
        pytest.param(saved(gradient(), "TIFF")[:-500], "cannot be decoded", id="cut-TIFF"),
        pytest.param(saved(gradient(), "WEBP")[:-100], "cannot be decoded", id="cut-WEBP"),
        pytest.param(header_of_png(10, 0), "cannot be decoded", id="no-pixels"),
    ],
)
def test_what_is_no_image_is_named_and_refused(data, sentence):
    with pytest.raises(ImageInvalidError, match=sentence):
        decode_page(data, LIMIT)


def test_a_damaged_avif_is_refused_like_any_other():
    data = saved(gradient(), "AVIF")
    pixels = data.index(b"mdat") + len(b"mdat")
    with pytest.raises(ImageInvalidError):
        decode_page(data[:pixels] + bytes(len(data) - pixels), LIMIT)


@pytest.mark.filterwarnings("ignore:Truncated File Read:UserWarning")  # Pillow's, on its way to the error
def test_a_tiff_without_its_directory_is_refused_like_any_other():
    with pytest.raises(ImageInvalidError):
        decode_page(saved(gradient(), "TIFF")[:90], LIMIT)


def test_a_refusal_does_not_echo_the_payload():
    with pytest.raises(ImageInvalidError) as refusal:
        decode_page(b"confidential words", LIMIT)
    assert "confidential" not in str(refusal.value)
