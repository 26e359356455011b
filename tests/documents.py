"""Documents for tests: PDFs, pictures, TIFFs and broken files, and what a backfill must make of a folder of them."""

import hashlib
import io
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final

import numpy as np
from PIL import Image

from colqueue_client.pages import render_pages

__all__ = ["DPI", "Documents", "encrypted_pdf", "pdf", "picture", "raw_pdf", "saved", "stream", "tiff"]

DPI: Final = 72
"""At which a PDF of `pdf`'s has a pixel for each of its pictures'."""

Page = tuple[str, int]


@dataclass
class Documents:
    """The folder; `pages` are those that can be embedded, `failures` the others' codes, `skipped` files of no kind."""

    folder: Path
    pages: set[Page] = field(default_factory=set)
    failures: dict[tuple[str, int | None], str] = field(default_factory=dict)
    skipped: set[str] = field(default_factory=set)

    def add(self, name: str, data: bytes, pages: int) -> None:
        """Write a good document of so many pages."""
        self._write(name, data)
        self.pages = {page for page in self.pages if page[0] != name} | {(name, page + 1) for page in range(pages)}

    def add_bad(self, name: str, data: bytes, code: str, page: int | None = None) -> None:
        """Write one that fails as a whole, or in its only page."""
        self._write(name, data)
        self.failures[name, page] = code

    def add_other(self, name: str, data: bytes = b"words") -> None:
        """Write a file that is to be skipped."""
        self._write(name, data)
        self.skipped.add(name)

    def images(self) -> Iterator[tuple[Page, bytes]]:
        """Yield every good page as an image file, made without the backfill's own renderer."""
        for name in sorted({name for name, _ in self.pages}):
            path = self.folder / name
            if path.suffix == ".pdf":
                yield from (((name, number), png) for number, png in enumerate(render_pages(path, dpi=DPI), 1))
            elif path.suffix == ".tiff":
                with Image.open(path) as image:
                    for number in range(image.n_frames):
                        image.seek(number)
                        yield (name, number + 1), saved(image.convert("RGB"), "PNG")
            else:
                yield (name, 1), path.read_bytes()

    def _write(self, name: str, data: bytes) -> None:
        path = self.folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(data)

    @classmethod
    def mixed(cls, folder: Path, *, pdfs: int, pages_each: int, pictures: int) -> "Documents":
        """Return so many good documents in folders of their own, one of each bad kind, and two of no kind."""
        made = cls(folder)
        for number in range(pdfs):
            made.add(f"reports/{number // 10}/report {number:03}.pdf", pdf(pages_each, seed=number), pages_each)
        for number in range(pictures):
            form = ("PNG", "JPEG")[number % 2]
            made.add(f"pictures/{number:03}.{form.lower()}", saved(picture(seed=5000 + number), form), 1)
        made.add("faxes/one.tiff", tiff(3, seed=9000), 3)
        made.add_bad("broken/cut.pdf", pdf(2, seed=1)[:200], "pdf_invalid")
        made.add_bad("broken/none.pdf", b"", "pdf_invalid")
        made.add_bad("broken/secret.pdf", encrypted_pdf(), "pdf_encrypted")
        made.add_bad("broken/cut.tiff", tiff(2, seed=2)[:30], "image_invalid")
        made.add_bad("broken/cut.png", saved(picture(seed=3), "PNG")[:60], "image_invalid", page=1)
        made.add_bad("broken/words.jpg", b"these are words", "image_invalid", page=1)
        made.add_other("notes.txt")
        made.add_other("reports/budget.xlsx")
        return made


def picture(width: int = 84, height: int = 112, *, seed: int) -> Image.Image:
    """Return grey blocks on white that no other seed has."""
    draw = np.random.default_rng(seed)
    pixels = np.full((height, width, 3), 255, np.uint8)
    for _ in range(12):
        top, left = draw.integers(height), draw.integers(width)
        pixels[top : top + 12, left : left + 25] = draw.integers(0, 220, 3)
    return Image.fromarray(pixels)


def pdf(pages: int, *, seed: int, width: int = 84, height: int = 112) -> bytes:
    """Return a PDF with a picture a page."""
    first, *others = (picture(width, height, seed=seed * 1000 + number) for number in range(pages))
    return saved(first, "PDF", save_all=True, append_images=others, resolution=DPI)


def tiff(pages: int, *, seed: int) -> bytes:
    """Return a TIFF of many pages."""
    first, *others = (picture(seed=seed * 1000 + number) for number in range(pages))
    return saved(first, "TIFF", save_all=True, append_images=others)


def encrypted_pdf(password: str | None = None) -> bytes:
    """Return a PDF of one page that wants a password; None: one that nobody knows, for its check values are made up.

    Encrypted with the first of the standard security handlers (PDF 1.7, 7.6.3: 40 bits, revision 2).
    """
    identifier, permissions = b"\0", (-4).to_bytes(4, "little", signed=True)
    owner, user = b"\xab" * 32, b"\xcd" * 32
    if password is not None:
        padding = bytes.fromhex("28BF4E5E4E758A4164004E56FFFA01082E2E00B6D0683E802F0CA9FE6453697A")
        padded = (password.encode() + padding)[:32]
        owner = _rc4(hashlib.md5(padded, usedforsecurity=False).digest()[:5], padded)
        key = hashlib.md5(padded + owner + permissions + identifier, usedforsecurity=False).digest()[:5]
        user = _rc4(key, padding)
    return raw_pdf(
        b"<< /Type /Catalog /Pages 2 0 R >>",
        b"<< /Type /Pages /Kids [3 0 R] /Count 1 >>",
        b"<< /Type /Page /Parent 2 0 R /MediaBox [0 0 84 112] >>",
        b"<< /Filter /Standard /V 1 /R 2 /P -4 /O <%s> /U <%s> >>" % (owner.hex().encode(), user.hex().encode()),
        trailer=b"/Encrypt 4 0 R /ID [<00> <00>]",
    )


def _rc4(key: bytes, data: bytes) -> bytes:
    state = list(range(256))
    other = 0
    for index in range(256):
        other = (other + state[index] + key[index % len(key)]) % 256
        state[index], state[other] = state[other], state[index]
    done = bytearray()
    index = other = 0
    for byte in data:
        index = (index + 1) % 256
        other = (other + state[index]) % 256
        state[index], state[other] = state[other], state[index]
        done.append(byte ^ state[(state[index] + state[other]) % 256])
    return bytes(done)


def raw_pdf(*objects: bytes, trailer: bytes = b"") -> bytes:
    """Return a PDF of these objects, numbered from 1; the first is the catalog."""
    data = bytearray(b"%PDF-1.7\n")
    offsets = []
    for number, content in enumerate(objects, 1):
        offsets.append(len(data))
        data += b"%d 0 obj\n%s\nendobj\n" % (number, content)
    size = len(objects) + 1
    table = b"xref\n0 %d\n0000000000 65535 f \n" % size + b"".join(b"%010d 00000 n \n" % offset for offset in offsets)
    ends = b"trailer\n<< /Size %d /Root 1 0 R %s >>\nstartxref\n%d\n%%%%EOF\n" % (size, trailer, len(data))
    return bytes(data + table + ends)


def stream(entries: bytes, content: bytes) -> bytes:
    """Return a PDF stream object."""
    return b"<< %s /Length %d >>\nstream\n%s\nendstream" % (entries, len(content), content)


def saved(image: Image.Image, form: str, **options: object) -> bytes:
    data = io.BytesIO()
    image.save(data, form, **options)
    return data.getvalue()
