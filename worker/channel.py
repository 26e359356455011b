"""Reads the queues for Celery: takes only our own messages, waits while Redis refuses, and notes each read."""

import json
import time
from math import inf
from queue import Empty
from typing import Any, ClassVar, Final

import redis
import structlog
from kombu.transport.redis import Channel
from redis.exceptions import ReadOnlyError

from shared.messages import ForeignMessageError, QueuedTask
from worker.deliveries import Deliveries

__all__ = ["Reading", "TaskChannel"]

_log = structlog.get_logger(__name__)

# How long a queue is left alone after Redis refused to read it: its disk may be full, or it may be a replica.
_REFUSED_PAUSE_S: Final = 1.0
# Redis is asked for something every second; longer silence means that the connection is dead or the loop stands still.
_SILENT_AFTER_S: Final = 10.0


class Reading:
    """Records how this worker reads its queues. The event loop writes it, and the thread of the heartbeat reads it."""

    def __init__(self, queues: set[str]) -> None:
        self._wanted = queues
        self._channel: TaskChannel | None = None
        self._consumed: set[str] = set()
        self._answered_at = self._read_at = -inf

    def note_answer(self) -> None:
        """Note that Redis has just answered the event loop."""
        self._answered_at = time.monotonic()

    def note_read(self) -> None:
        """Note that Redis has just answered a read of the queues, with or without a message."""
        self._read_at = self._answered_at = time.monotonic()

    def note_queues(self, channel: "TaskChannel", queues: set[str]) -> None:
        """Note which queues a channel consumes now. A channel that never consumed any is for remote control."""
        if queues or channel is self._channel:
            self._channel, self._consumed = channel, queues

    def reason_not_reading(self) -> str:
        """Return why a task sent now would not be taken, as a sentence; empty if it would be."""
        if self._channel is None or self._read_at == -inf:
            return "the worker has not read its queues yet"
        if missing := self._wanted - self._consumed:
            return f"the worker was told to leave out {len(missing)} of its {len(self._wanted)} queues"
        now = time.monotonic()
        if now - self._answered_at > _SILENT_AFTER_S:
            return f"the worker's queues have not answered for {now - self._answered_at:.0f} s"
        # Where all its hands are full it reads no queue.
        if now - self._read_at > _SILENT_AFTER_S and self._channel.qos.can_consume():
            return f"the worker has read no queue for {now - self._read_at:.0f} s"
        return ""


class TaskChannel(Channel):
    """kombu's channel, with which a worker survives what others put into Redis and what Redis refuses for a while.

    A message that is not ours goes to the list of dead letters. kombu hands everything to Celery, where it ends the
    worker, again after each visibility timeout.
    """

    QoS = Deliveries
    reading: ClassVar[Reading]

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        self._leave_alone_until = -inf
        try:
            super().__init__(*args, **kwargs)  # type: ignore[no-untyped-call]  # kombu is half typed
        except redis.ResponseError:
            time.sleep(_REFUSED_PAUSE_S)  # Celery opens the next one at once
            raise

    def _brpop_start(self, timeout: float | None = None) -> None:
        if time.monotonic() >= self._leave_alone_until:
            super()._brpop_start(timeout)  # type: ignore[no-untyped-call]  # kombu is half typed

    def _brpop_read(self, **options: Any) -> bool:
        """Take one message; called when the reply to `_brpop_start` has come."""
        try:
            found = self._brpop_reply(options)
            if not found:
                raise Empty
            self._take(found[0].decode(), found[1])
        finally:
            self._in_poll = False
            self._flush_brpop_reauth()  # type: ignore[no-untyped-call]  # kombu is half typed
        return True

    def _brpop_reply(self, options: Any) -> Any:
        connection = self.client.connection
        try:
            reply = self.client.parse_response(connection, "BRPOP", **options)
        except self.connection_errors:
            connection.disconnect()
            raise
        except redis.ResponseError as error:
            _log.warning("queues.refused", reason=str(error), again_in_s=_REFUSED_PAUSE_S)
            self._leave_alone_until = time.monotonic() + _REFUSED_PAUSE_S
            connection.disconnect()  # by its name, Redis may be found elsewhere now
            return None
        self.reading.note_read()
        return reply

    def _take(self, queue: str, raw: bytes) -> None:
        self._queue_cycle.rotate(queue)
        try:
            QueuedTask.parse(raw, queue)
        except ForeignMessageError as error:
            self.qos.bury(queue, raw, str(error))
        else:
            self.connection._deliver(json.loads(raw), queue)  # noqa: SLF001  # as kombu's own method does

    def _deliver_fanout_message(self, message: Any, exchange: str) -> bool | None:
        """Hand a message of remote control to Celery, unless it has not even a message's shape."""
        try:
            return super()._deliver_fanout_message(message, exchange)  # type: ignore[no-untyped-call, no-any-return]
        except (AttributeError, KeyError, TypeError, ValueError) as error:
            _log.warning("control.foreign", exchange=exchange, reason=type(error).__name__)
            raise Empty from error

    def _restore(self, message: Any, leftmost: bool = False) -> None:  # noqa: FBT001, FBT002 kombu's signature
        self.qos.restore_by_tag(message.delivery_tag, leftmost=leftmost)

    def _queue_bind(self, exchange: str, *args: Any) -> None:
        """Note in Redis which queue belongs to an exchange. We name our queues and need no such note to read them."""
        try:
            super()._queue_bind(exchange, *args)  # type: ignore[no-untyped-call]  # kombu is half typed
        except (redis.OutOfMemoryError, ReadOnlyError) as error:
            _log.warning("queue.not_bound", exchange=exchange, reason=str(error))

    def _update_queue_cycle(self) -> None:
        super()._update_queue_cycle()  # type: ignore[no-untyped-call]  # kombu is half typed
        self.reading.note_queues(self, set(self.active_queues))
