"""What `colqueue_client.pages` makes of PDF forms and annotations, encrypted PDFs, TIFF frames and large pages."""

import io

import numpy as np
import pytest
from documents import encrypted_pdf, pdf, picture, raw_pdf, saved, stream, tiff
from PIL import Image

from colqueue_client.pages import Limits, RenderError, count_pages, render_pages, render_selected
from worker.model.decode import decode_page

HELVETICA = b"<< /Type /Font /Subtype /Type1 /BaseFont /Helvetica >>"
HIDDEN, NO_VIEW, PRINT = 2, 32, 4


def file(tmp_path, name, data):
    (tmp_path / name).write_bytes(data)
    return str(tmp_path / name)


def render(path, *pages, dpi=72, limits=None, passwords=()):
    kind = "pdf" if path.endswith(".pdf") else "tiff" if path.endswith(".tif") else "image"
    selected = pages or range(1, count_pages(path, kind, passwords) + 1)
    return list(render_selected(path, kind, selected, dpi=dpi, limits=limits or Limits(), passwords=passwords))


def service_sees(data):
    """Return the RGB values that the service makes of an image file."""
    return np.asarray(decode_page(data, 75_000_000)).astype(int)


def form(*annotations, catalog=b"", content=b""):
    """Return a PDF with a page of 100 x 200 points that has these annotations."""
    kids = b" ".join(b"%d 0 R" % number for number in range(7, 7 + len(annotations)))
    return raw_pdf(
        b"<< /Type /Catalog /Pages 2 0 R /AcroForm 4 0 R %s >>" % catalog,
        b"<< /Type /Pages /Kids [3 0 R] /Count 1 >>",
        b"<< /Type /Page /Parent 2 0 R /MediaBox [0 0 100 200] /Annots [%s] /Contents 6 0 R "
        b"/Resources << /Font << /Helv 5 0 R >> >> >>" % kids,
        b"<< /Fields [%s] /DR << /Font << /Helv 5 0 R >> >> /DA (/Helv 12 Tf 0 g) %s >>"
        % (kids, b"/XFA (<xdp/>)" if b"XFA" in catalog else b""),
        HELVETICA,
        stream(b"", content),
        *annotations,
    )


def text_field(top, value=b"", flags=PRINT):
    return (
        b"<< /Type /Annot /Subtype /Widget /FT /Tx /T (t%d) /V (%s) /F %d /Rect [10 %d 90 %d] /DA (/Helv 12 Tf 0 g) >>"
        % (top, value, flags, top - 20, top)
    )


def square(flags):
    return (
        b"<< /Type /Annot /Subtype /Square /Rect [10 10 90 40] /F %d /Contents (a note) /AP << /N 8 0 R >> >>" % flags
    )


HALF_RED = stream(
    b"/Type /XObject /Subtype /Form /BBox [0 0 80 30] /Resources << /ExtGState << /G << /ca 0.5 >> >> >>",
    b"/G gs 1 0 0 rg 0 0 80 30 re f",
)


def test_what_was_filled_into_a_form_is_rendered_and_fields_are_not_shaded(tmp_path):
    path = file(tmp_path, "a.pdf", form(text_field(190, b"Helvetica"), text_field(100)))

    seen = service_sees(render(path)[0].data)

    assert seen[10:30].min() < 100  # the field at the top has its text
    assert (np.ptp(seen, axis=2) == 0).all()  # and nothing is blue
    assert (seen[30:] == 255).all()  # an empty field is not to be seen


@pytest.mark.parametrize(("flags", "shown"), [(0, True), (PRINT, True), (HIDDEN, False), (NO_VIEW | PRINT, False)])
def test_annotations_and_fields_are_rendered_where_a_screen_shows_them(tmp_path, flags, shown):
    annotated = form(square(flags), HALF_RED)
    filled = form(text_field(190, b"Helvetica", flags))

    (drawn,) = render(file(tmp_path, "a.pdf", annotated))
    (field,) = render(file(tmp_path, "b.pdf", filled))

    # Half transparent, so that a second drawing would show.
    assert service_sees(drawn.data)[175, 50].tolist() == ([255, 128, 128] if shown else [255, 255, 255])
    assert (service_sees(field.data).min() < 100) == shown


def test_a_form_that_only_adobe_reader_can_draw_is_reported(tmp_path):
    waiting = b"BT /Helv 9 Tf 5 100 Td (Please wait... If this message is not replaced) Tj ET"
    dynamic = form(catalog=b"/NeedsRendering true % XFA\n")
    older = form(catalog=b"% XFA\n", content=waiting)

    for data in (dynamic, older):
        with pytest.raises(RenderError) as refused:
            count_pages(file(tmp_path, "a.pdf", data), "pdf")
        assert refused.value.code == "pdf_xfa"


def test_an_xfa_form_with_fields_or_pages_of_its_own_is_rendered(tmp_path):
    static = form(text_field(190, b"Helvetica"), catalog=b"/NeedsRendering true % XFA\n")
    drawn = form(catalog=b"% XFA\n", content=b"BT /Helv 9 Tf 5 100 Td (Request for leave) Tj ET")

    for data in (static, drawn):
        (page,) = render(file(tmp_path, "a.pdf", data))
        assert service_sees(page.data).min() < 100


def test_the_reason_of_one_pdf_is_not_told_of_the_next(tmp_path):
    secret = file(tmp_path, "a.pdf", encrypted_pdf())
    no_pages = raw_pdf(b"<< /Type /Catalog /Pages 2 0 R >>", b"<< /Type /Pages /Kids [] /Count 0 >>")
    others = {
        file(tmp_path, "b.pdf", no_pages): "pdf_empty",
        file(tmp_path, "c.pdf", b"%PDF-1.7 and no more"): "pdf_invalid",
        file(tmp_path, "d.pdf", b""): "pdf_invalid",
    }

    for path, code in others.items():
        with pytest.raises(RenderError) as refused:
            count_pages(secret, "pdf")
        assert refused.value.code == "pdf_encrypted"
        with pytest.raises(RenderError) as refused:
            count_pages(path, "pdf")
        assert refused.value.code == code
        assert "Success" not in str(refused.value)


@pytest.mark.parametrize("password", ["secret", "geheimes Wört"])
def test_an_encrypted_pdf_opens_with_any_of_the_passwords(tmp_path, password):
    path = file(tmp_path, "a.pdf", encrypted_pdf(password))

    assert count_pages(path, "pdf", ["other", password]) == 1
    with pytest.raises(RenderError, match="none of the given passwords") as refused:
        count_pages(path, "pdf", ["other"])
    assert password not in str(refused.value)
    with pytest.raises(RenderError, match="no password is given"):
        count_pages(path, "pdf")


def test_a_name_that_begins_with_a_tilde_or_is_not_text_is_no_obstacle(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    names = ["~nobody-at-all.pdf", "caf\udce9.pdf"]
    for name in names:
        (tmp_path / name).write_bytes(pdf(1, seed=1))

    assert [len(render(name)) for name in names] == [1, 1]


def test_grey_pages_have_one_channel_and_all_pages_exactly_their_pixels(tmp_path):
    rng = np.random.default_rng(0)
    noise = rng.integers(0, 256, (200, 100, 3), np.uint8)
    images = {
        "L": Image.fromarray(noise[..., 0]),
        "RGB": Image.fromarray(noise),
        "text": picture(100, 200, seed=1).convert("L"),
        "almost grey": Image.fromarray(
            np.dstack([noise[..., 0]] * 3) ^ (np.arange(60_000) == 59_999).reshape(200, 100, 3)
        ),
    }

    for name, image in images.items():
        path = file(tmp_path, "a.pdf", pdf_of(image))
        (page,) = render(path)
        assert (service_sees(page.data) == np.asarray(image.convert("RGB"))).all(), name
        assert (page.width, page.height) == image.size
        assert Image.open(io.BytesIO(page.data)).mode == ("L" if name in {"L", "text"} else "RGB"), name


def pdf_of(image):
    """Return a PDF whose page at 72 dpi has exactly these pixels."""
    return raw_pdf(
        b"<< /Type /Catalog /Pages 2 0 R >>",
        b"<< /Type /Pages /Kids [3 0 R] /Count 1 >>",
        b"<< /Type /Page /Parent 2 0 R /MediaBox [0 0 %d %d] /Contents 4 0 R "
        b"/Resources << /XObject << /I 5 0 R >> >> >>" % image.size,
        stream(b"", b"%d 0 0 %d 0 0 cm /I Do" % image.size),
        stream(
            b"/Type /XObject /Subtype /Image /Width %d /Height %d /ColorSpace /DeviceRGB /BitsPerComponent 8"
            % image.size,
            image.convert("RGB").tobytes(),
        ),
    )


def test_a_page_that_is_too_large_losslessly_becomes_a_jpeg_and_then_smaller(tmp_path):
    noise = Image.fromarray(np.random.default_rng(0).integers(0, 256, (600, 400, 3), np.uint8))
    path = file(tmp_path, "a.pdf", pdf_of(noise))
    (whole,) = render(path)

    (jpeg,) = render(path, limits=Limits(max_bytes=len(whole.data) - 1))
    (small,) = render(path, limits=Limits(max_bytes=20_000))

    assert Image.open(io.BytesIO(whole.data)).format == "PNG"
    assert (Image.open(io.BytesIO(jpeg.data)).format, jpeg.width, jpeg.height) == ("JPEG", 400, 600)
    assert len(small.data) <= 20_000
    assert small.width / small.height == pytest.approx(2 / 3, rel=0.05)
    assert Image.open(io.BytesIO(small.data)).size == (small.width, small.height)
    (failed,) = render(path, limits=Limits(max_bytes=10))
    assert failed.code == "too_large"


def test_pages_of_every_shape_are_within_the_limits_of_the_service(tmp_path):
    shapes = [(14_400, 14_400), (1, 14_400), (14_400, 0.001), (1e9, 1e-6), (100_000, 1)]
    blank = [
        raw_pdf(
            b"<< /Type /Catalog /Pages 2 0 R >>",
            b"<< /Type /Pages /Kids [3 0 R] /Count 1 >>",
            b"<< /Type /Page /Parent 2 0 R /MediaBox [0 0 %f %f] >>" % shape,
        )
        for shape in shapes
    ]

    for shape, data in zip(shapes, blank, strict=True):
        (page,) = render(file(tmp_path, "a.pdf", data), dpi=150, limits=Limits(max_pixels=10_000_000))
        assert isinstance(page, RenderError) or page.width * page.height <= 10_000_000, shape
        assert isinstance(page, RenderError) or service_sees(page.data).min() == 255


DEEP = np.linspace(0, 50_000, 20 * 30).reshape(30, 20)
FRAMES = {
    "1": picture(20, 30, seed=1).convert("1"),
    "L": picture(20, 30, seed=1).convert("L"),
    "P": picture(20, 30, seed=1).convert("P"),
    "LA": picture(20, 30, seed=1).convert("LA"),
    "RGB": picture(20, 30, seed=1),
    "RGBA": Image.fromarray(np.random.default_rng(1).integers(0, 256, (30, 20, 4), np.uint8)),
    "RGBX": picture(20, 30, seed=1).convert("RGBX"),
    "PA": picture(20, 30, seed=1).convert("RGBA").convert("PA"),
    "CMYK": picture(20, 30, seed=1).convert("CMYK"),
    "YCbCr": picture(20, 30, seed=1).convert("YCbCr"),
    "LAB": Image.fromarray(np.random.default_rng(1).integers(0, 256, (30, 20, 3), np.uint8), "LAB"),
    "I;16": Image.fromarray(DEEP.astype(np.uint16)),
    "I": Image.fromarray(DEEP.astype(np.int32)),
    "F": Image.fromarray(DEEP.astype(np.float32)),
    "F to 1": Image.fromarray((DEEP / 50_000).astype(np.float32)),
}


@pytest.mark.parametrize("mode", FRAMES)
def test_the_service_sees_the_same_in_a_frame_and_in_a_file_of_its_own(tmp_path, mode):
    frame = FRAMES[mode]
    alone = saved(frame, "TIFF")
    many = saved(FRAMES["RGB"], "TIFF", save_all=True, append_images=[frame, FRAMES["1"]])

    of_alone = render(file(tmp_path, "alone.tif", alone))
    of_many = render(file(tmp_path, "many.tif", many))

    assert [page.data for page in of_alone] == [alone]
    assert len(of_many) == 3
    assert (service_sees(of_many[1].data) == service_sees(alone)).all()
    assert [(page.width, page.height) for page in of_many] == [(20, 30)] * 3


def test_frames_are_upright_and_sizes_are_those_of_the_upright_image(tmp_path):
    sideways = {0x0112: 6}
    frame = picture(20, 30, seed=1)
    many = saved(frame, "TIFF", save_all=True, append_images=[picture(20, 30, seed=2)], tiffinfo=sideways)
    exif = Image.Exif()
    exif[0x0112] = 6
    jpeg = saved(frame, "JPEG", exif=exif)

    first = render(file(tmp_path, "many.tif", many))[0]
    (photo,) = render(file(tmp_path, "a.jpg", jpeg))

    assert (service_sees(first.data) == service_sees(many)).all()
    assert (first.width, first.height) == (photo.width, photo.height) == (30, 20)
    assert service_sees(photo.data).shape == (20, 30, 3)


@pytest.mark.parametrize("mode", FRAMES)
def test_frames_and_images_that_are_too_large_are_made_smaller(tmp_path, mode):
    large = FRAMES[mode].resize((400, 600), Image.Resampling.NEAREST)
    many = file(tmp_path, "many.tif", saved(large, "TIFF", save_all=True, append_images=[large]))
    one = file(tmp_path, "one.tif", saved(large, "TIFF"))
    limits = Limits(max_pixels=60_000, max_bytes=3_000)

    for page in [*render(many, limits=limits), *render(one, limits=limits)]:
        assert len(page.data) <= 3_000
        assert page.width * page.height <= 60_000
        difference = service_sees(page.data).mean() - service_sees(saved(large, "TIFF")).mean()
        assert abs(difference) < 12


def test_an_image_file_goes_as_it_is_unless_it_is_too_large(tmp_path):
    noise = Image.fromarray(np.random.default_rng(0).integers(0, 256, (600, 400, 3), np.uint8))
    path = file(tmp_path, "a.bmp", saved(noise, "BMP"))

    (as_it_is,) = render(path)
    (smaller,) = render(path, limits=Limits(max_bytes=100_000))
    (unreadable,) = render(file(tmp_path, "b.bmp", b"words"))

    assert as_it_is.data == saved(noise, "BMP")
    assert len(smaller.data) <= 100_000
    assert (unreadable.data, unreadable.width, unreadable.height) == (b"words", 0, 0)


def test_a_frame_that_would_not_fit_into_memory_is_refused_before_it_is_decoded(tmp_path, monkeypatch):
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", None)  # as the render process has it
    data = bytearray(tiff(2, seed=1))
    # The first directory's width and height, tags 256 and 257, each a long.
    offset = int.from_bytes(data[4:8], "little")
    for entry in range(offset + 2, offset + 26, 12):
        assert int.from_bytes(data[entry : entry + 2], "little") in {256, 257}
        data[entry + 2 : entry + 12] = (
            (4).to_bytes(2, "little") + (1).to_bytes(4, "little") + (10**5).to_bytes(4, "little")
        )

    page = render(file(tmp_path, "a.tif", bytes(data)))[0]

    assert page.code == "image_too_large"


def test_render_pages_gives_what_the_render_process_gives(tmp_path):
    path = file(tmp_path, "a.pdf", pdf(2, seed=1))

    assert list(render_pages(path, dpi=72)) == [page.data for page in render(path)]
