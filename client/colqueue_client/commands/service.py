"""Holds what several commands need: the options that name a service, exit codes, and printing."""

import argparse
import json
import sys
from collections.abc import Callable
from contextlib import suppress
from dataclasses import asdict
from datetime import UTC, datetime
from enum import IntEnum
from typing import Any, Final

from colqueue_client.backfill.interrupt import INTERRUPTED
from colqueue_client.calls import Retry
from colqueue_client.client import AsyncClient, Client
from colqueue_client.errors import OutputError
from colqueue_client.printable import printable
from colqueue_client.wire import Job

__all__ = [
    "EXIT_CODES",
    "OTHER_CODES",
    "Commands",
    "ExitCode",
    "add_command",
    "add_service_options",
    "connect",
    "connect_async",
    "print_error",
    "print_json",
    "print_lines",
]

Commands = Any
"""What `add_subparsers` returns; argparse gives its class no public name."""

# A person waits.
_PATIENCE_S: Final = 10.0


class ExitCode(IntEnum):
    """The exit codes of every command but `up`."""

    DONE = 0
    FAILED = 1
    """The command did its work, and something in it failed: some pages, an input, the job."""
    USAGE = 2
    """argparse's own."""
    UNREACHABLE = 3
    REFUSED = 4
    STOPPED = 5
    NOT_INSTALLED = 6
    INTERRUPTED = INTERRUPTED


OTHER_CODES: Final = """\
  2    an option or an argument is wrong
  3    the service does not answer, or what answers at the URL is no colqueue
  4    the service refuses the request: the key, for example
  5    the command cannot start or go on: a source, a folder, the disk or the store; the message says which
  6    a package that the command needs is not installed
  130  interrupted by Ctrl-C"""

EXIT_CODES: Final = f"""\
exit codes:
  0    done
  1    an input or a job failed
{OTHER_CODES}"""


def add_command(  # noqa: PLR0913 - what argparse takes, and what runs
    commands: Commands,
    name: str,
    summary: str,
    run: Callable[[argparse.Namespace], int],
    *,
    description: str,
    epilog: str,
) -> argparse.ArgumentParser:
    """Add a subcommand whose help texts stand as they are written."""
    parser: argparse.ArgumentParser = commands.add_parser(
        name,
        help=summary,
        description=description,
        epilog=epilog,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.set_defaults(run=run)
    return parser


def add_service_options(parser: argparse.ArgumentParser) -> None:
    """Add the options that say which service, and with which key."""
    parser.add_argument("--url", help="where the service listens (COLQUEUE_URL, or http://127.0.0.1:8000)")
    parser.add_argument("--key", help="one of its keys (SERVICE_API_KEY); other users of this machine can see options")


def connect(options: argparse.Namespace) -> Client:
    """Return the client of the service that the options name."""
    return Client(options.url, options.key, retry=Retry(for_s=_PATIENCE_S))


def connect_async(options: argparse.Namespace) -> AsyncClient:
    """Return the same client for an event loop."""
    return AsyncClient(options.url, options.key, retry=Retry(for_s=_PATIENCE_S))


def print_json(value: Any) -> None:
    """Write one JSON value and a line's end."""
    _write(json.dumps(value, default=_json) + "\n")


def print_lines(text: str) -> None:
    """Write lines, with escapes in place of what a terminal would obey."""
    _write("".join(f"{printable(line)}\n" for line in text.split("\n")))


def print_error(message: str) -> None:
    """Write a message to stderr, where that is possible: it may be a file on a disk that is full."""
    with suppress(OSError):
        sys.stderr.write(f"colqueue: {printable(message)}\n")
        sys.stderr.flush()


def _write(text: str) -> None:
    try:
        sys.stdout.write(text)
        sys.stdout.flush()
    except BrokenPipeError:  # the reader left, and knows it
        raise
    except OSError as error:
        raise OutputError(f"the output cannot be written: {error.strerror}") from error


def _json(value: Any) -> Any:
    if isinstance(value, datetime):
        return value.astimezone(UTC).isoformat()
    if isinstance(value, Job):
        return asdict(value)
    raise TypeError(f"{type(value)} is not JSON")
