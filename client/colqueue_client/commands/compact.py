"""The command `colqueue compact`."""

import argparse
import sqlite3
import sys
from pathlib import Path

from colqueue_client.backfill.plan import Plan
from colqueue_client.commands.service import EXIT_CODES, Commands, add_command, print_json, print_lines
from colqueue_client.commands.values import count, folder
from colqueue_client.errors import BackfillError
from colqueue_client.printable import printable

__all__ = ["add_compact"]


def add_compact(commands: Commands) -> None:
    """Add `colqueue compact`."""
    default_mb = Plan([], Path()).shard_bytes // 2**20
    parser = add_command(
        commands,
        "compact",
        "merge the small Parquet files of a backfill",
        _compact,
        description="Merge the small Parquet files that many runs of `colqueue backfill` have left in a folder, and "
        "remove the pages\nof documents that are no longer part of it. It needs no service. It may be killed at any "
        "moment and run again.",
        epilog="examples:\n  colqueue compact embeddings\n  colqueue compact embeddings --shard-mb 1024\n\n"
        f"{EXIT_CODES}",
    )
    parser.add_argument("folder", type=folder, help="the folder that `colqueue backfill --out` has written to")
    parser.add_argument(
        "--shard-mb",
        type=count(),
        default=default_mb,
        metavar="MB",
        help="size up to which files are merged, in MiB (default: %(default)s)",
    )
    parser.add_argument("--json", action="store_true", help="print the result as JSON")


def _compact(options: argparse.Namespace) -> int:
    # It imports pyarrow, which comes with the extra `backfill`.
    from colqueue_client.backfill.compact import compact  # noqa: PLC0415

    try:
        done = compact(options.folder, options.shard_mb * 2**20, lambda line: sys.stderr.write(f"{printable(line)}\n"))
    except (OSError, sqlite3.Error) as error:
        raise BackfillError(f"cannot go on writing to {options.folder}: {error}") from error
    if options.json:
        print_json(done.as_dict())
    else:
        print_lines(str(done))
    return 0
