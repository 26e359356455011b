"""The command `colqueue up`, which starts the whole stack on this machine."""

import argparse
import sys
from typing import Final

from colqueue_client.commands.service import Commands, add_command
from colqueue_client.commands.values import seconds
from colqueue_client.errors import ClientError

__all__ = ["add_up"]

_INTERRUPTED: Final = 130  # what shells say of a command that Ctrl-C ended

_HELP: Final = """\
Start Redis, a worker, the api and Flower on this machine, embed the pages of a sample document and a query through
HTTP, say where everything listens, and serve until Ctrl-C or SIGTERM, which end every process.

Settings come from the environment and from .env in the current folder. Data and logs go to var/ in the current folder.

  COLQUEUE_HOST         address of the api (127.0.0.1)
  COLQUEUE_PORT         port of the api (8000)
  COLQUEUE_FLOWER_PORT  port of Flower, always on 127.0.0.1 (5555)
  COLQUEUE_MODEL        a hub id, a folder, or `tiny`: random weights, to try the plumbing (tiny)
  COLQUEUE_REDIS_URL    a Redis to use (unset: start one, with its data in var/redis)
  SERVICE_API_KEY       the key that callers must bring (unset: make one and keep it in .env)
  FLOWER_BASIC_AUTH     user:password that Flower asks for (unset: make one and keep it in .env)
"""

_EXAMPLES: Final = """\
examples:
  colqueue up
  COLQUEUE_PORT=8001 COLQUEUE_FLOWER_PORT=5556 colqueue up
  COLQUEUE_MODEL=tsystems/colqwen2.5-3b-multilingual-v1.0 colqueue up
  colqueue up --check

exit codes: 0 stopped as asked, or the check passed; 1 something failed; 130 interrupted before it was serving
"""


def add_up(commands: Commands) -> None:
    """Add `colqueue up`."""
    parser = add_command(
        commands, "up", "start everything on this machine and serve", _up, description=_HELP, epilog=_EXAMPLES
    )
    parser.add_argument("--check", action="store_true", help="start, embed the sample, stop: for scripts and CI")
    parser.add_argument(
        "--ready-timeout",
        type=seconds,
        default=1800,
        metavar="S",
        help="give up when it is not ready after S seconds (%(default)s); raise it to fetch a large model slowly",
    )


def _up(options: argparse.Namespace) -> int:
    # Settings and rendering come with the extra `up`; the other commands do without.
    from colqueue_client.launch.console import Console  # noqa: PLC0415
    from colqueue_client.launch.settings import up_settings  # noqa: PLC0415
    from colqueue_client.launch.up import up  # noqa: PLC0415

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
