"""The render process: opens documents and renders their pages for a backfill and for `colqueue embed`.

It is a process of its own, because a native library that crashes or hangs on a broken file must take nothing else with
it, and because PDFium may be used from one thread only. It reads tasks from stdin and writes answers to stdout, each as
msgpack behind its length. It ends when its stdin ends, and by SIGALRM when a task takes too long.
"""

import hashlib
import os
import signal
import sys
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any, BinaryIO

import msgpack
from PIL import Image

from colqueue_client.backfill.renderers import LENGTH
from colqueue_client.backfill.sources import signature
from colqueue_client.pages import Limits, RenderError, count_pages, render_selected

__all__ = ["answer", "main", "serve"]

Failure = tuple[str, str]
"""A stable code, and a sentence."""


def answer(task: dict[str, Any]) -> dict[str, Any]:
    """Open a document, or render some of its pages.

    `{"path", "kind"}` is answered `{"sha256", "pages", "signature"}` or `{"failure": [code, sentence]}`. With
    `"pages": [1, 4], "dpi", "signature"` the answer is `{"pages": [bytes | [code, sentence], ...], "sizes": [[width,
    height], ...]}`: the size of each page in pixels of the upright image, 0 x 0 where the page failed or its image
    cannot be read. Optional in both: `"passwords"`, which are tried on an encrypted PDF, and `"limits"`, the
    fields of `Limits` that are not as usual.
    """
    task = task | {"path": os.fsdecode(task["path"])}  # file names need not be text
    try:
        return _render(task) if "pages" in task else _open(task)
    except RenderError as error:
        return _fail_all(task, (error.code, error.message))
    except OSError as error:
        return _fail_all(task, ("unreadable", f"the file cannot be read: {error.strerror or error}"))
    except MemoryError:
        return _fail_all(task, ("unreadable", "the file does not fit into memory"))


def _fail_all(task: dict[str, Any], failure: Failure) -> dict[str, Any]:
    if "pages" not in task:
        return {"failure": failure}
    return {"pages": [failure for _ in task["pages"]], "sizes": [(0, 0) for _ in task["pages"]]}


def _open(task: dict[str, Any]) -> dict[str, Any]:
    path = task["path"]
    before = signature(path)
    with Path(path).open("rb") as file:
        sha256 = hashlib.file_digest(file, "sha256").hexdigest()
    facts = {"sha256": sha256, "signature": before}
    try:
        return facts | {"pages": count_pages(path, task["kind"], task.get("passwords", ()))}
    except RenderError as error:
        return facts | {"failure": (error.code, error.message)}


def _render(task: dict[str, Any]) -> dict[str, Any]:
    _require_unchanged(task)
    pages: list[bytes | Failure] = []
    sizes: list[tuple[int, int]] = []
    limits = Limits(**task.get("limits", {}))
    for page in render_selected(
        task["path"],
        task["kind"],
        task["pages"],
        dpi=task["dpi"],
        limits=limits,
        passwords=task.get("passwords", ()),
    ):
        if isinstance(page, RenderError):
            pages.append((page.code, page.message))
            sizes.append((0, 0))
        else:
            pages.append(page.data)
            sizes.append((page.width, page.height))
    _require_unchanged(task)
    return {"pages": pages, "sizes": sizes}


def _require_unchanged(task: dict[str, Any]) -> None:
    if signature(task["path"]) != task["signature"]:
        raise RenderError("source_changed", "the file changed while it was being embedded")


def serve(
    source: BinaryIO, target: BinaryIO, page_timeout_s: int, do: Callable[[dict[str, Any]], Any] = answer
) -> None:
    """Answer tasks until `source` ends or nobody reads `target`."""
    while header := source.read(LENGTH.size):
        task = msgpack.unpackb(source.read(*LENGTH.unpack(header)))
        signal.alarm(page_timeout_s * len(task.get("pages", [0])))
        packed = msgpack.packb(do(task))
        signal.alarm(0)
        target.write(LENGTH.pack(len(packed)) + packed)
        target.flush()


def main(do: Callable[[dict[str, Any]], Any] = answer) -> int:
    """Serve on stdin and stdout."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C reaches the whole group: our parent ends us
    signal.signal(signal.SIGALRM, signal.SIG_DFL)
    warnings.simplefilter("ignore")
    Image.MAX_IMAGE_PIXELS = None  # `colqueue_client.pages` bounds what it decodes, by bytes of memory
    # What a native library prints must not come between the answers.
    target = os.fdopen(os.dup(sys.stdout.fileno()), "wb")
    os.dup2(sys.stderr.fileno(), sys.stdout.fileno())
    try:
        serve(sys.stdin.buffer, target, int(sys.argv[1]), do)
    except BrokenPipeError:
        os._exit(0)  # not by way of a flush that breaks again
    return 0


if __name__ == "__main__":
    sys.exit(main())
