"""Jobs to tasks: cut into shards, published to the broker. Knows Celery; carries ids, never payloads."""

import itertools
from collections.abc import Iterator

import structlog
from celery import Celery
from fastapi.concurrency import run_in_threadpool
from kombu.exceptions import OperationalError

from shared.errors import StoreUnavailableError
from shared.jobs import InputType, Job
from shared.queue import TASK_NAME

__all__ = ["Queue", "shards"]

_log = structlog.get_logger(__name__)


class Queue:
    """Publishes off the event loop: Celery's connection is a blocking one."""

    def __init__(self, app: Celery, *, task_pages: int, task_texts: int) -> None:
        self._app = app
        self._inputs_a_task = {InputType.IMAGE: task_pages, InputType.TEXT: task_texts}

    async def publish(self, job: Job) -> None:
        """Queue all shards of a job. Where `StoreUnavailableError` is raised, some may be queued."""
        await run_in_threadpool(self._publish, job)
        _log.info("job.queued", job=job.id, input_type=job.input_type.value, inputs=job.total, lane=job.lane.value)

    def _publish(self, job: Job) -> None:
        try:
            with self._app.producer_or_acquire() as producer:
                for indices in shards(job.total, self._inputs_a_task[job.input_type]):
                    self._app.send_task(
                        TASK_NAME,
                        (job.id, indices),
                        queue=job.lane.value,
                        producer=producer,
                        retry_policy={"max_retries": 2, "interval_start": 0, "interval_step": 0.2},
                        argsrepr=f"({job.id}, {_span(indices)})",
                    )
        except OperationalError as error:
            raise StoreUnavailableError("The queue does not answer. Please try again later.") from error


def shards(total: int, inputs_a_task: int) -> Iterator[list[int]]:
    """Cut the inputs of a job into runs of neighbours, as even as they come."""
    tasks = -(-total // inputs_a_task)
    ends = [total * task // tasks for task in range(tasks + 1)]
    return (list(range(start, end)) for start, end in itertools.pairwise(ends))


def _span(indices: list[int]) -> str:
    first, last = indices[0], indices[-1]
    return f"input {first}" if first == last else f"inputs {first}-{last}"
