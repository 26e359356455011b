"""The command line, `colqueue`. Knows arguments and exit codes; each subcommand's work stands in its own module."""

import argparse
import sys
from collections.abc import Sequence
from typing import Final

from colqueue_client.errors import ClientError
from colqueue_client.launch.console import Console
from colqueue_client.launch.settings import up_settings
from colqueue_client.launch.up import up

__all__ = ["main"]

_INTERRUPTED: Final = 130  # what shells say of a command that Ctrl-C ended

_UP_HELP: Final = """\
Start Redis, a worker, the api and Flower on this machine, embed the pages of a sample document and a query through
HTTP, say where everything listens, and serve until Ctrl-C or SIGTERM, which end every process.

Settings come from the environment and from .env in the current folder. Data and logs go to var/ in the current folder.

  COLQUEUE_HOST         address of the api (127.0.0.1)
  COLQUEUE_PORT         port of the api (8000)
  COLQUEUE_FLOWER_PORT  port of Flower, always on 127.0.0.1 (5555)
  COLQUEUE_MODEL        a hub id, a folder, or `tiny`: random weights, to try the plumbing (tiny)
  COLQUEUE_REDIS_URL    a Redis to use (unset: start one, with its data in var/redis)
  SERVICE_API_KEY       the key that callers must bring (unset: make one and keep it in .env)
"""

_UP_EXAMPLES: Final = """\
examples:
  colqueue up
  COLQUEUE_PORT=8001 COLQUEUE_FLOWER_PORT=5556 colqueue up
  COLQUEUE_MODEL=tsystems/colqwen2.5-3b-multilingual-v1.0 colqueue up
  colqueue up --check

exit codes: 0 stopped as asked, or the check passed; 1 something failed; 130 interrupted before it was serving
"""


def main(arguments: Sequence[str] | None = None) -> int:
    """Run `colqueue` with `arguments` (the process's own by default) and return its exit code."""
    options = _parser().parse_args(arguments)
    console = Console(sys.stdout)
    try:
        up(up_settings(), console, check=options.check, ready_timeout_s=options.ready_timeout)
    except ClientError as error:
        console.say(f"Failed: {error}")
        return 1
    except KeyboardInterrupt:
        console.say("Interrupted before it was serving.")
        return _INTERRUPTED
    return 0


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="colqueue", description="Multi-vectors for page images and queries.")
    commands = parser.add_subparsers(dest="command", required=True, metavar="COMMAND")
    up_parser = commands.add_parser(
        "up",
        help="start everything on this machine and serve",
        description=_UP_HELP,
        epilog=_UP_EXAMPLES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    up_parser.add_argument("--check", action="store_true", help="start, embed the sample, stop: for scripts and CI")
    up_parser.add_argument(
        "--ready-timeout",
        type=float,
        default=1800,
        metavar="S",
        help="give up when it is not ready after S seconds (%(default)s); raise it to fetch a large model slowly",
    )
    return parser


if __name__ == "__main__":
    sys.exit(main())
