"""The Celery app: its queues, its one task and the settings measured to hold. Knows no payload, result or model."""

from celery import Celery
from kombu.entity import Queue

from shared.jobs import Lane
from shared.settings import StoreSettings

__all__ = ["TASK_NAME", "celery_app"]

TASK_NAME = "colqueue.embed"
"""The unit of work: `(job id, [index, ...])`."""


def celery_app(settings: StoreSettings) -> Celery:
    """Return the Celery app that every process configures alike. Connects to nothing."""
    app = Celery("colqueue", broker=settings.redis_dsn)
    app.conf.update(
        # msgpack only, so that no message can ever unpickle.
        task_serializer="msgpack",
        result_serializer="msgpack",
        accept_content=["msgpack"],
        task_queues=[Queue(str(lane)) for lane in Lane],
        task_default_queue=str(Lane.BULK),
        task_create_missing_queues=False,
        # State lives in our store; Celery's own result backend would cost a subscription a task.
        task_ignore_result=True,
        # A task that dies with its worker goes back to the queue; repeating one is harmless (see shared.transitions).
        task_acks_late=True,
        task_reject_on_worker_lost=True,
        worker_prefetch_multiplier=1,
        worker_cancel_long_running_tasks_on_connection_loss=False,
        worker_send_task_events=True,
        task_send_sent_event=True,
        worker_hijack_root_logger=False,
        broker_connection_retry_on_startup=True,
        broker_connection_max_retries=None,
        broker_transport_options={
            "visibility_timeout": settings.visibility_timeout_s,
            "unacked_restore_interval": 1,
            "unacked_restore_throttle": 1,
            "health_check_interval": 25,
            "socket_keepalive": True,
            "socket_connect_timeout": 5,
            "priority_steps": [0],
        },
    )
    return app
