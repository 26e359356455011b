"""`python -m bench.backfill`: what a backfill costs the client, and what it costs the queries beside it.

Memory and overlap are measured against `bench.paced_service`, whose pages take time and no core of this machine, as on
a GPU elsewhere; the queries' latency against the real service on this machine. Judges no model.
"""

import argparse
import asyncio
import os
import re
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, chdir, contextmanager
from pathlib import Path
from typing import Any, Final

import orjson
import psutil
import pypdfium2

from bench.contestants import Setting, running
from bench.errors import BenchError
from bench.machine import machine_facts
from bench.pages import DISTINCT, page, query
from bench.report import percentile
from bench.terminal import say
from bench.trace import read_trace
from colqueue_client import Client, UnreachableError
from colqueue_client.backfill.renderers import Renderers
from colqueue_client.backfill.sources import PDF, signature
from colqueue_client.launch.ports import free_port
from colqueue_client.sample import SAMPLE_PDF
from worker.model.tiny import random_checkpoint

__all__ = ["main"]

_ROOT: Final = Path(__file__).parents[1]
_KEY: Final = "benchmark"
_ROWS: Final = 747  # of an A4 page
_FAST: Final = 10_000.0
_PAGES_A_DOCUMENT: Final = 50
_SAMPLE_S: Final = 0.1
_QUERY_EVERY_S: Final = 0.25


def main(arguments: Sequence[str] | None = None) -> int:
    """Measure, write, print. Returns 1 where a figure is worse than what is promised."""
    parser = argparse.ArgumentParser(prog="python -m bench.backfill")
    parser.add_argument("--pages", default="500,5000", help="of the runs whose memory is compared (%(default)s)")
    parser.add_argument("--overlap-pages", type=int, default=800)
    parser.add_argument("--seconds", type=int, default=60, help="of queries during a backfill (%(default)s)")
    parser.add_argument("--dpi", type=int, default=72, help="of the runs whose memory is compared (%(default)s)")
    parser.add_argument("--only", default="memory,overlap,queries", help="some of them (%(default)s)")
    parser.add_argument("--json", type=Path, default=_ROOT / "bench" / "results" / "backfill.json")
    options = parser.parse_args(arguments)
    target, before, var = options.json.absolute(), machine_facts(), _ROOT / "var" / "bench"
    var.mkdir(parents=True, exist_ok=True)
    model = random_checkpoint(var / "models", "tiny")
    scratch = Path(tempfile.mkdtemp(prefix="backfill-", dir=var))
    few, many = map(int, options.pages.split(","))
    parts: dict[str, Callable[[], dict[str, Any]]] = {
        "memory": lambda: _memory(scratch, few, many, options.dpi),
        "overlap": lambda: _overlap(scratch, options.overlap_pages),
        "queries": lambda: _queries(scratch, model, options.seconds),
    }
    with chdir(scratch):
        told = {name: parts[name]() for name in options.only.split(",")}
    shutil.rmtree(scratch)
    target.parent.mkdir(parents=True, exist_ok=True)
    machine = before | {"load_average_after": os.getloadavg()}
    target.write_bytes(orjson.dumps(told | {"machine": machine}, option=orjson.OPT_INDENT_2) + b"\n")
    for name, figures in told.items():
        sys.stdout.write(f"{name}: {orjson.dumps(figures).decode()}\n")
    sys.stdout.write(f"{target}\n")
    return 0 if all(figures["kept"] for figures in told.values()) else 1


def _memory(scratch: Path, few: int, many: int, dpi: int) -> dict[str, Any]:
    peaks = {}
    for count in (few, many):
        say(f"memory: {count} pages ...")
        documents = _documents(scratch / f"pdfs-{count}", count)
        with _paced(_FAST) as url:
            peaks[count] = _run(url, documents, scratch / f"out-{count}", "--dpi", str(dpi))
        shutil.rmtree(scratch / f"out-{count}")
    growth = peaks[many]["client_mb"] / peaks[few]["client_mb"]
    return {"pages": [few, many], "dpi": dpi, "peak": list(peaks.values()), "growth": growth, "kept": growth <= 1.1}  # noqa: PLR2004 - what flat means


def _overlap(scratch: Path, count: int) -> dict[str, Any]:
    """Time rendering alone, a service of the same pace alone, and both at once: nowhere is more to gain or to lose.

    One process renders, so that on two cores one is left for the client and the double. The shards are small, so that
    the last one, which is written when all else is done, is to the rest as it would be in a long run.
    """
    say(f"overlap: rendering {count} pages ...")
    documents = _documents(scratch / "overlap", count)
    rendering_s = asyncio.run(_rendered(sorted(documents.iterdir())))
    pace = count / rendering_s
    say(f"overlap: a backfill at {pace:.1f} pages/s ...")
    with _paced(pace) as url:
        both = _run(url, documents, scratch / "out-overlap", "--processes", "1", "--shard-mb", "16")
    ratio = both["seconds"] / rendering_s
    return {
        "pages": count,
        "rendering_alone_s": rendering_s,
        "embedding_alone_s": count / pace,
        "both_s": both["seconds"],
        "ratio_to_the_slower": ratio,
        "kept": ratio <= 1.15,  # noqa: PLR2004 - what is promised
    }


def _queries(scratch: Path, model: Path, seconds: int) -> dict[str, Any]:
    say(f"queries: {seconds} s beside a backfill ...")
    pictures = scratch / "pictures"
    pictures.mkdir()
    for number in range(DISTINCT):
        (pictures / f"{number:05}.png").write_bytes(page(number))
    for number in range(DISTINCT, 40 * seconds):  # more than there is time for
        os.link(pictures / f"{number % DISTINCT:05}.png", pictures / f"{number:05}.png")
    with ExitStack() as held:
        service = held.enter_context(running("service", Setting(model, scratch, threads=1, page_batch=1)))
        client = held.enter_context(Client(service.url, _KEY, trust_env=False))
        command = _command(service.url, pictures, scratch / "out-queries")
        backfill = subprocess.Popen(command, stdout=subprocess.DEVNULL)  # noqa: S603 - our own command line
        held.callback(backfill.wait)
        held.callback(backfill.kill)
        _saturated(client)
        before, started = _batches(client), time.monotonic()
        taken = _ask(client, seconds)
        passes = [one for one in read_trace(service.trace) if one.start > started]
        after = _batches(client)
        if backfill.poll() is not None:
            raise BenchError("the backfill ended before the queries did")
    batches = after["batches"] - before["batches"]
    batch_s = (after["busy_seconds"] - before["busy_seconds"]) / batches
    p99 = percentile(taken, 0.99)
    assert p99 is not None  # noqa: S101 - for mypy: there were queries
    return {
        "queries": len(taken),
        "p50_ms": 1000 * (percentile(taken, 0.5) or 0),
        "p95_ms": 1000 * (percentile(taken, 0.95) or 0),
        "p99_ms": 1000 * p99,
        "batches": batches,
        "mean_batch_ms": 1000 * batch_s,
        "p99_batch_ms": 1000 * (percentile([one.end - one.start for one in passes], 0.99) or 0),
        "mean_inputs_a_batch": sum(one.inputs for one in passes) / len(passes),
        "busy_share": (after["busy_seconds"] - before["busy_seconds"]) / seconds,
        "promised_ms": 1000 * (2 * batch_s + 0.05),
        "kept": p99 <= 2 * batch_s + 0.05,
    }


def _documents(folder: Path, count: int) -> Path:
    """Return a folder of PDFs with A4 pages of text, tables and drawings: the sample's, again and again."""
    folder.mkdir()
    for number in range(-(-count // _PAGES_A_DOCUMENT)):
        with pypdfium2.PdfDocument(SAMPLE_PDF) as sample, pypdfium2.PdfDocument.new() as document:
            pages = min(_PAGES_A_DOCUMENT, count - number * _PAGES_A_DOCUMENT)
            document.import_pages(sample, [place % len(sample) for place in range(pages)])
            document.save(folder / f"{number:05}.pdf")
    return folder


async def _rendered(documents: Sequence[Path]) -> float:
    started = time.monotonic()
    tasks = [
        {"path": str(path), "kind": PDF, "signature": signature(str(path)), "pages": pages, "dpi": 150}
        for path in documents
        for pages in _chunks(path)
    ]
    async with Renderers(1) as renderers:
        await asyncio.gather(*map(renderers.ask, tasks))
    return time.monotonic() - started


def _chunks(path: Path) -> Iterator[list[int]]:
    with pypdfium2.PdfDocument(path) as document:
        pages = list(range(1, len(document) + 1))
    for start in range(0, len(pages), 4):
        yield pages[start : start + 4]


@contextmanager
def _paced(pages_per_s: float) -> Iterator[str]:
    port = free_port()
    command = [sys.executable, "-m", "bench.paced_service", str(port), str(pages_per_s), str(_ROWS)]
    environment = os.environ | {"PYTHONPATH": f"{_ROOT}:{_ROOT / 'client'}"}
    process = subprocess.Popen(command, env=environment)  # noqa: S603 - our own command line
    url = f"http://127.0.0.1:{port}"
    try:
        with Client(url, trust_env=False) as client:
            while not _answers(client):
                if process.poll() is not None:
                    raise BenchError("the paced service ended")
                time.sleep(_SAMPLE_S)
        yield url
    finally:
        process.kill()
        process.wait()


def _answers(client: Client) -> bool:
    try:
        return client.readiness().ready
    except UnreachableError:
        return False


def _command(url: str, source: Path, out: Path, *more: str) -> list[str]:
    program = [sys.executable, "-m", "colqueue_client.cli", "backfill", str(source), "--out", str(out), "--json"]
    return [*program, "--url", url, "--key", _KEY, "--quiet", *more]


def _run(url: str, source: Path, out: Path, *more: str) -> dict[str, Any]:
    """Run a backfill to its end; return its time and the largest resident memory of its processes, in MiB."""
    started = time.monotonic()
    process = subprocess.Popen(_command(url, source, out, *more), stdout=subprocess.PIPE)  # noqa: S603 - our own command line
    watched = psutil.Process(process.pid)
    client = renderers = 0
    while process.poll() is None:
        try:
            client = max(client, watched.memory_info().rss)
            renderers = max(renderers, sum(child.memory_info().rss for child in watched.children()))
        except psutil.NoSuchProcess:
            continue
        time.sleep(_SAMPLE_S)
    seconds = time.monotonic() - started
    output, _ = process.communicate()
    if process.returncode != 0:
        raise BenchError(f"the backfill ended with {process.returncode}")
    return {
        "pages": orjson.loads(output)["embedded"],
        "seconds": seconds,
        "client_mb": client / 2**20,
        "renderers_mb": renderers / 2**20,
    }


def _saturated(client: Client) -> None:
    """Return once the worker has been at it for a while."""
    start = None
    while start is None or _batches(client).get("batches", 0) < start + 10:
        start = _batches(client).get("batches") if start is None else start
        time.sleep(_SAMPLE_S)


def _ask(client: Client, seconds: int) -> list[float]:
    taken: list[float] = []
    ends = time.monotonic() + seconds
    while (started := time.monotonic()) < ends:
        client.embed_queries([query(len(taken))])
        taken.append(time.monotonic() - started)
        time.sleep(max(0.0, _QUERY_EVERY_S - taken[-1]))
    return taken


def _batches(client: Client) -> dict[str, float]:
    found = re.findall(r"^colqueue_worker_(batches|busy_seconds)_total\{.*\} (\S+)$", client.metrics(), re.MULTILINE)
    return {name: float(value) for name, value in found}


if __name__ == "__main__":
    sys.exit(main())
