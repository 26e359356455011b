"""`colqueue jobs`, `job` and `cancel`: show and cancel jobs."""

import argparse
from dataclasses import asdict
from typing import Final

from colqueue_client.client import Client
from colqueue_client.commands.service import (
    EXIT_CODES,
    Commands,
    add_command,
    add_service_options,
    connect,
    print_json,
    print_lines,
)
from colqueue_client.commands.values import count
from colqueue_client.launch.report import table
from colqueue_client.wire import Job

__all__ = ["add_cancel", "add_job", "add_jobs"]

_HEAD: Final = ("job", "status", "lane", "kind", "inputs", "done", "failed", "created")


def add_jobs(commands: Commands) -> None:
    """Add `colqueue jobs`."""
    parser = add_command(
        commands,
        "jobs",
        "list this key's jobs",
        _jobs,
        description="List the jobs of this key, newest first.",
        epilog=f"examples:\n  colqueue jobs\n  colqueue jobs --limit 1000 --json | jq '.[].id'\n\n{EXIT_CODES}",
    )
    parser.add_argument(
        "--limit", type=count(), default=50, metavar="N", help="number of jobs at most (default: %(default)s)"
    )
    _add_options(parser)


def add_job(commands: Commands) -> None:
    """Add `colqueue job`."""
    parser = add_command(
        commands,
        "job",
        "show one job",
        _job,
        description="Show a job; with --wait, once it is finished.",
        epilog="examples:\n  colqueue job 0f3a...\n  colqueue job 0f3a... --wait --json\n\n"
        f"{EXIT_CODES.replace('an input or a job failed', 'the job failed or was cancelled')}",
    )
    parser.add_argument("id")
    parser.add_argument("--wait", action="store_true", help="wait until it is finished")
    _add_options(parser)


def add_cancel(commands: Commands) -> None:
    """Add `colqueue cancel`."""
    parser = add_command(
        commands,
        "cancel",
        "give up what a job has not done yet",
        _cancel,
        description="Cancel a job: what waits is never embedded. The result of a finished job is dropped.",
        epilog=f"examples:\n  colqueue cancel 0f3a...\n\n{EXIT_CODES}",
    )
    parser.add_argument("id")
    _add_options(parser)


def _add_options(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--json", action="store_true", help="print JSON")
    add_service_options(parser)


def _jobs(options: argparse.Namespace) -> int:
    with connect(options) as colqueue:
        jobs = _newest(colqueue, options.limit)
    if options.json:
        print_json([asdict(job) for job in jobs])
    else:
        print_lines(table(_HEAD, [_cells(job) for job in jobs]))
    return 0


def _newest(colqueue: Client, count: int) -> list[Job]:
    found: list[Job] = []
    after = None
    while len(found) < count:
        page, after = colqueue.jobs(limit=min(count - len(found), 1000), after=after)
        found += page
        if after is None:
            break
    return found


def _job(options: argparse.Namespace) -> int:
    with connect(options) as colqueue:
        job = colqueue.wait(options.id) if options.wait else colqueue.job(options.id)
    return _told(job, as_json=options.json)


def _cancel(options: argparse.Namespace) -> int:
    with connect(options) as colqueue:
        job = colqueue.cancel(options.id)
    _told(job, as_json=options.json)
    return 0


def _told(job: Job, *, as_json: bool) -> int:
    if as_json:
        print_json(asdict(job))
    else:
        print_lines(table(_HEAD, [_cells(job)]))
    return 1 if job.status in {"failed", "cancelled"} else 0


def _cells(job: Job) -> list[str]:
    counts = [str(count) for count in (job.total, job.completed, job.failed)]
    return [job.id, job.status, job.lane, job.input_type, *counts, f"{job.created_at:%Y-%m-%d %H:%M:%S}"]
