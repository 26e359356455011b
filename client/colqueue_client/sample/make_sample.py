"""Makes sample.pdf, the same bytes every time. Knows PDF operators and the standard library; draws no other document.

Run `python client/sample/make_sample.py` after a change here; a test compares the committed file with `make_sample()`.
"""

from collections.abc import Iterable, Sequence
from pathlib import Path

__all__ = ["make_sample"]

Colour = tuple[float, float, float]

WIDTH, HEIGHT = 595, 842  # A4 in points
LEFT, RIGHT = 56, 539
INK: Colour = (0.13, 0.16, 0.2)
GREY: Colour = (0.45, 0.49, 0.54)
RULE: Colour = (0.82, 0.85, 0.88)
BLUE: Colour = (0.07, 0.33, 0.55)
PALE: Colour = (0.92, 0.95, 0.98)
ORANGE: Colour = (0.87, 0.45, 0.13)

# Helvetica's widths in 1/1000 em (Adobe's font metrics) for what is set flush right or centred. Letters are taken to
# be as wide as a digit, which is close enough here.
NARROW = {" ": 278, ".": 278, ",": 278, "-": 333, "%": 889}
DIGIT = 556


class Page:
    """One page's drawing operators, in the order drawn. Coordinates in points from the lower left corner."""

    def __init__(self) -> None:
        self._operators: list[str] = []

    def content(self) -> bytes:
        return "\n".join(self._operators).encode("cp1252")

    def box(self, x: float, y: float, width: float, height: float, colour: Colour) -> None:
        self._operators.append(f"{_numbers(*colour)} rg {_numbers(x, y, width, height)} re f")

    def line(self, start: tuple[float, float], end: tuple[float, float], colour: Colour = RULE) -> None:
        self._operators.append(f"{_numbers(*colour)} RG 0.7 w {_numbers(*start)} m {_numbers(*end)} l S")

    def text(  # noqa: PLR0913  # a line of text has a place, a face, a size, a colour and an alignment
        self,
        x: float,
        y: float,
        text: str,
        *,
        size: float = 10,
        bold: bool = False,
        colour: Colour = INK,
        flush: float = 0,
    ) -> None:
        """Set one line at x; `flush` is the part of its width left of x: 0 left, 0.5 centred, 1 flush right."""
        x -= flush * sum(NARROW.get(char, DIGIT) for char in text) * size / 1000
        escaped = text.replace("\\", r"\\").replace("(", r"\(").replace(")", r"\)")
        font = "F2" if bold else "F1"
        self._operators.append(
            f"BT {_numbers(*colour)} rg /{font} {_numbers(size)} Tf {_numbers(x, y)} Td ({escaped}) Tj ET"
        )

    def paragraph(self, x: float, y: float, text: str, *, size: float = 11.5, leading: float = 18) -> float:
        """Set the lines of `text` downwards from y; return the y below them."""
        for line in text.strip().splitlines():
            self.text(x, y, line, size=size)
            y -= leading
        return y

    def frame(self, number: int, heading: str, standfirst: str) -> None:
        """Draw what pages 2 to 4 share: running head, heading, standfirst, page number."""
        self.text(LEFT, 796, "Lindmoor Water Cooperative", size=8.5, colour=GREY)
        self.text(RIGHT - 73, 796, "Annual report 2024", size=8.5, colour=GREY)
        self.line((LEFT, 788), (RIGHT, 788))
        self.text(LEFT, 744, heading, size=21, bold=True, colour=BLUE)
        self.text(LEFT, 722, standfirst, size=11, colour=GREY)
        self.line((LEFT, 52), (RIGHT, 52))
        self.text(RIGHT, 38, str(number), size=8.5, colour=GREY, flush=1)


def make_sample() -> bytes:
    """Return the PDF: overview, table of figures, bar chart, the same text in English and German."""
    return _pdf([page.content() for page in (_overview(), _table(), _chart(), _two_languages())])


def _overview() -> Page:
    page = Page()
    page.box(0, 560, WIDTH, 282, BLUE)
    page.box(LEFT, 690, 44, 5, ORANGE)
    page.text(LEFT, 718, "LINDMOOR WATER COOPERATIVE", size=11, bold=True, colour=PALE)
    page.text(LEFT, 640, "Annual report 2024", size=34, bold=True, colour=(1, 1, 1))
    page.text(LEFT, 606, "Water delivered, water lost, and what it cost", size=15, colour=PALE)
    page.text(LEFT, 512, "The year in short", size=15, bold=True, colour=BLUE)
    below = page.paragraph(
        LEFT,
        488,
        """
The cooperative supplied 41,300 people in nine villages with drinking water from three
springs and two wells. A dry early summer brought the highest monthly demand since
records began, while repairs to the eastern main cut losses to their lowest level.
No restriction on use was needed. The price per cubic metre did not change.
""",
    )
    for column, (figure, caption) in enumerate(
        [
            ("2.31 m", "cubic metres delivered"),
            ("7.4 %", "lost between spring and tap"),
            ("1.86", "euros per cubic metre"),
        ]
    ):
        x = LEFT + column * 164
        page.box(x, below - 88, 154, 72, PALE)
        page.text(x + 12, below - 52, figure, size=23, bold=True, colour=BLUE)
        page.text(x + 12, below - 74, caption, size=9, colour=GREY)
    page.text(LEFT, 262, "Contents", size=15, bold=True, colour=BLUE)
    for row, (title, number) in enumerate(
        [("Pumping stations: volumes, energy and cost", 2), ("Water delivered month by month", 3), ("Drought plan", 4)]
    ):
        y = 234 - row * 24
        page.text(LEFT, y, title)
        page.text(RIGHT, y, str(number), flush=1)
        page.line((LEFT, y - 8), (RIGHT, y - 8))
    page.text(LEFT, 38, "Lindmoor is not a real place; this document exists to be embedded.", size=8.5, colour=GREY)
    return page


def _table() -> Page:
    page = Page()
    page.frame(2, "Pumping stations", "Volumes, energy and cost of the five stations in 2024")
    columns = [(LEFT + 10, 0), (262, 1), (338, 1), (436, 1), (RIGHT - 10, 1)]
    rows = [
        ("Station", "Water, m\u00b3", "Loss, %", "Energy, kWh", "Cost, \u20ac"),
        ("Upper Spring", "612,400", "5.1", "98,700", "24,675"),
        ("Mill Spring", "488,150", "6.8", "121,300", "30,325"),
        ("Chapel Spring", "231,900", "9.7", "60,250", "15,063"),
        ("East Well", "655,720", "8.2", "402,800", "100,700"),
        ("Harbour Well", "321,830", "8.0", "214,900", "53,725"),
        ("Total", "2,310,000", "7.4", "897,950", "224,488"),
    ]
    top = 676
    page.box(LEFT, top - 9, RIGHT - LEFT, 26, BLUE)
    page.box(LEFT, top - 6 * 30 - 11, RIGHT - LEFT, 30, PALE)
    for row, cells in enumerate(rows):
        y = top - row * 30
        head, total = row == 0, row == len(rows) - 1
        for (x, flush), cell in zip(columns, cells, strict=True):
            page.text(x, y, cell, size=10.5, bold=head or total, colour=(1, 1, 1) if head else INK, flush=flush)
        if not head:
            page.line((LEFT, y - 11), (RIGHT, y - 11))
    page.text(LEFT, 436, "What stands out", size=13, bold=True, colour=BLUE)
    page.paragraph(
        LEFT,
        412,
        """
East Well delivered the most water and used by far the most energy: its pumps lift from
84 metres and date from 1996. Replacing them is planned for 2026 and should save about
150,000 kWh a year.

Chapel Spring has the highest loss. Two leaks in the old cast-iron main were found in
March by listening at night; the section is to be relined with the road works of 2025.

Springs run to the reservoirs mostly by gravity, which is why each cubic metre from
them costs less than half as much as one from a well.
""",
    )
    page.text(LEFT, 214, "Loss is the difference between station meter and house meters.", size=8.5, colour=GREY)
    return page


def _chart() -> Page:
    page = Page()
    page.frame(3, "Water delivered month by month", "Thousand cubic metres, all stations, 2024")
    months = ["Jan", "Feb", "Mar", "Apr", "May", "Jun", "Jul", "Aug", "Sep", "Oct", "Nov", "Dec"]
    delivered = [164, 152, 166, 179, 214, 268, 251, 232, 195, 172, 160, 157]
    floor, scale, step = 380, 0.98, 37.5
    for value in range(0, 301, 50):
        y = floor + value * scale
        page.line((LEFT + 28, y), (RIGHT, y), colour=GREY if value == 0 else RULE)
        page.text(LEFT + 20, y - 3, str(value), size=8.5, colour=GREY, flush=1)
    for index, (month, value) in enumerate(zip(months, delivered, strict=True)):
        x = LEFT + 37 + index * step
        highest = value == max(delivered)
        page.box(x, floor, 24, value * scale, ORANGE if highest else BLUE)
        page.text(x + 12, floor + value * scale + 5, str(value), size=8.5, bold=highest, flush=0.5)
        page.text(x + 12, floor - 15, month, size=9, colour=GREY, flush=0.5)
    page.text(LEFT, 322, "June was the peak", size=13, bold=True, colour=BLUE)
    page.paragraph(
        LEFT,
        298,
        """
In June the stations delivered 268,000 cubic metres, a fifth more than in June 2023 and
the most in any month on record. Five weeks without rain and the filling of garden pools
came together. On 22 June the reservoirs fell to 41 percent before the evening; the third
pump at East Well was started for the first time in six years.

February was the quietest month. Deliveries from September on were again those of an
ordinary year.
""",
    )
    return page


def _two_languages() -> Page:
    page = Page()
    page.frame(
        4,
        "Drought plan \u00b7 D\u00fcrreplan",
        "What we do when the reservoirs fall \u00b7 Was wir tun, wenn die Speicher sinken",
    )
    middle = 304
    page.line((middle - 8, 690), (middle - 8, 300))
    page.text(LEFT, 680, "English", size=12, bold=True, colour=ORANGE)
    page.paragraph(
        LEFT,
        656,
        """
The plan has three steps. Each begins
when the reservoirs stay below its mark
for three days in a row.

1. Below 60 percent: we ask everyone to
water gardens after eight in the evening
only, and tell farms a week ahead.

2. Below 45 percent: pools are not filled,
cars are not washed, and the fountains
in the squares are turned off.

3. Below 30 percent: water carts serve
the upper villages, and the hospital and
the schools are supplied first.

The council lifts a step when the level
has been above its mark for a week.
Since 2011 only the first step was used.
""",
        size=10,
        leading=17,
    )
    page.text(middle + 8, 680, "Deutsch", size=12, bold=True, colour=ORANGE)
    page.paragraph(
        middle + 8,
        656,
        """
Der Plan hat drei Stufen. Jede beginnt,
wenn die Speicher drei Tage in Folge
unter ihrer Marke bleiben.

1. Unter 60 Prozent: Wir bitten alle, G\u00e4rten
nur nach acht Uhr abends zu gie\u00dfen, und
geben den H\u00f6fen eine Woche vorher Bescheid.

2. Unter 45 Prozent: Becken werden nicht
gef\u00fcllt, Autos nicht gewaschen und die
Brunnen auf den Pl\u00e4tzen abgestellt.

3. Unter 30 Prozent: Wasserwagen versorgen
die oberen D\u00f6rfer; Krankenhaus und Schulen
werden zuerst beliefert.

Der Rat hebt eine Stufe auf, wenn der Stand
eine Woche \u00fcber ihrer Marke lag. Seit 2011
wurde nur die erste Stufe gebraucht.
""",
        size=10,
        leading=17,
    )
    return page


def _pdf(contents: Sequence[bytes]) -> bytes:
    """Return a PDF 1.4 file with one page per content stream, uncompressed so that no zlib version shows."""
    first_page = 5
    kids = " ".join(f"{first_page + 2 * index} 0 R" for index in range(len(contents)))
    font = "<< /Type /Font /Subtype /Type1 /BaseFont /{} /Encoding /WinAnsiEncoding >>"
    objects = [
        b"<< /Type /Catalog /Pages 2 0 R >>",
        f"<< /Type /Pages /Kids [{kids}] /Count {len(contents)} /MediaBox [0 0 {WIDTH} {HEIGHT}] >>".encode(),
        font.format("Helvetica").encode(),
        font.format("Helvetica-Bold").encode(),
    ]
    for index, content in enumerate(contents):
        stream = first_page + 2 * index + 1
        objects += [
            f"<< /Type /Page /Parent 2 0 R /Contents {stream} 0 R "
            "/Resources << /Font << /F1 3 0 R /F2 4 0 R >> >> >>".encode(),
            b"<< /Length %d >>\nstream\n%s\nendstream" % (len(content), content),
        ]
    return _number_objects(objects)


def _number_objects(objects: Iterable[bytes]) -> bytes:
    """Return `objects` as a file: numbered from 1, with the table of their offsets that readers start from."""
    file = bytearray(b"%PDF-1.4\n%\xe2\xe3\xcf\xd3\n")
    offsets = []
    for number, body in enumerate(objects, start=1):
        offsets.append(len(file))
        file += b"%d 0 obj\n%s\nendobj\n" % (number, body)
    table = len(file)
    size = len(offsets) + 1
    file += b"xref\n0 %d\n0000000000 65535 f \n" % size
    file += b"".join(b"%010d 00000 n \n" % offset for offset in offsets)
    file += b"trailer\n<< /Size %d /Root 1 0 R >>\nstartxref\n%d\n%%%%EOF\n" % (size, table)
    return bytes(file)


def _numbers(*values: float) -> str:
    return " ".join(f"{value:.2f}".rstrip("0").rstrip(".") for value in values)


if __name__ == "__main__":
    Path(__file__).with_name("sample.pdf").write_bytes(make_sample())
