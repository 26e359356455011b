"""Keeps Redis's record of the tasks that this worker has taken and not yet acknowledged."""

import json
from contextlib import suppress
from typing import Any, ClassVar, Final

import redis
import structlog
from celery.worker import state
from kombu.transport import virtual
from kombu.transport.redis import QoS
from kombu.utils.json import dumps

from shared import keys
from shared.messages import ForeignMessageError, TakenTask
from shared.queue import task_tokens

__all__ = ["Deliveries"]

_log = structlog.get_logger(__name__)

# Raised: after many workers died their tasks return sooner, and this worker's event loop stands still for longer.
_RESTORED_AT_ONCE: Final = 100

# Raised: more messages that are not ours are kept, and more of each, for those who look for where they came from.
_DEAD_LETTERS: Final = 100
_DEAD_LETTER_BYTES: Final = 4096
_DEAD_LETTER_TTL_S: Final = 604_800

# Each script begins with a command that a full Redis does not refuse, and may then write more. So a worker goes on
# there, and what it does makes room.

# KEYS index by time, messages   ARGV delivery tag, message
_RECORD_TAKEN: Final = """
local index, messages = unpack(KEYS)
local seconds, microseconds = unpack(redis.call('TIME'))
redis.call('ZREM', index, ARGV[1])
redis.call('ZADD', index, seconds + microseconds / 1e6, ARGV[1])
redis.call('HSET', messages, ARGV[1], ARGV[2])
"""

# KEYS index by time, messages, queue   ARGV delivery tag, message, LPUSH (behind all others) or RPUSH (next in turn)
_PUT_BACK: Final = """
local index, messages, queue = unpack(KEYS)
redis.call('ZREM', index, ARGV[1])
if redis.call('HDEL', messages, ARGV[1]) == 1 then redis.call(ARGV[3], queue, ARGV[2]) end
"""

# KEYS dead letters   ARGV how many to keep, for how long, letter
_BURY: Final = """
redis.call('LTRIM', KEYS[1], 0, ARGV[1] - 2)
redis.call('LPUSH', KEYS[1], ARGV[3])
redis.call('EXPIRE', KEYS[1], ARGV[2])
"""


class Deliveries(QoS):
    """Records each taken task with the time by Redis's clock, and decides by that clock which tasks were abandoned.

    kombu uses the clock of each worker: one that is an hour ahead takes the tasks of all others for abandoned.

    Unacknowledged tasks go back into their queues when the worker stops, and only then. kombu puts them back whenever
    a connection is closed. Where Redis went away, the tasks are still running: their lease decides. With kombu 5.7 and
    Redis away the attempt would even end the worker, as closing a channel twice fails; so would the acknowledgement of
    a task that ends after its channel was closed. Its message comes back once more, and finds nothing left to do.
    The same goes for an acknowledgement that Redis refuses, since its disk is full or it became a replica.
    """

    buried: ClassVar[int] = 0
    """How many messages this process has found that were not ours."""

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
        try:
            with self.channel.conn_or_acquire() as client:
                seconds, _ = client.time()
                self.channel.reading.note_answer()
                overdue = {"start": 0, "end": seconds - self.visibility_timeout, "byscore": True}
                for tag in client.zrange(self.unacked_index_key, **overdue, offset=0, num=_RESTORED_AT_ONCE):
                    self.restore_by_tag(tag, client)
        except redis.ResponseError as error:
            _log.warning("tasks.not_restored", reason=str(error))

    def restore_by_tag(self, tag: bytes | str, client: Any = None, leftmost: bool = False) -> None:  # noqa: FBT001, FBT002 kombu's signature
        """Put one message back into its queue, behind all others if `leftmost`; nothing where it was acknowledged."""
        with self.channel.conn_or_acquire(client) as connection:
            kept = connection.hget(self.unacked_key, tag)
            if kept is None:
                connection.zrem(self.unacked_index_key, tag)
                return
            try:
                taken = TakenTask.parse(kept)
            except ForeignMessageError as error:
                self.bury(self.unacked_key, kept, str(error))
                self._remove(tag, connection)
                return
            names = self.unacked_index_key, self.unacked_key, taken.task.queue
            connection.eval(_PUT_BACK, 3, *names, tag, taken.redelivered(), "LPUSH" if leftmost else "RPUSH")

    def bury(self, found_in: str, message: bytes, reason: str) -> None:
        """Keep a message that is not ours where an operator finds it, count it, and log it."""
        Deliveries.buried += 1
        shown = message[:_DEAD_LETTER_BYTES].decode(errors="backslashreplace")
        _log.error("message.foreign", found_in=found_in, reason=reason, bytes=len(message), kept_in=keys.DEAD_LETTERS)
        letter = json.dumps({"found_in": found_in, "reason": reason, "bytes": len(message), "message": shown})
        try:
            with self.channel.conn_or_acquire() as client:
                client.eval(_BURY, 1, keys.DEAD_LETTERS, _DEAD_LETTERS, _DEAD_LETTER_TTL_S, letter)
        except redis.RedisError as error:
            _log.warning("message.not_kept", reason=str(error))

    def ack(self, delivery_tag: str) -> None:
        """Acknowledge a message, where its channel is still open and Redis lets us."""
        if self._is_open:
            try:
                self._remove(delivery_tag)
            except redis.RedisError as error:
                _log.warning("task.not_acknowledged", tag=delivery_tag, reason=str(error))
            virtual.QoS.ack(self, delivery_tag)

    def reject(self, delivery_tag: str, requeue: bool = False) -> None:  # noqa: FBT001, FBT002 kombu's signature
        """Reject a message, where its channel is still open and Redis lets us."""
        if not requeue:
            self.ack(delivery_tag)
        elif self._is_open:
            try:
                self.restore_by_tag(delivery_tag, leftmost=True)
            except redis.RedisError as error:
                _log.warning("task.not_put_back", tag=delivery_tag, reason=str(error))
            virtual.QoS.ack(self, delivery_tag)

    def _remove(self, tag: bytes | str, client: Any = None) -> None:
        with self.channel.conn_or_acquire(client) as connection, connection.pipeline() as pipe:
            pipe.zrem(self.unacked_index_key, tag)
            pipe.hdel(self.unacked_key, tag)
            pipe.execute()

    @property
    def _is_open(self) -> bool:
        connection = self.channel.connection
        return not self.channel.closed and connection is not None and connection.client is not None

    def restore_unacked_once(self, stderr: Any = None) -> None:
        """Put all taken messages back where the worker is stopping. kombu calls this when a channel is closed."""
        self._on_collect.cancel()
        if state.should_stop is None and state.should_terminate is None:
            return
        with suppress(*self.channel.connection_errors, redis.RedisError):
            super().restore_unacked_once(stderr)  # type: ignore[no-untyped-call]  # kombu is half typed
