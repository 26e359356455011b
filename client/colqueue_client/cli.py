"""The command line, `colqueue`. Knows its subcommands and exit codes; the work of each stands in its own module."""

import argparse
import os
import sys
from collections.abc import Sequence
from typing import Final

from colqueue_client.commands.backfill import add_backfill
from colqueue_client.commands.embed import add_embed
from colqueue_client.commands.jobs import add_cancel, add_job, add_jobs
from colqueue_client.commands.search import add_search
from colqueue_client.commands.status import add_status
from colqueue_client.commands.up import add_up
from colqueue_client.errors import ClientError, UnreachableError

__all__ = ["main"]

_FAILED: Final = 1
_UNREACHABLE: Final = 3
_INTERRUPTED: Final = 130  # what shells say of a command that Ctrl-C ended


def main(arguments: Sequence[str] | None = None) -> int:
    """Run `colqueue` with `arguments` (the process's own by default) and return its exit code."""
    options = _parser().parse_args(arguments)
    try:
        code: int = options.run(options)
        sys.stdout.flush()
    except ClientError as error:
        sys.stderr.write(f"colqueue: {error}\n")
        return _UNREACHABLE if isinstance(error, UnreachableError) else _FAILED
    except ModuleNotFoundError as error:
        sys.stderr.write(f"colqueue: {error.name} is not installed: pip install 'colqueue-client[{_extra(options)}]'\n")
        return _FAILED
    except BrokenPipeError:  # the reader left (`colqueue jobs | head`): Python would complain of it once more at exit
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return _FAILED
    except KeyboardInterrupt:
        sys.stderr.write("colqueue: interrupted\n")
        return _INTERRUPTED
    return code


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="colqueue", description="Multi-vectors for page images and queries.")
    commands = parser.add_subparsers(dest="command", required=True, metavar="COMMAND")
    for add in (add_up, add_embed, add_backfill, add_search, add_status, add_jobs, add_job, add_cancel):
        add(commands)
    return parser


def _extra(options: argparse.Namespace) -> str:
    if options.command == "up":
        return "up"
    stored = getattr(options, "format", "")
    return stored if stored in {"lancedb", "qdrant"} else "backfill"


if __name__ == "__main__":
    sys.exit(main())
