"""Runs Celery's side of the worker: the task, the order of the queues, the lease on work in hand."""

import logging
from typing import Any

import redis
import structlog
from celery import Celery, Task, bootsteps
from celery.exceptions import Reject
from celery.signals import setup_logging, worker_shutting_down
from kombu.entity import Queue
from kombu.transport.redis import Transport
from structlog.contextvars import bound_contextvars

from shared.errors import InputError, NewerRecordError, UnavailableError, UnreadableRecordError
from shared.jobs import Lane
from shared.messages import REQUEST_HEADER, TASK_NAME
from shared.queue import forward
from worker.batcher import BatcherClosedError
from worker.channel import Reading, TaskChannel
from worker.queue_order import QueueOrder, tasks_in_hand
from worker.remote_control import close_remote_control
from worker.settings import WorkerSettings
from worker.shard import ShardRunner
from worker.store import OtherModelError, Store

__all__ = ["consume", "worker_queues"]

_log = structlog.get_logger(__name__)

# How long reading the queues blocks, so how late a queue that was left out is looked at again.
_POLL_S = 0.1


def consume(  # noqa: PLR0913, PLR0917 it puts the parts of a worker together
    app: Celery, runner: ShardRunner, store: Store, settings: WorkerSettings, name: str, reading: Reading
) -> None:
    """Run shards until SIGTERM; then finish the batch that runs and hand back the rest."""
    # By name: Flower asks for the configuration, and a class cannot be sent.
    order = f"{QueueOrder.__module__}:{QueueOrder.__name__}"
    app.conf.broker_transport_options |= {"polling_interval": _POLL_S, "queue_order_strategy": order}
    app.conf.worker_redirect_stdouts = False
    QueueOrder.bulk_tasks = settings.bulk_tasks
    app.steps["consumer"].add(Lease)
    if not settings.remote_control:
        close_remote_control()
    TaskChannel.reading = reading
    Transport.Channel = TaskChannel
    worker_shutting_down.connect(lambda **_: runner.stop(), weak=False)
    setup_logging.connect(lambda **_: None, weak=False)  # while somebody listens, Celery leaves our logs alone
    # We log tasks ourselves, with the job id.
    logging.getLogger("celery.worker.strategy").setLevel(logging.WARNING)
    logging.getLogger("celery.app.trace").setLevel(logging.CRITICAL)
    _register(app, runner, store)
    queues = sorted(worker_queues(runner.model_id))
    app.conf.task_queues = [Queue(queue) for queue in queues]
    app.worker_main(
        [
            *("--quiet", "worker", f"--hostname=worker@{name}", "--pool=threads", f"--concurrency={settings.threads}"),
            *(f"--queues={','.join(queues)}", "--without-gossip", "--without-mingle"),
        ]
    )


def worker_queues(model_id: str) -> set[str]:
    """Return the queues that a worker reads: those of its model, and those of jobs that are not bound to a model."""
    return {queue for lane in Lane for queue in (*lane.queues, *lane.queues_of(model_id))}


def _register(app: Celery, runner: ShardRunner, store: Store) -> None:
    class Embed(Task):  # type: ignore[misc]  # celery ships no types
        """Embed some inputs of one job."""

        name = TASK_NAME

        def run(self, job_id: str, indices: list[int]) -> str:
            lane = Lane.of(self.request.delivery_info["routing_key"])
            with bound_contextvars(job=job_id, request=self.request.get(REQUEST_HEADER)):
                try:
                    return runner.run(job_id, indices, lane)
                except NewerRecordError as error:
                    # A worker of that release may take it meanwhile, and this one does not turn in a circle.
                    QueueOrder.leave_out(self.request.delivery_info["routing_key"])
                    _log.error("task.too_new", indices=indices, reason=error.message)
                    raise Reject(error, requeue=True) from error
                except UnreadableRecordError as error:
                    _log.error("task.dropped", indices=indices, reason=error.message)
                    return "dropped: the job's record cannot be read"
                except (UnavailableError, BatcherClosedError) as error:
                    # A plain raise would acknowledge the task, and it would be lost.
                    _log.info("task.handed_back", indices=indices, reason=str(error) or type(error).__name__)
                    raise Reject(error, requeue=True) from error
                except OtherModelError as error:
                    self._forward(error.queue, job_id, indices)
                    return "forwarded: another model answers this job"

        def _forward(self, queue: str, job_id: str, indices: list[int]) -> None:
            """Queue this task again where the workers of its job's model find it."""
            try:
                forward(self.app, queue, job_id, indices, self.request.headers or {})
            except UnavailableError as error:
                raise Reject(error, requeue=True) from error
            _log.info("task.forwarded", indices=indices, queue=queue)

        def on_failure(self, exc: Exception, task_id: str, args: Any, *_: Any) -> None:
            """Fail the inputs of a task that a fault of ours ended: none may wait for ever."""
            job_id, indices = args
            request = self.request.get(REQUEST_HEADER)
            _log.error("task.failed", job=job_id, request=request, indices=indices, task=task_id, exc_info=exc)
            failure = InputError("An unexpected error in the worker stopped this input.")
            store.save(job_id, dict.fromkeys(indices, failure))

    app.register_task(Embed())


class Lease(bootsteps.StartStopStep):  # type: ignore[misc]  # celery ships no types
    """Renews, every third of the visibility timeout, the claim on the tasks this worker holds.

    The timeout can then be short, so that a dead worker's tasks return soon, without a long task running twice.
    """

    requires = ("celery.worker.consumer.tasks:Tasks",)

    def __init__(self, consumer: Any, **_: Any) -> None:
        consumer.lease = self
        self._timer: Any = None

    def start(self, consumer: Any) -> None:
        """Begin with the consumer's connection; called again after a reconnect."""
        every_s = consumer.app.conf.broker_transport_options["visibility_timeout"] / 3
        self._timer = consumer.timer.call_repeatedly(every_s, self._renew, (consumer,))

    def stop(self, consumer: Any) -> None:
        """End with the connection."""
        del consumer
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None

    shutdown = stop

    @staticmethod
    def _renew(consumer: Any) -> None:
        tags = [request.message.delivery_tag for request in tasks_in_hand()]
        if not tags:
            return
        channel = consumer.connection.default_channel
        try:
            with channel.conn_or_acquire() as client:
                seconds, _ = client.time()
                client.zadd(channel.unacked_index_key, dict.fromkeys(tags, seconds), xx=True)
        except (*consumer.connection_errors, redis.RedisError) as error:
            _log.warning("lease.not_renewed", tasks=len(tags), reason=str(error))
