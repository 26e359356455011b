"""`colqueue search`: finds the pages of a backfill that answer a query best."""

import argparse
from dataclasses import asdict

from colqueue_client.backfill.load import load
from colqueue_client.backfill.search import best_pages
from colqueue_client.commands.service import (
    EXIT_CODES,
    Commands,
    add_command,
    add_service_options,
    connect,
    print_json,
    print_lines,
)
from colqueue_client.commands.values import count, nonempty
from colqueue_client.errors import BackfillError
from colqueue_client.launch.report import table
from colqueue_client.status import status_from

__all__ = ["add_search"]


def add_search(commands: Commands) -> None:
    """Add `colqueue search`."""
    parser = add_command(
        commands,
        "search",
        "find the pages of a backfill that answer a query best",
        _search,
        description="Embed a query and score every page of a backfill with exact MaxSim: no index, each page is read.",
        epilog='examples:\n  colqueue search embeddings "Who is supplied first in a drought?"\n'
        f'  colqueue search embeddings "Who is supplied first?" -k 3 --json\n\n{EXIT_CODES}',
    )
    parser.add_argument("folder", type=nonempty, help="what `colqueue backfill --out` has written, as Parquet or npz")
    parser.add_argument("query", type=nonempty)
    parser.add_argument(
        "-k", type=count(), default=10, metavar="N", help="number of pages to show (default: %(default)s)"
    )
    parser.add_argument("--json", action="store_true", help="print JSON")
    add_service_options(parser)


def _search(options: argparse.Namespace) -> int:
    pages = load(options.folder)
    first = next(iter(pages), None)
    if first is None:
        raise BackfillError(f"{options.folder} holds no pages of a backfill")
    with connect(options) as colqueue:
        served = status_from(colqueue.metrics()).models
        if served != {first.model}:
            others = ", ".join(served) or "no worker that is ready"
            raise BackfillError(f"these pages are of {first.model}, and the service has {others}")
        (query,) = colqueue.embed_queries([options.query])
    matches = best_pages(query, pages, options.k)
    if options.json:
        print_json([asdict(match) for match in matches])
        return 0
    print_lines(table(["document", "page", "MaxSim"], [[m.document, str(m.page), f"{m.score:.3f}"] for m in matches]))
    if first.model == "tiny":
        print_lines("\n`tiny` has random weights: these scores prove the plumbing and say nothing about the pages.")
    return 0
