"""What the service's metrics say of its workers and queues. Knows their names; asks nobody."""

import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Final

__all__ = ["Status", "Worker", "status_from"]

_SAMPLE: Final = re.compile(r"^([a-zA-Z_:][\w:]*)(?:\{(.*)\})? (\S+)", re.MULTILINE)
_LABEL: Final = re.compile(r'(\w+)="((?:[^"\\]|\\.)*)"')
_ESCAPED: Final = {r"\\": "\\", r"\"": '"', r"\n": "\n"}


@dataclass(slots=True)
class Worker:
    """One worker that was heard of lately."""

    model: str = ""
    ready: bool = False
    waiting: int = 0
    """Inputs that are prepared and not yet in a batch."""
    inputs: int = 0
    """Embedded since it started."""
    busy_s: float = 0.0
    """Of which its model was computing."""


@dataclass(frozen=True, slots=True)
class Status:
    """The service at one moment."""

    queued: Mapping[str, int] = field(default_factory=dict)
    """Tasks that no worker has taken yet, by lane. A task is a few pages or a few dozen texts of one job."""
    workers: Mapping[str, Worker] = field(default_factory=dict)

    @property
    def models(self) -> set[str]:
        """The models of the workers that take work."""
        return {worker.model for worker in self.workers.values() if worker.ready}


def status_from(metrics: str) -> Status:
    """Read Prometheus's text format, as `/metrics` answers it."""
    queued: dict[str, int] = {}
    workers: dict[str, Worker] = {}
    for name, labels, value in _samples(metrics):
        worker = workers.setdefault(labels["worker"], Worker()) if "worker" in labels else Worker()
        match name:
            case "colqueue_queue_tasks":
                queued[labels["lane"]] = int(value)
            case "colqueue_worker_ready":
                worker.model, worker.ready = labels["model"], value == 1
            case "colqueue_worker_inputs_waiting":
                worker.waiting = int(value)
            case "colqueue_worker_inputs_total":
                worker.inputs = int(value)
            case "colqueue_worker_busy_seconds_total":
                worker.busy_s = value
            case _:
                pass
    return Status(queued, workers)


def _samples(metrics: str) -> Iterator[tuple[str, dict[str, str], float]]:
    for name, labels, value in _SAMPLE.findall(metrics):
        pairs = {
            label: re.sub(r"\\.", lambda escape: _ESCAPED.get(escape[0], escape[0]), text)
            for label, text in _LABEL.findall(labels)
        }
        yield name, pairs, float(value)
