"""`colqueue status`: shows workers, lanes, queue depth and rate."""

import argparse
import time
from dataclasses import asdict
from typing import Final

from colqueue_client.commands.service import (
    EXIT_CODES,
    Commands,
    add_command,
    add_service_options,
    connect,
    print_json,
    print_lines,
)
from colqueue_client.commands.values import seconds
from colqueue_client.launch.report import table
from colqueue_client.status import Status, status_from

__all__ = ["add_status"]

# Workers say how they do every 2 s.
_OVER_S: Final = 5.0


def add_status(commands: Commands) -> None:
    """Add `colqueue status`."""
    parser = add_command(
        commands,
        "status",
        "show workers, lanes, queue depth and rate",
        _status,
        description="Show whether the service is ready, its workers and what waits in its lanes. The rate is that of "
        "the seconds\nfor which this command looks.",
        epilog="examples:\n  colqueue status\n  colqueue status --over 30 --json\n\n"
        f"{EXIT_CODES.replace('an input or a job failed', 'the service is not ready')}",
    )
    parser.add_argument(
        "--over", type=seconds, default=_OVER_S, metavar="S", help="look for S seconds (default: %(default)s)"
    )
    parser.add_argument("--json", action="store_true", help="print JSON")
    add_service_options(parser)


def _status(options: argparse.Namespace) -> int:
    with connect(options) as colqueue:
        readiness = colqueue.readiness()
        before, started = status_from(colqueue.metrics()), time.monotonic()
        time.sleep(options.over)
        now, seconds = status_from(colqueue.metrics()), time.monotonic() - started
    rates = _rates(before, now, seconds)
    if options.json:
        workers = {name: asdict(worker) | {"inputs_per_s": rates[name]} for name, worker in now.workers.items()}
        print_json({"ready": readiness.ready, "reason": readiness.reason, "queued": now.queued, "workers": workers})
    else:
        print_lines("ready" if readiness.ready else f"not ready: {readiness.reason}")
        lanes = [[lane, str(tasks)] for lane, tasks in now.queued.items()]
        print_lines("\n" + table(["lane", "tasks queued"], lanes))
        if now.workers:
            print_lines(
                "\n" + table(["worker", "model", "state", "waiting", "embedded", "inputs/s"], _cells(now, rates))
            )
    return 0 if readiness.ready else 1


def _rates(before: Status, now: Status, seconds: float) -> dict[str, float]:
    return {
        name: (worker.inputs - before.workers[name].inputs) / seconds if name in before.workers else 0.0
        for name, worker in now.workers.items()
    }


def _cells(status: Status, rates: dict[str, float]) -> list[list[str]]:
    return [
        [
            name,
            worker.model,
            "ready" if worker.ready else "not ready",
            str(worker.waiting),
            str(worker.inputs),
            f"{rates[name]:.2f}",
        ]
        for name, worker in status.workers.items()
    ]
