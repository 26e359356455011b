"""Keeps Redis's record of the tasks that this worker has taken and not yet acknowledged."""

from contextlib import suppress
from typing import Any, Final

from celery.worker import state
from kombu.transport import virtual
from kombu.transport.redis import Mutex, MutexHeld, QoS
from kombu.utils.json import dumps

from shared.queue import task_tokens

__all__ = ["Deliveries"]

# Raised: after many workers died their tasks return sooner, and this worker's event loop stands still for longer.
_RESTORED_AT_ONCE: Final = 100

# KEYS index by time, messages   ARGV delivery tag, message
_RECORD_TAKEN: Final = """
local index, messages = unpack(KEYS)
local seconds, microseconds = unpack(redis.call('TIME'))
redis.call('ZADD', index, seconds + microseconds / 1e6, ARGV[1])
redis.call('HSET', messages, ARGV[1], ARGV[2])
"""


class Deliveries(QoS):
    """Records each taken task with the time by Redis's clock, and decides by that clock which tasks were abandoned.

    kombu uses the clock of each worker: one that is an hour ahead takes the tasks of all others for abandoned.

    Unacknowledged tasks go back into their queues when the worker stops, and only then. kombu puts them back whenever
    a connection is closed. Where Redis went away, the tasks are still running: their lease decides. With kombu 5.7 and
    Redis away the attempt would even end the worker, as closing a channel twice fails; so would the acknowledgement of
    a task that ends after its channel was closed. Its message comes back once more, and finds nothing left to do.
    """

    def append(self, message: Any, delivery_tag: str) -> None:
        """Record a message that was taken from its queue."""
        taken_from = message.delivery_info["exchange"], message.delivery_info["routing_key"]
        kept = dumps([message._raw, *taken_from])  # noqa: SLF001  # as kombu's own method keeps it
        with self.channel.conn_or_acquire() as client:
            client.eval(_RECORD_TAKEN, 2, self.unacked_index_key, self.unacked_key, delivery_tag, kept)
        virtual.QoS.append(self, message, delivery_tag)
        self.channel._queue_cycle.charge(task_tokens(message.headers))  # noqa: SLF001  # our own QueueOrder, kept there

    def restore_visible(self, start: int = 0, num: int | None = None, interval: int = 1) -> None:
        """Put messages that nobody has claimed for the visibility timeout back into their queues."""
        del start, num, interval  # kombu's defaults; the transport options decide how often this is called
        with (
            suppress(MutexHeld),
            self.channel.conn_or_acquire() as client,
            Mutex(client, self.unacked_mutex_key, self.unacked_mutex_expire),
        ):
            seconds, _ = client.time()
            until = seconds - self.visibility_timeout
            for tag in client.zrange(self.unacked_index_key, 0, until, byscore=True, offset=0, num=_RESTORED_AT_ONCE):
                self.restore_by_tag(tag, client)  # type: ignore[no-untyped-call]  # kombu is half typed

    def ack(self, delivery_tag: str) -> None:
        """Acknowledge a message, where its channel is still open."""
        if self._is_open:
            super().ack(delivery_tag)  # type: ignore[no-untyped-call]  # kombu is half typed

    def reject(self, delivery_tag: str, requeue: bool = False) -> None:  # noqa: FBT001, FBT002 kombu's signature
        """Reject a message, where its channel is still open."""
        if self._is_open:
            super().reject(delivery_tag, requeue=requeue)  # type: ignore[no-untyped-call]  # kombu is half typed

    @property
    def _is_open(self) -> bool:
        connection = self.channel.connection
        return not self.channel.closed and connection is not None and connection.client is not None

    def restore_unacked_once(self, stderr: Any = None) -> None:
        """Put all taken messages back where the worker is stopping. kombu calls this when a channel is closed."""
        self._on_collect.cancel()
        if state.should_stop is None and state.should_terminate is None:
            return
        with suppress(*self.channel.connection_errors):
            super().restore_unacked_once(stderr)  # type: ignore[no-untyped-call]  # kombu is half typed
