"""A backfill whose client, worker and Redis are killed at random moments: each page once, and the right one."""

import json
import random
import sqlite3
from contextlib import closing
from signal import SIGCONT, SIGINT, SIGKILL

import psutil
import pytest
from acceptance.backfills import assert_is_what_the_model_says, backfill, command, failures_in, written
from documents import DPI, Documents, pdf
from stack import KEY, Process, Stack, eventually

from colqueue_client import Client
from colqueue_client.backfill.layout import manifest_path
from worker.model.colqwen import load as load_model
from worker.model.options import ModelOptions
from worker.model.tiny import tiny_checkpoint

SEED = 20260214
CLIENT_KILLS = 4
JOB_PAGES, JOBS = 8, 4


@pytest.fixture(scope="module")
def stack(redis_program, models_dir, tmp_path_factory):
    """A stack of this test's own, which gives a dead worker's tasks back soon."""
    del redis_program
    settings = {
        "COLQUEUE_CACHE_DIR": str(models_dir),
        "COLQUEUE_VISIBILITY_TIMEOUT_S": "3",
        "COLQUEUE_REAP_AFTER_S": "2",
        "COLQUEUE_LOG_LEVEL": "INFO",
    }
    with Stack(tmp_path_factory.mktemp("backfill"), **settings) as running:
        running.start_worker()
        running.start_api()
        running.wait_until_ready()
        yield running


def settled(out):
    """How many pages the manifest knows the end of."""
    if not manifest_path(out).exists():
        return 0
    with closing(sqlite3.connect(f"file:{manifest_path(out)}?mode=ro", uri=True, timeout=30)) as manifest:
        try:
            query = "SELECT count(*) FROM pages WHERE state IN ('collected', 'written', 'failed')"
            return manifest.execute(query).fetchone()[0]
        except sqlite3.OperationalError:  # it is just being made
            return 0


def alive(process):
    try:
        return process.status() != psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return False


class Run:
    """Backfills of one folder that are interrupted again and again, always with pages still to come."""

    def __init__(self, line, environment, documents, out):
        self.client, self._starts = None, 0
        self._line, self._environment, self._documents, self._out = line, environment, documents, out

    def freeze_after(self, moment):
        """Let the backfill run until so many pages are settled, and freeze it while more than its jobs' pages are not.

        Where the backfill was faster than this test it gets more documents.
        """
        while True:
            if self.client is None:
                self.client = Process(self._line, self._out.parent, f"client-{self._starts}", self._environment)
                self._starts += 1
            eventually(lambda moment=moment: settled(self._out) >= moment or not self.client.running())
            if self.client.freeze() and settled(self._out) + JOB_PAGES * JOBS < len(self._documents.pages):
                return
            if self.client.running():
                self.client.signal(SIGCONT)
            assert self.client.wait(300) in {0, 1}, self.client.log.read_text()[-3000:]
            self.client = None
            for number in range(10):
                name = f"more/{self._starts}/{number}.pdf"
                self._documents.add(name, pdf(12, seed=1000 * self._starts + number), 12)
            moment = max(moment, settled(self._out) + JOB_PAGES * JOBS)


def test_nothing_is_lost_doubled_or_embedded_twice_beyond_what_was_in_flight(stack, models_dir, tmp_path):
    documents = Documents.mixed(tmp_path / "documents", pdfs=30, pages_each=12, pictures=40)
    out, total = tmp_path / "out", len(documents.pages)
    line, environment = command(
        stack, "backfill", documents.folder, "--out", out, "--dpi", DPI, "--job-pages", JOB_PAGES, "--jobs", JOBS,
        "--shard-mb", 1, "--json",
    )  # fmt: skip
    at = random.Random(SEED)  # noqa: S311 - the same moments each time, nothing secret
    moments = sorted(at.sample(range(total // 20, total * 2 // 3), CLIENT_KILLS + 2))
    worker_kill, redis_kill, *client_kills = at.sample(range(len(moments)), len(moments))

    run, renderers = Run(line, environment, documents, out), []
    for number, moment in enumerate(moments):
        # What was at the service is collected at once: not before this client has done some work of its own.
        run.freeze_after(moment if run.client else max(moment, settled(out) + JOB_PAGES * JOBS))
        if number in client_kills:
            renderers += psutil.Process(run.client.pid).children(recursive=True)
            run.client.signal(SIGKILL)
            run.client.wait()
            run.client = None
            continue
        if number == worker_kill:
            stack.worker.signal(SIGKILL)
            stack.worker.wait()
            stack.start_worker()
        elif number == redis_kill:
            stack.redis.kill()
            stack.redis.start()
        run.client.signal(SIGCONT)
    client, total = run.client, len(documents.pages)
    client = client or Process(line, tmp_path, "client-last", environment)
    assert client.wait(300) == 1, "1: some pages cannot be embedded"
    assert renderers
    eventually(lambda: not any(map(alive, renderers)))

    model = load_model(ModelOptions(name=str(tiny_checkpoint(models_dir)), device="cpu"))
    assert_is_what_the_model_says(written(out), documents, model)
    assert failures_in(out) == documents.failures
    summary = json.loads(client.log.read_text().splitlines()[-1])
    assert (summary["embedded"], summary["failed"], summary["skipped"]) == (total, len(documents.failures), 2)
    assert summary["found"] == total + len(documents.failures) + 2
    assert not list(out.rglob(".*.part"))
    with Client(stack.url, KEY) as service:
        jobs, more = service.jobs(limit=1000)
    assert more is None
    submitted = sum(job.total for job in jobs)
    assert submitted <= total + len(documents.failures) + CLIENT_KILLS * JOB_PAGES * JOBS

    code, again = backfill(stack, documents, out)
    assert (code, again["embedded_now"], again["embedded"]) == (1, 0, total)


def test_ctrl_c_ends_it_and_the_next_run_goes_on(stack, tmp_path):
    documents = Documents(tmp_path / "documents")
    for number in range(20):
        documents.add(f"{number}.pdf", pdf(12, seed=number), 12)
    out = tmp_path / "out"
    line, environment = command(stack, "backfill", documents.folder, "--out", out, "--dpi", DPI, "--job-pages", 4)
    run = Run(line, environment, documents, out)
    run.freeze_after(20)
    client, total = run.client, len(documents.pages)

    client.signal(SIGINT)
    client.signal(SIGCONT)

    assert client.wait() == 130
    assert client.log.read_text().splitlines()[-1].startswith("colqueue: interrupted; the same command goes on")
    assert settled(out) < total
    code, summary = backfill(stack, documents, out)
    assert (code, summary["embedded"]) == (0, total)
    assert summary["embedded_now"] < total
    assert written(out).keys() == documents.pages
