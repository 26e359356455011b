"""Lets callers wait for a job to change: one reader of a stream in each process wakes all who wait."""

import asyncio
from collections import defaultdict
from collections.abc import Awaitable, Callable, Iterator
from contextlib import contextmanager, suppress
from typing import Any, Final

import redis.asyncio
import structlog
from redis.asyncio.retry import Retry
from redis.backoff import NoBackoff

from shared import keys
from shared.errors import StoreUnavailableError
from shared.jobs import Job

__all__ = ["Announcements"]

_log = structlog.get_logger(__name__)

_BLOCK_MS: Final = 5_000
_SOCKET_TIMEOUT_S: Final = 10
_RECONNECT_S: Final = 0.5


class Announcements:
    """Register, read the job, then wait: no change can fall between.

    Every few seconds the job is read again all the same, which heals what a trimmed stream or a restart lost.
    """

    def __init__(self, redis_url: str, *, reread_s: float = 5.0) -> None:
        # Its own client, whose time-out is longer than a read may block: a connection that died in silence is replaced.
        self._redis = redis.asyncio.Redis.from_url(
            redis_url, socket_timeout=_SOCKET_TIMEOUT_S, socket_connect_timeout=2, retry=Retry(NoBackoff(), 0)
        )
        self._reread_s = reread_s
        self._waiting: dict[str, set[asyncio.Event]] = defaultdict(set)

    async def wait(
        self, job: Job, read: Callable[[], Awaitable[Job]], until: Callable[[Job], bool], timeout_s: float
    ) -> Job:
        """Return the job as `read` gives it once `until` holds, or as last seen when the time is up.

        A store that is away is waited for.
        """
        loop = asyncio.get_running_loop()
        ends = loop.time() + timeout_s
        with self._registered(job.id) as changed:
            while True:
                changed.clear()
                try:
                    job = await read()
                except StoreUnavailableError:
                    await asyncio.sleep(_RECONNECT_S)
                if (task := asyncio.current_task()) and task.cancelling():
                    raise asyncio.CancelledError  # redis-py 8.1 may return a reply to a call that was cancelled
                if until(job) or (left := ends - loop.time()) <= 0:
                    return job
                with suppress(TimeoutError):
                    async with asyncio.timeout(min(left, self._reread_s)):
                        await changed.wait()

    async def run(self) -> None:
        """Read the stream for as long as the process lives."""
        last_id: Any = None
        while True:
            try:
                if last_id is None:
                    newest: Any = await self._redis.xrevrange(keys.ANNOUNCEMENTS, count=1)
                    last_id = newest[0][0] if newest else b"0-0"
                    self._wake(set(self._waiting))
                reply: Any = await self._redis.xread({keys.ANNOUNCEMENTS: last_id}, block=_BLOCK_MS, count=1000)
            except redis.RedisError as error:
                _log.warning("announcements.disconnected", reason=str(error))
                await asyncio.sleep(_RECONNECT_S)
                continue
            entries = _entries(reply)
            if entries:
                last_id = entries[-1][0]
                # Nobody waits for the empty name, which stands for entries that are not ours.
                self._wake({fields.get(b"job", b"").decode(errors="replace") for _, fields in entries})

    async def close(self) -> None:
        """Drop the connection."""
        await self._redis.aclose()

    def _wake(self, job_ids: set[str]) -> None:
        for job_id in job_ids & self._waiting.keys():
            for changed in self._waiting[job_id]:
                changed.set()

    @contextmanager
    def _registered(self, job_id: str) -> Iterator[asyncio.Event]:
        changed = asyncio.Event()
        self._waiting[job_id].add(changed)
        try:
            yield changed
        finally:
            self._waiting[job_id].discard(changed)
            if not self._waiting[job_id]:
                del self._waiting[job_id]


def _entries(reply: Any) -> list[Any]:
    """Return the entries of one stream, which Redis's older protocol gives as a list of pairs, the newer as a map."""
    if isinstance(reply, dict):
        return [entry for entries in reply.values() for entry in entries[0]]
    return [entry for _, entries in reply for entry in entries]
