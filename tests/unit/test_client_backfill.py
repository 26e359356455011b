"""The parts of a backfill that touch nothing: its progress, its summary, what it reads from metrics."""

import io

from colqueue_client.backfill.plan import Summary
from colqueue_client.backfill.progress import Lines, Rate, progress_on, sentence
from colqueue_client.backfill.records import Counts
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
    rate = Rate()
    for second in range(0, 301, 10):
        rate.note(second, 10 * second if second <= 200 else 2000 + (second - 200))

    assert rate.per_s == 1
    assert rate.time_left(Counts(left=7384)) == "2:03:04"
    assert rate.time_left(Counts(left=5, unopened=1)) == "0:00:05+"
    assert Rate().time_left(Counts(left=5)) == "-"


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
    told = sentence(Counts(left=1, unopened=4), Rate(), "")

    assert "1 left (and 4 documents not yet opened)" in told


def test_a_terminal_gets_a_bar(monkeypatch):
    monkeypatch.setenv("TERM", "xterm")
    stream = Terminal()
    progress = progress_on(stream)

    with progress.shown():
        progress.show(Counts(embedded=1, left=1), "[2] tasks queued")
        progress.say("[said]")

    assert "[said]" in stream.getvalue()
    assert "1 done" in stream.getvalue()
    assert "\033[" in stream.getvalue()


def test_the_summary_tells_the_truth_in_sum():
    counts = Counts(embedded=7, failed=30, skipped=2)
    failures = [{"document": "a.pdf", "page": page, "code": "image_invalid", "message": "bad"} for page in (1, None)]

    told = str(Summary(counts, 2.0, 4, 1, {".txt": 2}, failures)).splitlines()

    assert told == [
        "39 pages found = 7 embedded + 30 failed + 2 skipped",
        "4 of them embedded in this run, in 2.0 s (2.00 pages/s)",
        "skipped: 2 x .txt",
        "1 documents of earlier runs are gone; their pages stay",
        "failed: a.pdf page 1: bad (image_invalid)",
        "failed: a.pdf: bad (image_invalid)",
        "failed: 28 more, see failures.jsonl",
    ]
    assert Summary(counts, 2.0, 4, 1).as_dict()["found"] == 39
