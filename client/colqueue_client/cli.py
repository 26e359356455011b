"""Runs the command line `colqueue` and turns errors into messages and exit codes."""

import argparse
import io
import os
import sys
from collections.abc import Sequence
from importlib.metadata import version
from typing import Final, NoReturn

from colqueue_client.commands.backfill import add_backfill
from colqueue_client.commands.compact import add_compact
from colqueue_client.commands.embed import add_embed
from colqueue_client.commands.jobs import add_cancel, add_job, add_jobs
from colqueue_client.commands.search import add_search
from colqueue_client.commands.service import ExitCode, print_error
from colqueue_client.commands.status import add_status
from colqueue_client.commands.up import add_up
from colqueue_client.errors import BackfillError, ClientError, OutputError, ServiceError, UnreachableError
from colqueue_client.printable import printable

__all__ = ["main"]

# The first that fits holds.
_CODES: Final = (
    (UnreachableError, ExitCode.UNREACHABLE),
    (ServiceError, ExitCode.REFUSED),
    (BackfillError, ExitCode.STOPPED),
    (OutputError, ExitCode.STOPPED),
    (ClientError, ExitCode.FAILED),
)


def main(arguments: Sequence[str] | None = None) -> int:
    """Run `colqueue` with `arguments` (the process's own by default) and return its exit code."""
    for stream in (sys.stdout, sys.stderr):  # a name need not have characters of the terminal's encoding
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="backslashreplace")
    options = _parser().parse_args(arguments)
    try:
        code: int = options.run(options)
    except ClientError as error:
        print_error(f"{error}{_hint(error)}")
        if isinstance(error, OutputError):
            _leave_stdout()
        return next(code for kind, code in _CODES if isinstance(error, kind))
    except ModuleNotFoundError as error:
        print_error(f"{error.name} is not installed: pip install 'colqueue-client[{_extra(options)}]'")
        return ExitCode.NOT_INSTALLED
    except BrokenPipeError:  # the reader left (`colqueue jobs | head`)
        _leave_stdout()
        return ExitCode.FAILED
    except KeyboardInterrupt as error:
        print_error(str(error) or "interrupted")
        return ExitCode.INTERRUPTED
    return code


def _hint(error: ClientError) -> str:
    """Return what to do about an error, where the service does not say it."""
    if isinstance(error, ServiceError) and error.status in {401, 403}:
        return ". Give one of the service's keys by SERVICE_API_KEY or --key"
    return ""


def _leave_stdout() -> None:
    """Let what is left of the output go nowhere: Python would try once more to write it at exit, and complain."""
    os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


def _parser() -> argparse.ArgumentParser:
    parser = _Parser(prog="colqueue", description="Multi-vectors for page images and queries.")
    parser.add_argument("--version", action="version", version=f"colqueue {version('colqueue-client')}")
    commands = parser.add_subparsers(dest="command", required=True, metavar="COMMAND")
    for add in (add_up, add_embed, add_backfill, add_compact, add_search, add_status, add_jobs, add_job, add_cancel):
        add(commands)
    return parser


class _Parser(argparse.ArgumentParser):
    """Shows arguments in its messages without what a terminal would obey; a pattern of the shell may name any file."""

    def error(self, message: str) -> NoReturn:
        super().error(printable(message))


def _extra(options: argparse.Namespace) -> str:
    if options.command == "up":
        return "up"
    stored = getattr(options, "format", "")
    return stored if stored in {"lancedb", "qdrant"} else "backfill"


if __name__ == "__main__":
    sys.exit(main())
