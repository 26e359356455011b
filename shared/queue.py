"""Defines the Celery app with its queues and its one task, and puts work into the queues."""

import math
import ssl
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any

from celery import Celery
from kombu.entity import Queue
from kombu.exceptions import OperationalError

from shared.errors import StoreUnavailableError
from shared.jobs import Job, Lane
from shared.messages import INPUTS_HEADER, JOB_HEADER, QUEUED_AT_HEADER, REQUEST_HEADER, TASK_NAME, TOKENS_HEADER
from shared.redis_errors import redis_errors_translated
from shared.settings import StoreSettings

__all__ = ["celery_app", "forward", "publish", "shards", "task_tokens"]

# Jobs and tasks that were registered before costs were estimated do not say what they cost.
_INPUTS_OF_UNKNOWN_COST = 4
_UNKNOWN_TOKENS = 3200


def celery_app(settings: StoreSettings) -> Celery:
    """Return the Celery app that every process configures alike. Connects to nothing."""
    app = Celery("colqueue", broker=settings.redis_dsn)
    app.conf.update(
        # msgpack only, so that no message can ever unpickle.
        task_serializer="msgpack",
        result_serializer="msgpack",
        accept_content=["msgpack"],
        task_queues=[Queue(queue) for lane in Lane for queue in lane.queues],
        task_default_queue=str(Lane.BULK),
        task_create_missing_queues=False,
        # State lives in our store; Celery's own result backend would cost a subscription a task.
        task_ignore_result=True,
        # A task that dies with its worker goes back to the queue; repeating one is harmless (see shared.registry).
        task_acks_late=True,
        task_reject_on_worker_lost=True,
        worker_prefetch_multiplier=1,
        worker_cancel_long_running_tasks_on_connection_loss=False,
        worker_send_task_events=True,
        task_send_sent_event=True,
        worker_hijack_root_logger=False,
        broker_connection_retry_on_startup=True,
        broker_connection_max_retries=None,
        # A Redis that refuses something for a while (full, read-only, loading) is waited for as one that is away.
        broker_channel_error_retry=True,
        # Where the URL says nothing of certificates, kombu would take any; what it says goes before this.
        broker_use_ssl={"ssl_cert_reqs": ssl.CERT_REQUIRED} if settings.redis_dsn.startswith("rediss://") else None,
        broker_transport_options={
            "visibility_timeout": settings.visibility_timeout_s,
            "unacked_restore_interval": 1,
            "unacked_restore_throttle": 1,
            # A connection that a proxy or a router forgot stays open and silent: these find it, in that order where
            # something was asked and where nothing was. Reading a queue asks for an answer every moment.
            "socket_timeout": 5,
            "health_check_interval": 10,
            "socket_keepalive": True,
            "socket_connect_timeout": 5,
            "priority_steps": [0],
        },
    )
    return app


def publish(  # noqa: PLR0913 - all but the first four have defaults
    app: Celery,
    settings: StoreSettings,
    job: Job,
    indices: Sequence[int],
    costs: Sequence[int] | None = None,
    *,
    queued_at: float | None = None,
) -> None:
    """Queue these inputs of a job in shards of at most `task_tokens`.

    `costs` are the tokens of each; where they are not given, all inputs are taken to cost the same. `queued_at` dates
    the tasks by Redis's clock; without it, they are as old as the job. Blocks; where `UnavailableError` is raised, some
    may be queued.
    """
    dated = job.created_at.timestamp() if queued_at is None else queued_at
    if costs is None:
        costs = [_mean_cost(job, settings)] * len(indices)
    headers = {QUEUED_AT_HEADER: dated, REQUEST_HEADER: job.request_id}
    _send(app, job.queue, job.id, shards(indices, costs, settings.task_tokens), headers)


def forward(app: Celery, queue: str, job_id: str, indices: list[int], headers: Mapping[str, Any]) -> None:
    """Queue a task in another queue. `headers` are those it came with; raises as `publish` does."""
    kept = {name: headers[name] for name in (QUEUED_AT_HEADER, REQUEST_HEADER) if name in headers}
    _send(app, queue, job_id, [(indices, headers.get(TOKENS_HEADER) or 0)], kept)


def _send(
    app: Celery, queue: str, job_id: str, shards: Iterable[tuple[list[int], int]], headers: Mapping[str, Any]
) -> None:
    try:
        with redis_errors_translated():
            for shard, tokens in shards:
                # Celery takes a producer for each task. After each it sends an event; where that fails, the producer's
                # channel stays closed, and Celery says nothing.
                app.send_task(
                    TASK_NAME,
                    (job_id, shard),
                    queue=Queue(queue),  # by name, Celery sends to the queues of `task_queues` only
                    # Sending needs no declared queue. Where kombu declares one over a connection that has died, it
                    # connects again for the declaration, then sends over the channel that it has closed.
                    declare=[],
                    retry_policy={"max_retries": 2, "interval_start": 0, "interval_step": 0.2},
                    headers={JOB_HEADER: job_id, INPUTS_HEADER: shard, TOKENS_HEADER: tokens, **headers},
                    argsrepr=f"({job_id}, {_numbers(shard)})",
                )
    except OperationalError as error:
        raise StoreUnavailableError("The queue does not answer. Please try again later.") from error


def task_tokens(headers: Any) -> int:
    """Return the estimated cost of a task by the headers of its message: that of four pages where they lack it."""
    tokens = headers.get(TOKENS_HEADER) if isinstance(headers, Mapping) else None
    return tokens if isinstance(tokens, int) and tokens > 0 else _UNKNOWN_TOKENS


def shards(indices: Sequence[int], costs: Sequence[int], max_tokens: int) -> Iterator[tuple[list[int], int]]:
    """Cut the inputs into runs of neighbours of similar cost, each with its tokens.

    A run costs at most `max_tokens`, or is a single input.
    """
    left = sum(costs)
    shard: list[int] = []
    tokens = 0
    for index, cost in zip(indices, costs, strict=True):
        even = left / math.ceil(left / max_tokens)
        if shard and (tokens + cost > max_tokens or tokens + cost / 2 > even):
            yield shard, tokens
            shard, left, tokens = [], left - tokens, 0
        shard.append(index)
        tokens += cost
    if shard:
        yield shard, tokens


def _mean_cost(job: Job, settings: StoreSettings) -> int:
    return max((job.tokens // job.total) or settings.task_tokens // _INPUTS_OF_UNKNOWN_COST, 1)


def _numbers(shard: list[int]) -> str:
    if len(shard) == 1:
        return f"input {shard[0]}"
    whole = shard == list(range(shard[0], shard[-1] + 1))
    return f"inputs {shard[0]}-{shard[-1]}" if whole else f"inputs {', '.join(map(str, shard))}"
