"""The decoder against files made to hurt: only named errors come out, and memory stays within a bound."""

import io
import json
import struct
import subprocess
import sys
import zlib
from contextlib import suppress
from functools import cache

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st
from PIL import Image, PngImagePlugin
from stack import ROOT, clean_environment

from shared.errors import InputError
from worker.model.decode import decode_page

# Pillow warns of much that it then reads or refuses.
pytestmark = pytest.mark.filterwarnings("ignore::UserWarning")

PIXELS = 1_000_000
FORMATS = ["PNG", "JPEG", "TIFF", "WEBP", "GIF", "BMP", "JPEG2000", "AVIF", "PPM"]
# What `ModelOptions.max_image_pixels` says of a page, and what the libraries take however small it is: Pillow keeps up
# to 64 MiB of a PNG's texts.
BYTES_A_PIXEL, OVERHEAD_BYTES = 13, 80 * 2**20


def saved(image, image_format, **options):
    data = io.BytesIO()
    image.save(data, image_format, **options)
    return data.getvalue()


def page(width=40, height=30, mode="RGB"):
    return Image.linear_gradient("L").resize((width, height)).convert(mode)


SEEDS = [saved(page(), image_format) for image_format in FORMATS]
SEEDS += [saved(page(mode=mode), "PNG") for mode in ("1", "P", "RGBA", "LA", "I;16")]
SEEDS += [saved(page(mode=mode), "TIFF", compression="tiff_lzw") for mode in ("1", "L", "CMYK", "F")]
SEEDS += [
    saved(page(), image_format, save_all=True, append_images=[page(), page()])
    for image_format in ("PNG", "GIF", "TIFF", "WEBP")
]


@st.composite
def damaged(draw):
    """A real file with some bytes changed, taken out or put in, perhaps cut short, perhaps with the head of another."""
    data = bytearray(draw(st.sampled_from(SEEDS)))
    for _ in range(draw(st.integers(0, 6))):
        # Most of what a decoder decides by stands at the beginning.
        place = draw(st.one_of(st.integers(0, min(64, len(data))), st.integers(0, len(data))))
        taken = draw(st.integers(0, 8))
        data[place : place + taken] = draw(st.binary(max_size=8))
    if draw(st.booleans()):
        data = draw(st.sampled_from(SEEDS))[: draw(st.integers(0, 64))] + data
    return bytes(data[: draw(st.one_of(st.just(len(data)), st.integers(0, len(data))))])


def decoded(data):
    """Decode as a worker does, and return whether it is a page; anything but a named error gets out."""
    with suppress(InputError):
        image = decode_page(data, PIXELS)
        assert image.mode == "RGB"
        assert image.width * image.height <= PIXELS
        return True
    return False


@settings(max_examples=1500, deadline=None, database=None, derandomize=True)
@given(damaged())
@example(b"")
def test_of_a_damaged_file_comes_a_page_or_a_named_error(data):
    decoded(data)


@settings(max_examples=300, deadline=None, database=None, derandomize=True)
@given(st.sampled_from([seed[:12] for seed in SEEDS]), st.binary(max_size=200))
def test_of_noise_behind_a_true_beginning_comes_a_page_or_a_named_error(beginning, noise):
    decoded(beginning + noise)


def test_the_files_that_are_damaged_are_pages_to_begin_with():
    assert all(decoded(seed) for seed in SEEDS)


@cache
def packed_zeros(n_bytes):
    packer = zlib.compressobj(9)
    block = bytes(2**20)
    return b"".join(packer.compress(block) for _ in range(n_bytes >> 20)) + packer.flush()


def chunk(kind, data):
    return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))


def png_with(*chunks, width=40, height=30, packed=None):
    header = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    packed = zlib.compress(bytes(height * (1 + 3 * width))) if packed is None else packed
    return b"\x89PNG\r\n\x1a\n" + b"".join(
        chunk(*each) for each in ((b"IHDR", header), *chunks, (b"IDAT", packed), (b"IEND", b""))
    )


def with_text():
    text = PngImagePlugin.PngInfo()
    for number in range(50):
        text.add_text(f"k{number}", "x" * 900_000, zip=True)
    return saved(page(), "PNG", pnginfo=text)


def two_sizes_of_gif():
    """A small screen whose one frame says that it is as large as a GIF can be."""
    data = bytearray(saved(page(), "GIF"))
    frame = data.index(b"\x2c")
    data[frame + 5 : frame + 9] = b"\xff\xff\xff\xff"
    return bytes(data)


def many_frames(image_format):
    """Fifty frames that together are far over the bound."""
    others = [page(900, 900, mode) for mode in ("L", "RGB")] * 25
    return saved(page(900, 900), image_format, save_all=True, append_images=others)


BOMBS = {
    "a PNG of 3 GB": lambda: png_with(width=30_000, height=33_000, packed=packed_zeros(2**27)),
    "a PNG that unpacks to a hundred times what it says": lambda: png_with(packed=packed_zeros(2**27)),
    "a PNG with 128 MB of text": lambda: png_with((b"zTXt", b"key\0\0" + packed_zeros(2**27))),
    "a PNG with 128 MB of other text": lambda: png_with((b"iTXt", b"key\0\1\0\0\0" + packed_zeros(2**27))),
    "a PNG with a profile of 128 MB": lambda: png_with((b"iCCP", b"key\0\0" + packed_zeros(2**27))),
    "a PNG with many texts": with_text,
    "a PNG of many frames": lambda: many_frames("PNG"),
    "a GIF of many frames": lambda: many_frames("GIF"),
    "a WebP of many frames": lambda: many_frames("WEBP"),
    "a TIFF of many frames": lambda: many_frames("TIFF"),
    "a GIF with a frame larger than its screen": two_sizes_of_gif,
    "a WebP of 33 megapixels": lambda: saved(Image.new("L", (16_383, 2_000)), "WEBP", lossless=True, method=0),
    "a TIFF of 36 megapixels": lambda: saved(Image.new("RGB", (6_000, 6_000)), "TIFF", compression="tiff_lzw"),
    "a BMP of 4 gigapixels": lambda: (
        b"BM" + struct.pack("<IIIIIIHHIIIIII", 54, 0, 54, 40, 65_535, 65_535, 1, 24, *[0] * 6)
    ),
    "a PPM of 10 gigapixels": lambda: b"P6 100000 100000 255\n",
    "a JPEG of 4 gigapixels": lambda: saved(page(), "JPEG").replace(
        struct.pack(">HH", 30, 40), struct.pack(">HH", 65_535, 65_535), 1
    ),
}

# Each file in a process of its own, forked where everything is imported and warm.
DECODE_EACH = """
import io, json, os, resource, sys
from PIL import Image
from shared.errors import InputError
from worker.model.decode import decode_page

warm = io.BytesIO()
Image.new("RGB", (40, 30)).save(warm, "PNG")
decode_page(warm.getvalue(), 10_000)
pixels = int(sys.argv[1])
for path in sys.argv[2:]:
    if (child := os.fork()) == 0:
        data = open(path, "rb").read()
        before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
        try:
            outcome = str(decode_page(data, pixels).size)
        except InputError as error:
            outcome = error.code
        grown = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before
        print(json.dumps([outcome, grown * 1024]), flush=True)
        os._exit(0)
    if (status := os.waitpid(child, 0)[1]) != 0:
        print(json.dumps([f"status {status}", 0]), flush=True)
"""


@pytest.mark.skipif(sys.platform != "linux", reason="ru_maxrss is counted in bytes elsewhere")
def test_bombs_of_every_kind_are_pages_or_refused_within_bounded_memory(tmp_path):
    paths = [tmp_path / str(number) for number in range(len(BOMBS))]
    for path, bomb in zip(paths, BOMBS.values(), strict=True):
        path.write_bytes(bomb())
    ran = subprocess.run(
        [sys.executable, "-c", DECODE_EACH, str(PIXELS), *map(str, paths)],
        env=clean_environment(PYTHONPATH=f"{ROOT}"),
        capture_output=True,
        text=True,
        timeout=120,
        check=True,
    )
    told = dict(zip(BOMBS, map(json.loads, ran.stdout.splitlines()), strict=True))
    assert {outcome for outcome, _ in told.values()} <= {"(40, 30)", "(900, 900)", "image_too_large", "image_invalid"}
    bound = BYTES_A_PIXEL * PIXELS + OVERHEAD_BYTES
    assert {name: grown for name, (_, grown) in told.items() if grown > bound} == {}
