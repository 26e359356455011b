"""`colqueue backfill`: embeds many documents, and goes on where an earlier run ended."""

import argparse
import io
import math
import os
import sqlite3
import sys
from pathlib import Path
from typing import Final

from colqueue_client.backfill.interrupt import run_interruptibly
from colqueue_client.backfill.output import FORMATS, STORES
from colqueue_client.backfill.plan import Plan, Summary
from colqueue_client.backfill.progress import Quiet, progress_on
from colqueue_client.backfill.store import Store
from colqueue_client.calls import Retry
from colqueue_client.client import AsyncClient
from colqueue_client.commands.rendering import add_rendering_options, limits_from, passwords_from
from colqueue_client.commands.service import (
    OTHER_CODES,
    Commands,
    ExitCode,
    add_command,
    add_service_options,
    connect,
    print_json,
    print_lines,
)
from colqueue_client.commands.values import count, folder, nonempty, seconds
from colqueue_client.errors import BackfillError

__all__ = ["add_backfill"]

# A run goes on through a proxy's maintenance page of some minutes; a service that is away is waited for without end.
_UNSURE_FOR_S: Final = 600.0
_INTERRUPTED: Final = "interrupted; the same command goes on where this run ended"

_HELP: Final = """\
Embed every page of the sources into files in DIR. Sources are folders, files, patterns ('scans/**/*.tif'), `-` for a
list of paths on stdin, or a list in a .jsonl or .csv file: `path`, `document` for the name of the document,
and any other columns, which are written beside its pages.

PDFs are rendered. Images are sent as they are. Each frame of a TIFF is a page. Other files are skipped and counted.
You can kill the command at any moment and run it again: it continues where it stopped, because
DIR/_backfill/manifest.sqlite records every page. Changed files are embedded again, renamed files are not.
DIR/_backfill/failures.jsonl says why pages failed.
"""

_EXAMPLES: Final = f"""\
examples:
  colqueue backfill documents/ --out embeddings
  colqueue backfill 'scans/**/*.tif' invoices.pdf --out embeddings --dpi 200
  find /archive -name '*.pdf' -newer last-week | colqueue backfill - --out embeddings
  colqueue backfill documents/ --out embeddings --retry-failed
  colqueue backfill documents/ --out embeddings --json 2> backfill.log

exit codes:
  0    every page is embedded
  1    some pages failed, and every other page is embedded
{OTHER_CODES}
"""


def add_backfill(commands: Commands) -> None:
    """Add `colqueue backfill`."""
    parser = add_command(
        commands,
        "backfill",
        "embed many documents into files, resumably",
        _backfill,
        description=_HELP,
        epilog=_EXAMPLES,
    )
    default = Plan([], Path())
    add = parser.add_argument
    add("sources", nargs="+", metavar="SOURCE", help="a folder, a file, a pattern, a list in a file, or `-`")
    add("--out", type=folder, required=True, metavar="DIR", help="folder for the output and the record of every page")
    add_rendering_options(parser)
    add("--retry-failed", action="store_true", help="try the pages again that failed before")
    add("--limit", type=count(), metavar="N", help="embed at most N pages in this run (default: all)")
    add(
        "--prune",
        action="store_true",
        help="remove the pages of documents that are gone from the output (default: report them and keep their pages)",
    )
    add(
        "--moved",
        action="store_true",
        help="the sources have moved since the last run: files of the same relative name are the same documents",
    )
    cores = max(1, len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1)
    add(
        "--processes",
        type=count(256),
        default=min(cores, 8),
        metavar="N",
        help="number of processes that render PDF pages (default: number of cores, at most 8)",
    )
    add(
        "--job-pages", type=count(), default=default.job_pages, metavar="N", help="pages per job (default: %(default)s)"
    )
    add(
        "--jobs",
        type=count(),
        default=default.jobs_in_flight,
        metavar="N",
        help="number of jobs at the service at a time (default: %(default)s)",
    )
    add("--quiet", action="store_true", help="show no progress")
    add("--json", action="store_true", help="print the summary as JSON")
    _add_output_options(parser.add_argument_group("output"), default)
    add_service_options(parser)
    parser.set_defaults(parser=parser)


def _add_output_options(group: argparse._ArgumentGroup, default: Plan) -> None:
    add = group.add_argument
    add("--format", choices=FORMATS, default=default.format, help="form of the output (default: %(default)s)")
    add(
        "--output-dtype",
        choices=("float32", "float16", "int8", "binary"),
        default=default.output_dtype,
        help="precision of the embeddings (default: %(default)s)",
    )
    add("--pool-factor", type=count(), metavar="N", help="average groups of N rows of a page into one row each")
    add(
        "--shard-mb",
        type=count(),
        default=default.shard_bytes // 2**20,
        metavar="MB",
        help="embeddings per Parquet file (default: %(default)s)",
    )
    add(
        "--store",
        type=nonempty,
        metavar="WHERE",
        help="LanceDB folder or URI, or Qdrant folder or URL (default: a folder in DIR)",
    )
    add("--collection", type=nonempty, metavar="NAME", help="Qdrant collection or LanceDB table (default: pages)")
    add(
        "--store-key",
        type=nonempty,
        metavar="KEY",
        help="key of the Qdrant server or of LanceDB Cloud (default: COLQUEUE_STORE_KEY); other users of this machine "
        "can see options",
    )
    add(
        "--store-timeout",
        type=seconds,
        metavar="S",
        help=f"seconds after which a call of the store is given up and repeated (default: {Store().timeout_s:g})",
    )


def _backfill(options: argparse.Namespace) -> int:
    plan = _plan(options)
    with connect(options) as colqueue:
        colqueue.metrics()  # a wrong address or key is an error now; later the service may be away for hours
    try:
        summary = run_interruptibly(_run(plan, options), _INTERRUPTED)
    except (OSError, sqlite3.Error) as error:  # what is a document's fault is told as such: this is the output's
        raise BackfillError(f"cannot go on writing to {plan.out}: {error}") from error
    if options.json:
        print_json(summary.as_dict())
    else:
        print_lines(str(summary))
    is_whole = not summary.counts.left or plan.limit is not None
    return ExitCode.DONE if not summary.counts.failed and is_whole else ExitCode.FAILED


def _plan(options: argparse.Namespace) -> Plan:
    return Plan(
        sources=options.sources,
        out=options.out,
        format=options.format,
        store=_store(options),
        dpi=options.dpi,
        passwords=passwords_from(options),
        limits=limits_from(options),
        output_dtype=options.output_dtype,
        pool_factor=options.pool_factor,
        retry_failed=options.retry_failed,
        prune=options.prune,
        moved=options.moved,
        limit=options.limit,
        processes=options.processes,
        job_pages=options.job_pages,
        jobs_in_flight=options.jobs,
        shard_bytes=options.shard_mb * 2**20,
    )


def _store(options: argparse.Namespace) -> Store:
    """Return where the store is. Wrong usage ends the process, as argparse does it."""
    parser: argparse.ArgumentParser = options.parser
    options_of_stores = ("store", "collection", "store_key", "store_timeout")
    given = [name for name in options_of_stores if getattr(options, name) is not None]
    if given and options.format not in STORES:
        option = given[0].replace("_", "-")
        parser.error(f"--{option} is for --format {' or '.join(STORES)}, and not for {options.format}")
    default = Store()
    try:
        return Store(
            where=options.store,
            collection=options.collection or default.collection,
            key=options.store_key or os.environ.get("COLQUEUE_STORE_KEY") or None,
            timeout_s=default.timeout_s if options.store_timeout is None else options.store_timeout,
        )
    except BackfillError as error:
        parser.error(error.message)


async def _run(plan: Plan, options: argparse.Namespace) -> Summary:
    # What it renders, stores and shows with comes with the extra `backfill`.
    from colqueue_client.backfill.run import backfill  # noqa: PLC0415

    if isinstance(sys.stdin, io.TextIOWrapper):  # a list of paths, which need not be text
        sys.stdin.reconfigure(errors="surrogateescape")
    progress = Quiet() if options.quiet else progress_on(sys.stderr)
    retry = Retry(for_s=math.inf, unsure_for_s=_UNSURE_FOR_S)
    async with AsyncClient(options.url, options.key, retry=retry) as client:
        return await backfill(plan, client, sys.stdin, progress)
