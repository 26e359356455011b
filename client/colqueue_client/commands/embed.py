"""`colqueue embed`: a few files, now. Knows which files are pages and which are queries."""

import argparse
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Final

import numpy as np

from colqueue_client.backfill.files import appearing
from colqueue_client.backfill.sources import PDF, kind_of
from colqueue_client.client import Client
from colqueue_client.commands.service import (
    EXIT_CODES,
    Commands,
    add_command,
    add_service_options,
    connected,
    print_json,
    print_lines,
)
from colqueue_client.errors import ServiceError
from colqueue_client.launch.report import table
from colqueue_client.wire import Rows

__all__ = ["add_embed"]

_AT_ONCE: Final = 16


def add_embed(commands: Commands) -> None:
    """Add `colqueue embed`."""
    parser = add_command(
        commands,
        "embed",
        "embed a few files and wait",
        _embed,
        description="Embed images, the pages of PDFs, and the lines of text files, each line a query; `-` reads them "
        "from stdin.\nFor many files there is `colqueue backfill`.",
        epilog="examples:\n  colqueue embed invoice.pdf page.png --out pages.npz\n"
        f"  echo 'Who is supplied first?' | colqueue embed - --out query.npz\n\n{EXIT_CODES}",
    )
    parser.add_argument("files", nargs="+", metavar="FILE")
    parser.add_argument("-o", "--out", type=Path, metavar="FILE.npz", help="keep the multi-vectors, an array each")
    parser.add_argument("--dpi", type=int, default=150, help="of rendered PDF pages (%(default)s)")
    parser.add_argument("--json", action="store_true", help="print JSON")
    add_service_options(parser)


def _embed(options: argparse.Namespace) -> int:
    embedded: dict[str, Rows] = {}
    with connected(options) as colqueue:
        for file in options.files:
            try:
                embedded |= _embedded(colqueue, file, options.dpi)
            except OSError as error:
                sys.stderr.write(f"colqueue: {file}: {error.strerror or error}\n")
                return 1
            except ServiceError as error:
                sys.stderr.write(f"colqueue: {file}: {error}\n")
                return 1
    if options.out:
        with appearing(options.out) as path, path.open("wb") as archive:
            np.savez(archive, allow_pickle=False, **embedded)
    shapes = {name: rows.shape for name, rows in embedded.items()}
    if options.json:
        print_json([{"input": name, "rows": rows, "dim": dim} for name, (rows, dim) in shapes.items()])
    else:
        print_lines(table(["input", "rows", "dims"], [[name, str(r), str(d)] for name, (r, d) in shapes.items()]))
    return 0


def _embedded(colqueue: Client, file: str, dpi: int) -> dict[str, Rows]:
    kind = None if file == "-" else kind_of(file)
    if kind is None:
        text = sys.stdin.read() if file == "-" else Path(file).read_text(encoding="utf-8")
        queries = [line for line in text.splitlines() if line.strip()]
        return _named(file, colqueue.embed_queries(queries), "line")
    if kind != PDF:
        return {file: colqueue.embed_images([Path(file)])[0]}
    return _named(file, list(_pages(colqueue, Path(file), dpi)), "page")


def _pages(colqueue: Client, pdf: Path, dpi: int) -> Iterator[Rows]:
    from colqueue_client.pages import render_pages  # noqa: PLC0415 - an extra, needed for PDFs only

    waiting: list[bytes] = []
    for page in render_pages(pdf, dpi=dpi):
        waiting.append(page)
        if len(waiting) == _AT_ONCE:
            yield from colqueue.embed_images(waiting)
            waiting.clear()
    yield from colqueue.embed_images(waiting)


def _named(file: str, embeddings: list[Any], part: str) -> dict[str, Rows]:
    return {f"{file} {part} {number}": rows for number, rows in enumerate(embeddings, 1)}
