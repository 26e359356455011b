"""The api's side of the store: create, read and cancel jobs, fetch results. Knows Redis; no HTTP and no Celery."""

import asyncio
import time
import uuid
from dataclasses import dataclass
from typing import Any, Final

import msgpack
import numpy as np
import redis.asyncio
from redis.asyncio.retry import Retry
from redis.backoff import NoBackoff

from api.submission import Submission
from shared import keys
from shared.codecs import StoredRows, unpack_rows
from shared.errors import JobCancelledError, JobNotFoundError, QueueFullError, ResultExpiredError
from shared.jobs import InputFailure, Job, JobStatus, Lane, OutputDtype
from shared.redis_errors import redis_errors_translated
from shared.registry import CANCEL, CREATE, job_from_hash, script_keys
from shared.settings import StoreSettings

__all__ = ["Result", "Store"]


# Beyond this share of Redis's memory no new work is taken: a worker that finds Redis full loses tasks and ends.
_FILLED_TO: Final = 0.8

# More callers than connections take turns.
_CONNECTIONS: Final = 64
_CONNECTION_WAIT_S: Final = 5


@dataclass(frozen=True, slots=True)
class Result:
    """A finished job's embeddings in the order of its inputs; None where the input failed."""

    embeddings: list[StoredRows | None]
    failures: list[InputFailure]


class Store:
    """Every method raises `StoreUnavailableError` or `StoreFullError` where Redis does not answer or takes no more."""

    def __init__(self, settings: StoreSettings) -> None:
        self._settings = settings
        # One quick repeat, over a fresh connection: a caller is waiting, and 503 tells it to come back.
        pool = redis.asyncio.BlockingConnectionPool.from_url(
            settings.redis_dsn,
            max_connections=_CONNECTIONS,
            timeout=_CONNECTION_WAIT_S,
            socket_timeout=5,
            socket_connect_timeout=2,
            retry=Retry(NoBackoff(), 1),
        )
        self._redis = redis.asyncio.Redis.from_pool(pool)
        self._create = self._redis.register_script(CREATE)
        self._cancel = self._redis.register_script(CANCEL)

    async def close(self) -> None:
        """Drop the connections."""
        await self._redis.aclose()

    async def ping(self) -> None:
        """Raise if Redis is away."""
        with redis_errors_translated():
            await self._redis.ping()

    async def create(self, submission: Submission, lane: Lane, owner: str, idempotency_key: str | None) -> str:
        """Keep the payloads and register the job; return its id, or that of the job this idempotency key made."""
        job_id, now, ttl = uuid.uuid4().hex, time.time(), self._settings.job_ttl_s
        deadline_at = now + min(submission.options.deadline_s or ttl, ttl)
        record: dict[str, str | float] = {
            "owner": owner,
            "status": JobStatus.QUEUED,
            "input_type": submission.input_type,
            "lane": lane,
            "output_dtype": submission.options.output_dtype or "",
            "pool_factor": submission.options.pool_factor,
            "total": len(submission.payloads),
            "completed": 0,
            "failed": 0,
            "deadline_at": deadline_at,
            "expires_at": now + ttl,
        }
        forget_after_s = ttl + self._settings.result_ttl_s + self._settings.record_ttl_s
        create_keys = [keys.job(job_id), keys.owned_jobs(owner), keys.UNFINISHED]
        if idempotency_key is not None:
            create_keys.append(keys.idempotency(owner, idempotency_key))
        payloads: dict[Any, Any] = {str(index): payload for index, payload in enumerate(submission.payloads)}
        with redis_errors_translated():
            await self._require_room(sum(map(len, submission.payloads)))
            # The payloads first: no worker may find a job without them, and should we die here they expire.
            async with self._redis.pipeline(transaction=True) as pipe:
                pipe.hset(keys.payloads(job_id), mapping=payloads)
                pipe.expire(keys.payloads(job_id), ttl)
                await pipe.execute()
            created: Any = await self._create(
                keys=create_keys,
                args=[job_id, now, forget_after_s, keys.job(""), *(part for pair in record.items() for part in pair)],
            )
            if created.decode() != job_id:
                await self._redis.unlink(keys.payloads(job_id))
        return str(created.decode())

    async def _require_room(self, n_bytes: int) -> None:
        memory: Any = await self._redis.info("memory")
        if memory["maxmemory"] and memory["used_memory"] + n_bytes > _FILLED_TO * memory["maxmemory"]:
            raise QueueFullError("The queue is full. Please try again later.")

    async def job(self, job_id: str, owner: str) -> Job:
        """Return a job of this owner's."""
        with redis_errors_translated():
            record: Any = await self._redis.hgetall(keys.job(job_id))
        if record.get(b"owner") != owner.encode():
            raise JobNotFoundError("No such job.")
        return job_from_hash(record)

    async def jobs(self, owner: str, *, after: str | None, limit: int) -> list[Job]:
        """Return up to `limit` of this owner's jobs, newest first, older than the job `after`."""
        with redis_errors_translated():
            found: list[Job] = []
            while len(found) < limit and (ids := await self._older_ids(owner, after, limit)):
                async with self._redis.pipeline(transaction=False) as pipe:
                    for job_id in ids:
                        pipe.hgetall(keys.job(job_id))
                    records = await pipe.execute()
                found += [job_from_hash(record) for record in records if record]
                after = ids[-1]
        return found[:limit]

    async def _older_ids(self, owner: str, after: str | None, limit: int) -> list[str]:
        """Return ids by descending creation time; some records may be forgotten already.

        By time and not by rank: jobs that come meanwhile would shift the ranks.
        """
        newest: Any = "+inf"
        if after is not None:
            newest = await self._redis.zscore(keys.owned_jobs(owner), after)
            if newest is None:
                return []
        owned = keys.owned_jobs(owner)
        # One more than asked for, as `after` itself comes first; jobs of the very same microsecond are as good as none.
        ids: Any = await self._redis.zrevrangebyscore(owned, newest, "-inf", start=0, num=limit + 1)
        older = [job_id.decode() for job_id in ids]
        return older[older.index(after) + 1 :] if after in older else older[:limit]

    async def result(self, job: Job) -> Result:
        """Return what a finished job left behind, at the precision it asked for."""
        if job.status is JobStatus.CANCELLED:
            raise JobCancelledError("This job was cancelled.")
        with redis_errors_translated():
            async with self._redis.pipeline(transaction=True) as pipe:
                pipe.hgetall(keys.results(job.id))
                pipe.hgetall(keys.failures(job.id))
                kept, failed = await pipe.execute()
        if len(kept) + len(failed) < job.total:
            raise ResultExpiredError("This job's result is no longer kept.")
        failures = [
            InputFailure(index=int(index), code=code, message=message)
            for index, (code, message) in ((index, msgpack.unpackb(packed)) for index, packed in failed.items())
        ]
        stored = (kept.get(str(index).encode()) for index in range(job.total))
        embeddings = [packed and _at_precision(unpack_rows(packed), job.output_dtype) for packed in stored]
        return Result(embeddings, sorted(failures, key=lambda failure: failure.index))

    async def forget(self, job: Job, owner: str) -> None:
        """Keep nothing of a finished job, once its caller has the result."""
        with redis_errors_translated():
            async with self._redis.pipeline(transaction=True) as pipe:
                pipe.unlink(keys.job(job.id), keys.results(job.id), keys.failures(job.id))
                pipe.zrem(keys.owned_jobs(owner), job.id)
                await pipe.execute()

    async def cancel(self, job_id: str) -> bool:
        """Cancel the job unless it is finished; return whether that changed anything."""
        with redis_errors_translated():
            args = [time.time(), self._settings.record_ttl_s]
            changed: Any = await self._cancel(keys=script_keys(job_id), args=args)
        return bool(changed)

    async def queue_lengths(self) -> dict[Lane, int]:
        """Return how many tasks wait in each lane's queue."""
        with redis_errors_translated():
            lengths = await asyncio.gather(*(self._redis.llen(lane.value) for lane in Lane))
        return dict(zip(Lane, lengths, strict=True))

    async def workers(self, seen_within_s: float) -> dict[str, dict[str, str]]:
        """Return what each worker heard of lately says of itself, by name."""
        with redis_errors_translated():
            names: Any = await self._redis.zrangebyscore(keys.WORKERS, time.time() - seen_within_s, "+inf")
            async with self._redis.pipeline(transaction=False) as pipe:
                for name in names:
                    pipe.hgetall(keys.worker(name.decode()))
                facts = await pipe.execute()
        return {
            name.decode(): {field.decode(): value.decode() for field, value in said.items()}
            for name, said in zip(names, facts, strict=True)
            if said
        }


def _at_precision(rows: StoredRows, output_dtype: OutputDtype | None) -> StoredRows:
    match output_dtype:
        case OutputDtype.FLOAT32:
            return rows.astype(np.float32, copy=False)
        case OutputDtype.FLOAT16:
            return rows.astype(np.float16, copy=False)
        case OutputDtype.INT8 | OutputDtype.BINARY | None:
            return rows
