"""How a backfill ends before its time: by Ctrl-C, by an error, with a render process in the middle of an answer."""

import asyncio
import resource
import subprocess
import sys
from signal import SIGINT

import numpy as np
import psutil
import pytest
from documents import DPI, saved
from PIL import Image
from service_double import Answer, ServiceDouble
from stack import Process, clean_environment, eventually

from colqueue_client.backfill.renderers import Renderers
from colqueue_client.launch.tether import tether

# Begins an answer, and writes the rest once its stdin has ended: by then nobody reads, and the pipe is full.
TALKATIVE = """
import sys
from pathlib import Path
from colqueue_client.backfill.renderers import LENGTH

sys.stdout.buffer.write(LENGTH.pack(2**26) + b"x" * 2**20)
sys.stdout.buffer.flush()
Path(__file__).with_suffix(".started").touch()
length, = LENGTH.unpack(sys.stdin.buffer.read(LENGTH.size))
sys.stdin.buffer.read()
sys.stdout.buffer.write(b"x" * 2**25)
"""

# In place of a disk that hangs: the first shard is written to a pipe that nobody reads.
STUCK = """
import os
from pathlib import Path
import colqueue_client.backfill.parquet as parquet

here = Path(__file__).parent

def write_tables(path, tables):
    os.mkfifo(here / "pipe")
    (here / "writing").touch()
    os.open(here / "pipe", os.O_WRONLY)

parquet._write_tables = write_tables
"""

FULL = """
import errno
import colqueue_client.backfill.parquet as parquet

def write_tables(path, tables):
    raise OSError(errno.ENOSPC, "No space left on device")

parquet._write_tables = write_tables
"""


def in_place_of_writing(folder, code):
    """Return a PYTHONPATH with which every process runs `code` first."""
    (folder / "site").mkdir()
    (folder / "site" / "sitecustomize.py").write_text(code)
    return f"{folder / 'site'}:{':'.join(sys.path)}"


@pytest.fixture
def talkative(tmp_path, monkeypatch):
    (tmp_path / "talkative_render.py").write_text(TALKATIVE)
    monkeypatch.setenv("PYTHONPATH", f"{tmp_path}:{':'.join(sys.path)}")
    return tmp_path / "talkative_render.started"


@pytest.mark.timeout(60)
def test_a_render_process_whose_pipe_is_full_is_ended(talkative):
    others = set(psutil.Process().children(recursive=True))  # servers that other tests of this process share

    async def ask_and_cancel():
        async with Renderers(1, module="talkative_render") as renderers:
            asked = asyncio.create_task(renderers.ask({"path": "any"}))
            await asyncio.to_thread(eventually, talkative.exists)
            children = set(psutil.Process().children(recursive=True)) - others
            asked.cancel()
            with pytest.raises(asyncio.CancelledError):
                await asked
            return children

    children = asyncio.run(ask_and_cancel())

    assert children
    assert not any(child.is_running() for child in children)


@pytest.fixture
def service():
    with ServiceDouble() as double:
        yield double


@pytest.fixture
def start(service, tmp_path):
    """Start `colqueue backfill` of large pages against the double; return the process and the folder it writes to."""
    documents = tmp_path / "documents"
    documents.mkdir()
    for number in range(4):
        first, *others = (noise(seed=number * 100 + one) for one in range(20))
        (documents / f"{number}.pdf").write_bytes(
            saved(first, "PDF", save_all=True, append_images=others, resolution=DPI)
        )
    started = []

    def start_backfill(name, *more, source=documents, **environment):
        out = tmp_path / f"out-{name}"
        line = [sys.executable, "-m", "colqueue_client.cli", "backfill", source, "--out", out, "--dpi", DPI, *more]
        settings = clean_environment(COLQUEUE_URL=service.url, SERVICE_API_KEY="key", **environment)
        started.append(Process(list(map(str, line)), tmp_path, name, settings))
        return started[-1], out

    yield start_backfill
    for process in started:
        process.stop()


def noise(*, seed):
    """Return a picture whose PNG is larger than all the buffers of a pipe."""
    return Image.fromarray(np.random.default_rng(seed).integers(0, 255, (700, 500, 3), np.uint8))


def last_line(process):
    return process.log.read_text().splitlines()[-1]


def children_of(process):
    return psutil.Process(process.pid).children(recursive=True)


def gone(processes):
    return not any(child.is_running() and child.status() != psutil.STATUS_ZOMBIE for child in processes)


def test_ctrl_c_ends_a_run_at_any_moment(start, service):
    for moment in range(6):
        before = service.submitted()
        process, _ = start(f"run-{moment}", "--job-pages", 2)
        eventually(lambda before=before, moment=moment: service.submitted() > before + moment)
        children = children_of(process)
        process.signal(SIGINT)

        assert process.wait() == 130, process.log.read_text()
        assert last_line(process) == "colqueue: interrupted; the same command goes on where this run ended"
        assert children
        assert gone(children)


def test_ctrl_c_ends_a_run_whose_jobs_are_all_at_the_service(start, service):
    service.finishing.clear()
    process, _ = start("held", "--job-pages", 2, "--jobs", 2)
    eventually(lambda: service.submitted() == 2)

    process.signal(SIGINT)

    assert process.wait() == 130, process.log.read_text()


def test_ctrl_c_ends_a_run_that_waits_for_the_list_of_its_sources(service, tmp_path):
    """The list comes from a pipe whose writer takes its time."""
    line = [sys.executable, "-m", "colqueue_client.cli", "backfill", "-", "--out", str(tmp_path / "out")]
    settings = clean_environment(COLQUEUE_URL=service.url, SERVICE_API_KEY="key")
    process = subprocess.Popen(
        tether(line), env=settings, stdin=subprocess.PIPE, stderr=subprocess.PIPE, text=True, start_new_session=True
    )
    with process:
        assert process.stderr.readline().startswith("Looking for pages")
        process.send_signal(SIGINT)

        assert process.wait(30) == 130
        said = [line for line in process.stderr.read().splitlines() if line]
        assert said == ["colqueue: interrupted; the same command goes on where this run ended"]


def test_ctrl_c_ends_a_run_although_a_thread_waits_for_a_disk_or_a_server(start, tmp_path):
    """Every write ends in a system call that does not return: opening a pipe that nobody reads."""
    process, _ = start("stuck", "--shard-mb", 1, PYTHONPATH=in_place_of_writing(tmp_path, STUCK))
    eventually((tmp_path / "site" / "writing").exists)
    children = children_of(process)

    process.signal(SIGINT)

    assert process.wait() == 130, process.log.read_text()
    assert last_line(process) == "colqueue: interrupted; the same command goes on where this run ended"
    eventually(lambda: gone(children))


def test_a_service_that_refuses_in_the_middle_ends_a_run_with_its_own_code(start, service):
    """Render processes are in the middle of answers then, as with every error that ends a run."""
    forbidden = Answer(403, b'{"error": "Forbidden", "code": "forbidden"}')
    service.finishing.clear()
    process, _ = start("refused", "--job-pages", 2, "--jobs", 2)
    eventually(lambda: service.submitted() == 2)
    children = children_of(process)
    service.instead = lambda method, _: forbidden if method == "POST" else None
    service.finishing.set()

    assert process.wait() == 4, process.log.read_text()
    assert last_line(process).startswith("colqueue: Forbidden (403 forbidden). Give one of the service's keys")
    assert gone(children)


def test_a_full_disk_ends_a_run_with_a_sentence(start, service):
    """It is the manifest that grows fastest, in transactions in the midst of everything."""
    service.finishing.clear()
    process, out = start("full", "--job-pages", 2, "--jobs", 2)
    eventually(lambda: service.submitted() == 2)
    children = children_of(process)
    most = max(path.stat().st_size for path in out.rglob("*")) + 2**18
    resource.prlimit(process.pid, resource.RLIMIT_FSIZE, (most, most))
    service.finishing.set()

    assert process.wait() == 5, process.log.read_text()
    assert last_line(process).startswith(f"colqueue: cannot go on writing to {out}: ")
    assert "Traceback" not in process.log.read_text()
    assert gone(children)


def test_a_disk_that_is_full_when_a_shard_is_written_ends_a_run_with_a_sentence(start, tmp_path):
    process, out = start("full", "--shard-mb", 1, PYTHONPATH=in_place_of_writing(tmp_path, FULL))

    assert process.wait() == 5, process.log.read_text()
    assert last_line(process) == f"colqueue: cannot go on writing to {out}: [Errno 28] No space left on device"
    assert "Traceback" not in process.log.read_text()
