"""The parts of a backfill that touch nothing: its progress, its summary, what it reads from metrics."""

import io
import re

import pytest

from colqueue_client.backfill.plan import Summary
from colqueue_client.backfill.progress import Estimate, Lines, progress_on, sentence
from colqueue_client.backfill.records import Counts
from colqueue_client.launch.report import table
from colqueue_client.printable import printable
from colqueue_client.status import Worker, status_from

METRICS = """\
# HELP colqueue_queue_tasks tasks no worker has taken yet
# TYPE colqueue_queue_tasks gauge
colqueue_queue_tasks{lane="interactive"} 0.0
colqueue_queue_tasks{lane="bulk"} 1.2e+01
colqueue_worker_ready{model="a \\"model\\"",worker="one@host"} 1.0
colqueue_worker_ready{model="other",worker="two@host"} 0.0
colqueue_worker_inputs_waiting{worker="one@host"} 3.0
colqueue_worker_inputs_total{worker="one@host"} 250.0
colqueue_worker_busy_seconds_total{worker="one@host"} 12.5
colqueue_http_requests_total{method="GET",route="/jobs",status="200"} 7.0
"""


class Terminal(io.StringIO):
    """A stream that says it is a terminal."""

    def isatty(self):
        return True


def test_metrics_tell_of_workers_and_queues():
    status = status_from(METRICS)

    assert status.queued == {"interactive": 0, "bulk": 12}
    assert status.workers == {
        "one@host": Worker('a "model"', ready=True, waiting=3, inputs=250, busy_s=12.5),
        "two@host": Worker("other", ready=False),
    }
    assert status.models == {'a "model"'}


def test_the_rate_is_that_of_the_last_minute():
    estimate = Estimate()
    for second in range(0, 301, 10):
        done = 10 * second if second <= 200 else 2000 + (second - 200)
        estimate.note(second, Counts(embedded=done - 100, failed=100))

    assert estimate.per_s == 1
    assert estimate.time_left(Counts(left=7384)) == "2:03:04"
    assert Estimate().time_left(Counts(left=5)) == "-"


def test_documents_that_are_not_opened_yet_have_as_many_pages_as_those_that_were():
    """Of many small PDFs, only a few are open at any time: what is left is mostly in the others."""
    estimate = Estimate()
    estimate.note(0, Counts(embedded=50, unopened=1000))
    now = Counts(embedded=50 + 190, failed=10, left=100, unopened=900)
    estimate.note(100, now)

    assert estimate.left(now) == 100 + 900 * 3
    assert estimate.time_left(now) == "0:23:20", "2,800 pages at 2 pages per second"


def test_a_document_has_one_page_until_one_was_opened():
    estimate = Estimate()
    estimate.note(0, Counts(unopened=7))

    assert estimate.left(Counts(unopened=7)) == 7


def test_a_log_gets_plain_lines_and_not_too_many():
    stream = io.StringIO()
    progress = progress_on(stream)
    assert isinstance(progress, Lines)

    with progress.shown():
        for _ in range(20):
            progress.show(Counts(embedded=3, failed=1, left=6), "2 tasks queued")
        progress.say("done")

    assert stream.getvalue() == ("3 done, 1 failed, 6 left, 0.00 pages/s, time left -, 2 tasks queued\ndone\n")


def test_documents_nobody_has_opened_are_told():
    told = sentence(Counts(left=1, unopened=4), Estimate(), "")

    assert "about 5 left (4 documents not yet opened)" in told


@pytest.mark.parametrize("width", [60, 80, 200])
def test_a_terminal_gets_a_bar_and_all_that_matters_whatever_its_width(monkeypatch, width):
    monkeypatch.setenv("TERM", "xterm")
    monkeypatch.setenv("COLUMNS", str(width))
    stream = Terminal()
    progress = progress_on(stream)

    with progress.shown():
        progress.show(Counts(embedded=123456, failed=7, left=900000), "[2] tasks queued, " + 200 * "x")
        progress.say("[said]")

    lines = [re.sub("\033\\[[^A-Za-z]*[A-Za-z]", "", line) for line in stream.getvalue().splitlines()]
    bars = [line for line in lines if "━" in line]
    assert bars
    assert all("123463 of 1023463 pages, 0.00/s, - left" in bar and bar.count("━") >= 10 for bar in bars)
    assert any(line.startswith("7 failed, [2] tasks queued") for line in lines)
    assert max(map(len, lines)) <= width
    assert "[said]" in stream.getvalue()


HOSTILE = "a\x1b]0;owned\x07b\x9b31mc\r\nd\u202eé\udcff.pdf"
HARMLESS = r"a\x1b]0;owned\x07b\x9b31mc\r\nd\u202eé\udcff.pdf"


def test_no_name_moves_the_cursor_or_colours_a_terminal():
    failures = [{"document": HOSTILE, "page": None, "code": "pdf_invalid", "message": f"{HOSTILE} cannot be opened"}]

    told = str(Summary(Counts(failed=1), 1.0, 0, 0, {HOSTILE[-8:]: 1}, failures))

    assert f"failed: {HARMLESS}: {HARMLESS} cannot be opened (pdf_invalid)" in told.splitlines()
    assert printable(HOSTILE) == HARMLESS
    assert table(["input"], [[HOSTILE]]).splitlines()[-1] == HARMLESS
    for stream in (io.StringIO(), Terminal()):
        progress = progress_on(stream)
        with progress.shown():
            progress.say(HOSTILE)
            progress.show(Counts(left=1), HOSTILE)
        assert HARMLESS in stream.getvalue()
        assert "\x07" not in stream.getvalue()


def test_the_summary_tells_the_truth_in_sum():
    counts = Counts(embedded=7, failed=30, skipped=2)
    failures = [{"document": "a.pdf", "page": page, "code": "image_invalid", "message": "bad"} for page in (1, None)]

    told = str(Summary(counts, 2.0, 4, 1, {".txt": 2}, failures)).splitlines()

    assert told == [
        "39 pages found = 7 embedded + 30 failed + 2 skipped",
        "4 of them embedded in this run, in 2.0 s (2.00 pages/s)",
        "skipped: 2 x .txt",
        "gone documents of earlier runs: 1; their pages stay (--prune removes them)",
        "failed: a.pdf page 1: bad (image_invalid)",
        "failed: a.pdf: bad (image_invalid)",
        "failed: 28 more, see _backfill/failures.jsonl",
    ]
    assert Summary(counts, 2.0, 4, 1).as_dict()["found"] == 39


def test_the_summary_says_how_many_documents_a_limit_left_unopened():
    told = str(Summary(Counts(embedded=4, unopened=2), 2.0, 4, 0)).splitlines()

    assert told[2:] == ["documents not opened yet: 2; their pages are not counted above"]
