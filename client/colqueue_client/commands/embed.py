"""`colqueue embed`: embeds a few files and waits: pages of PDFs, frames of TIFFs, images, and texts as queries."""

import argparse
import os
import sys
import zipfile
from collections.abc import AsyncGenerator, Awaitable, Callable, Sequence
from contextlib import aclosing
from pathlib import Path
from typing import Any, Final, TypeVar

import numpy as np

from colqueue_client.backfill.files import atomic_write
from colqueue_client.backfill.interrupt import run_interruptibly
from colqueue_client.backfill.renderers import RenderDiedError, Renderers
from colqueue_client.backfill.sources import IMAGE, kind_of
from colqueue_client.client import AsyncClient
from colqueue_client.commands.rendering import add_rendering_options, limits_from, passwords_from
from colqueue_client.commands.service import (
    EXIT_CODES,
    Commands,
    ExitCode,
    add_command,
    add_service_options,
    connect_async,
    print_error,
    print_json,
    print_lines,
)
from colqueue_client.commands.values import file as output_file
from colqueue_client.errors import ClientError, ServiceError
from colqueue_client.launch.report import table
from colqueue_client.printable import printable
from colqueue_client.wire import Rows

__all__ = ["add_embed"]

T = TypeVar("T")

_AT_ONCE: Final = 16
_BYTES_AT_ONCE: Final = 32 * 2**20
# Pages that the render process renders before we look at them: opening a large PDF again for each would be slow.
_RENDERED_AT_ONCE: Final = 4


def add_embed(commands: Commands) -> None:
    """Add `colqueue embed`."""
    parser = add_command(
        commands,
        "embed",
        "embed a few files and wait",
        _embed,
        description="Embed images, the pages of PDFs and TIFFs, and the lines of text files, each line a query; `-` "
        "reads\nqueries from stdin. A file or page that cannot be embedded is reported; the others are embedded.\n"
        "For many files there is `colqueue backfill`.",
        epilog="examples:\n  colqueue embed invoice.pdf page.png --out pages.npz\n"
        f"  echo 'Who is supplied first?' | colqueue embed - --out query.npz\n\n{EXIT_CODES}",
    )
    parser.add_argument("files", nargs="+", metavar="FILE")
    parser.add_argument(
        "-o",
        "--out",
        type=output_file,
        metavar="FILE.npz",
        help="write the multi-vectors to FILE.npz, an array per input",
    )
    parser.add_argument("--json", action="store_true", help="print JSON")
    add_rendering_options(parser)
    add_service_options(parser)


def _embed(options: argparse.Namespace) -> int:
    failures: list[str] = []
    embedded = run_interruptibly(_embed_files(options, failures), "interrupted")
    code = ExitCode.FAILED if failures else ExitCode.DONE
    if options.out:
        try:
            _write(options.out, embedded)
        except OSError as error:
            code = ExitCode.STOPPED
            print_error(f"{printable(str(options.out))} cannot be written: {error.strerror or error}")
    shapes = {printable(name): rows.shape for name, rows in embedded.items()}
    if options.json:
        print_json([{"input": name, "rows": rows, "dim": dim} for name, (rows, dim) in shapes.items()])
    elif shapes:
        print_lines(table(["input", "rows", "dims"], [[name, str(r), str(d)] for name, (r, d) in shapes.items()]))
    return code


async def _embed_files(options: argparse.Namespace, failures: list[str]) -> dict[str, Rows]:
    """Return the multi-vectors by input, and note the inputs that failed, each told on stderr."""

    def tell(name: str, why: str) -> None:
        failures.append(name)
        print_error(f"{printable(name)}: {why}")

    embedded: dict[str, Rows] = {}
    # One render process for all files: it starts with the first page, and again where a file crashed it.
    async with connect_async(options) as client, Renderers(1) as renderers:
        for file in options.files:
            if file != "-" and kind_of(file):
                embedded |= await _embed_pages(client, _page_images(renderers, file, options, tell), tell)
            else:
                embedded |= await _embed_lines(client, file, tell)
    return embedded


Tell = Callable[[str, str], None]
"""Reports that an input failed: its name, and a sentence."""


async def _embed_lines(client: AsyncClient, file: str, tell: Tell) -> dict[str, Rows]:
    try:
        lines = _read_lines(file)
    except OSError as error:
        tell(file, f"it cannot be read: {error.strerror or error}")
        return {}
    except ValueError:
        tell(file, "it is neither an image, nor a PDF, nor UTF-8 text")
        return {}
    queries = [(f"{file} line {number}", line) for number, line in enumerate(lines, 1)]
    return await _embed_each(client.embed_queries, queries, tell)


def _read_lines(file: str) -> list[str]:
    """Return the lines that are not blank; OSError or ValueError where there are none to read."""
    data = sys.stdin.buffer.read() if file == "-" else Path(file).read_bytes()
    if b"\0" in data:
        raise ValueError
    return [line for line in data.decode("utf-8-sig").splitlines() if line.strip()]


async def _embed_pages(client: AsyncClient, images: AsyncGenerator[tuple[str, bytes]], tell: Tell) -> dict[str, Rows]:
    embedded: dict[str, Rows] = {}
    waiting: list[tuple[str, bytes]] = []
    async with aclosing(images):
        async for page in images:
            waiting.append(page)
            if len(waiting) == _AT_ONCE or sum(len(image) for _, image in waiting) > _BYTES_AT_ONCE:
                embedded |= await _embed_each(client.embed_images, waiting, tell)
                waiting = []
    return embedded | await _embed_each(client.embed_images, waiting, tell)


async def _page_images(
    renderers: Renderers, file: str, options: argparse.Namespace, tell: Tell
) -> AsyncGenerator[tuple[str, bytes]]:
    """Yield the name and the image of each page, as a backfill would send it."""
    kind = kind_of(file)
    try:
        import colqueue_client.pages  # noqa: F401, PLC0415 - without the extra, images can be embedded as they are
    except ModuleNotFoundError:
        if kind != IMAGE:
            raise
        yield file, _read_file(file)
        return
    task: dict[str, Any] = {
        "path": os.fsencode(file),
        "kind": kind,
        "dpi": options.dpi,
        "passwords": passwords_from(options),
        "limits": limits_from(options),
    }
    opened = await _open(renderers, task)
    if "failure" in opened:
        tell(file, _sentence(opened["failure"]))
        return
    for first in range(1, opened["pages"] + 1, _RENDERED_AT_ONCE):
        numbers = range(first, min(first + _RENDERED_AT_ONCE, opened["pages"] + 1))
        pages = await _render(renderers, task | {"signature": opened["signature"]}, numbers)
        for number, page in zip(numbers, pages, strict=True):
            name = file if kind == IMAGE else f"{file} page {number}"
            if isinstance(page, bytes):
                yield name, page
            else:
                tell(name, _sentence(page))


def _read_file(file: str) -> bytes:
    try:
        return Path(file).read_bytes()
    except OSError as error:
        raise ClientError(f"{printable(file)}: it cannot be read: {error.strerror or error}") from error


async def _open(renderers: Renderers, task: dict[str, Any]) -> dict[str, Any]:
    try:
        answer: dict[str, Any] = await renderers.ask({name: task[name] for name in ("path", "kind", "passwords")})
    except RenderDiedError as error:
        return {"failure": ("render_crashed", str(error))}
    return answer


async def _render(renderers: Renderers, task: dict[str, Any], numbers: Sequence[int]) -> list[bytes | tuple[str, str]]:
    """Return each page's image, or its code and sentence. Only the page that crashes the render process fails."""
    try:
        pages: list[bytes | tuple[str, str]] = (await renderers.ask(task | {"pages": list(numbers)}))["pages"]
    except RenderDiedError as error:
        if len(numbers) == 1:
            return [("render_crashed", str(error))]
        return [page for number in numbers for page in await _render(renderers, task, [number])]
    return pages


async def _embed_each(
    embed: Callable[[list[T]], Awaitable[list[Rows]]], inputs: Sequence[tuple[str, T]], tell: Tell
) -> dict[str, Rows]:
    """Return the multi-vectors of those inputs that the service embeds, by name."""
    left = list(inputs)
    while left:
        try:
            rows = await embed([value for _, value in left])
        except ServiceError as error:
            if error.index is None:
                raise
            name, _ = left.pop(error.index)
            tell(name, str(error))
        else:
            return dict(zip((name for name, _ in left), rows, strict=True))
    return {}


def _write(path: Path, embedded: dict[str, Rows]) -> None:
    # As np.savez does it, which takes the names as keyword arguments, and some of those are its own.
    with atomic_write(path) as temporary, zipfile.ZipFile(temporary, "w") as archive:
        for name, rows in embedded.items():
            with archive.open(f"{printable(name)}.npy", "w", force_zip64=True) as entry:
                np.lib.format.write_array(entry, rows, allow_pickle=False)


def _sentence(failure: Sequence[str]) -> str:
    code, message = failure
    return f"{message} ({code})"
