"""Creates, reads and cancels jobs in Redis and fetches their results: the api's side of the store."""

import asyncio
import json
import re
import uuid
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any, Final, cast

import redis.asyncio
from redis.asyncio.retry import Retry
from redis.backoff import NoBackoff
from redis.exceptions import ReadOnlyError

from api.results import StoredResult
from api.submission import Submission
from shared import keys
from shared.cost import estimate_tokens
from shared.errors import (
    IdempotencyKeyReusedError,
    JobCancelledError,
    JobNotFoundError,
    NewerRecordError,
    QueueFullError,
    RateLimitedError,
    RequestError,
    StoreUnavailableError,
    TooLargeError,
    UnavailableError,
    UnreadableRecordError,
)
from shared.jobs import JOB_ID, Job, JobStatus, Lane
from shared.messages import ForeignMessageError, QueuedTask
from shared.models import KnownModel, ServedModel, readable_models
from shared.records import RECORD_VERSION, log_skipped
from shared.redis_errors import redis_errors_translated
from shared.registry import CANCEL, CREATE, LIST, READ, RELEASE, job_from_hash, script_keys
from shared.room import expected_result_bytes
from shared.settings import StoreSettings, TokenSettings
from shared.worker_facts import readable_facts

__all__ = ["Budget", "Store", "new_job_id"]

# Beyond this share of Redis's memory no new work is taken: a worker that finds Redis full loses tasks and ends.
# Queries may have a little more than a backfill, whose results are most of what lies there.
_FILLED_TO: Final = {Lane.BULK: 0.8, Lane.INTERACTIVE: 0.9}

# How long a refused caller is told to wait: at most this, and this where nothing was measured.
_LONGEST_WAIT_S: Final = 60
_UNMEASURED_WAIT_S: Final = 5

# Payloads whose job was not registered, because the api died in between, are kept for so long.
_UNREGISTERED_S: Final = 60

# Ids that one call of the listing script looks at, so that Redis is not kept for long.
_LISTED_AT_ONCE: Final = 2000

# More callers than connections take turns.
_CONNECTIONS: Final = 64
_CONNECTION_WAIT_S: Final = 5


@dataclass(frozen=True, slots=True)
class Budget:
    """How much unfinished work each lane takes, and how much of it from one owner (0: no limit for one owner).

    The interactive lane takes jobs of up to `interactive_max_tokens`, and four times as much altogether.
    """

    max_inputs: int
    max_bytes: int
    key_max_inputs: int = 0
    key_per_minute: int = 0
    interactive_max_tokens: int = 3200


@dataclass(frozen=True, slots=True)
class Backlog:
    """The unfinished work of a lane, and since when the task next in turn waits; None where none does."""

    tasks: int
    inputs: int
    bytes: int
    oldest_s: float | None


class Store:
    """Every method raises `StoreUnavailableError` or `StoreFullError` where Redis does not answer or takes no more."""

    def __init__(self, settings: StoreSettings, budget: Budget, tokens: TokenSettings) -> None:
        self._settings = settings
        self._budget = budget
        self._tokens = tokens
        # One quick repeat, over a fresh connection: a caller is waiting, and 503 tells it to come back.
        pool = redis.asyncio.BlockingConnectionPool.from_url(
            settings.redis_dsn,
            max_connections=_CONNECTIONS,
            timeout=_CONNECTION_WAIT_S,
            socket_timeout=5,
            socket_connect_timeout=2,
            retry=Retry(NoBackoff(), 1),
            retry_on_error=[ReadOnlyError],  # by its name, Redis may be found elsewhere now
        )
        self._redis = redis.asyncio.Redis.from_pool(pool)
        self._create = self._redis.register_script(CREATE)
        self._cancel = self._redis.register_script(CANCEL)
        self._list = self._redis.register_script(LIST)
        self._release = self._redis.register_script(RELEASE)
        self._read = self._redis.register_script(READ)

    async def close(self) -> None:
        """Drop the connections."""
        await self._redis.aclose()

    async def ping(self) -> None:
        """Raise if Redis is away."""
        with redis_errors_translated():
            await self._redis.ping()

    def costs(self, submission: Submission) -> list[int]:
        """Return the estimated tokens of each input."""
        kind = submission.input_type
        return [estimate_tokens(kind, payload, self._tokens) for payload in submission.payloads]

    async def create(  # noqa: PLR0913 - all but the first three have defaults
        self,
        submission: Submission,
        lane: Lane,
        owner: str,
        idempotency_key: str | None = None,
        request_id: str = "",
        *,
        job_id: str | None = None,
    ) -> Job:
        """Keep the payloads and register the job as `job_id`; return it, or the one that this idempotency key made.

        A job that costs more than the interactive lane has room for goes to bulk, and its `lane` says so.
        Raises `QueueFullError` or `RateLimitedError` where there is no room for it, `TooLargeError` where there never
        will be, and `IdempotencyKeyReusedError` where the key made a job of something else; it keeps nothing then.
        Where Redis went away meanwhile the job may be registered: repeated with the same `job_id`, it is returned.
        """
        job_id, ttl = job_id or new_job_id(), self._settings.job_ttl_s
        n_bytes, costs = sum(map(len, submission.payloads)), self.costs(submission)
        options, tokens = submission.options, sum(costs)
        expected = expected_result_bytes(costs, options.output_dtype, options.pool_factor)
        fingerprint = "" if idempotency_key is None else await asyncio.to_thread(submission.fingerprint)
        model = submission.model or ServedModel(name="", model_id="")
        record: dict[str, str | float] = {
            "version": RECORD_VERSION,
            "id": job_id,
            "owner": owner,
            "status": JobStatus.QUEUED,
            "input_type": submission.input_type,
            "output_dtype": options.output_dtype or "",
            "pool_factor": options.pool_factor,
            "request_id": request_id,
            "model": model.name,
            "model_id": model.model_id,
            "total": len(submission.payloads),
            "completed": 0,
            "failed": 0,
            "bytes": n_bytes,
            "tokens": tokens,
            "expected": expected,
            "kept": 0,
            "fingerprint": fingerprint,
        }
        ask = asdict(self._budget) | {
            "id": job_id,
            "deadline_s": min(options.deadline_s or ttl, ttl),
            "job_ttl_s": ttl,
            "owner": owner,
            "lane": lane,
            "lanes": {lane: {"queues": lane.queues_of(model.model_id), "fill_to": _FILLED_TO[lane]} for lane in Lane},
            "inputs": len(submission.payloads),
            "bytes": n_bytes,
            "tokens": tokens,
            "expected": expected,
            "fingerprint": fingerprint,
            "forget_after_s": ttl + self._settings.result_ttl_s + self._settings.record_ttl_s,
            "job_prefix": keys.job(""),
        }
        names = [keys.job(job_id), keys.payloads(job_id), keys.owned_jobs(owner), keys.UNFINISHED, keys.BACKLOG]
        names += [keys.drained(""), keys.submission_rate(owner), keys.DEADLINES, keys.HELD, keys.KEPT]
        if idempotency_key is not None:
            names.append(keys.idempotency(owner, idempotency_key))
        payloads: dict[Any, Any] = {str(index): payload for index, payload in enumerate(submission.payloads)}
        with redis_errors_translated():
            # Asked first, so that a flood that will be refused does not go through Redis's memory.
            if known := await self._ask(names, ask | {"only_room": True, "new_bytes": n_bytes}, {}):
                return known
            # The payloads first: no worker may find a job without them. Should we die here, they expire soon.
            async with self._redis.pipeline(transaction=True) as pipe:
                pipe.hset(keys.payloads(job_id), mapping=payloads)
                pipe.expire(keys.payloads(job_id), _UNREGISTERED_S)
                await pipe.execute()
            try:
                job = cast("Job", await self._ask(names, ask | {"only_room": False, "new_bytes": 0}, record))
            except (UnavailableError, RequestError):
                await self._redis.unlink(keys.payloads(job_id))
                raise
            if job.id != job_id or job.finished:
                await self._redis.unlink(keys.payloads(job_id))
        return job

    async def _ask(self, names: list[str], ask: dict[str, Any], record: dict[str, str | float]) -> Job | None:
        args = [json.dumps(ask), *(part for pair in record.items() for part in pair)]
        reply: Any = await self._create(keys=names, args=args)
        match reply:
            case [b"job", *fields]:
                return job_from_hash(dict(zip(fields[::2], fields[1::2], strict=True)))
            case [b"queue_full", seconds]:
                raise _refused(QueueFullError, "The queue is full.", seconds)
            case [b"rate_limited", seconds]:
                raise _refused(RateLimitedError, "This key has too much work waiting, or sends it too fast.", seconds)
            case [b"too_large"]:
                raise TooLargeError("Redis has no memory for so much at once: send fewer inputs.")
            case [b"key_reused"]:
                raise IdempotencyKeyReusedError("This Idempotency-Key made a job of other inputs or options.")
            case [b"payloads_gone"]:
                raise StoreUnavailableError("The inputs took too long to register. Please try again.")
        return None

    async def job(self, job_id: str, owner: str) -> Job:
        """Return a job of this owner's; JobNotFoundError for another's as for one that does not exist."""
        fields: Any = None
        if _is_job_id(job_id):
            with redis_errors_translated():
                fields = await self._read(keys=[keys.job(job_id)], args=[owner])
        if fields is None:
            raise JobNotFoundError("No such job.")
        return job_from_hash(dict(zip(fields[::2], fields[1::2], strict=True)))

    async def jobs(self, owner: str, *, after: str | None, limit: int) -> list[Job]:
        """Return up to `limit` of this owner's jobs, newest first, older than the job `after`.

        Jobs whose records this release cannot read are left out.
        """
        found: list[Job] = []
        is_end = False
        with redis_errors_translated():
            while len(found) < limit and not is_end:
                args: list[str | int] = [after or "", limit - len(found), keys.job(""), _LISTED_AT_ONCE]
                is_end, *ids = await self._list(keys=[keys.owned_jobs(owner)], args=args)
                async with self._redis.pipeline(transaction=False) as pipe:
                    for job_id in ids:
                        pipe.hgetall(keys.job(job_id.decode()))
                    records = await pipe.execute()
                found += [job for job_id, record in zip(ids, records, strict=True) if (job := _listed(job_id, record))]
                after = ids[-1].decode() if ids else after
        return found

    async def result(self, job: Job) -> StoredResult:
        """Return what a finished job left behind, to be read in pieces."""
        if job.status is JobStatus.CANCELLED:
            raise JobCancelledError("This job was cancelled.")
        return await StoredResult.open(self._redis, job)

    async def release(self, job_id: str) -> None:
        """Drop the result of a job, if it is finished and has one; its record stays and says so."""
        await self._drop(job_id, self._settings.record_ttl_s)

    async def forget(self, job: Job, owner: str) -> None:
        """Keep nothing of a finished job, once its caller has the result."""
        await self._drop(job.id, 0, keys.owned_jobs(owner))

    async def _drop(self, job_id: str, record_ttl_s: int, *more_keys: str) -> None:
        with redis_errors_translated():
            await self._release(keys=[*script_keys(job_id), *more_keys], args=[record_ttl_s])

    async def cancel(self, job_id: str) -> bool:
        """Cancel the job unless it is finished; return whether that changed anything."""
        with redis_errors_translated():
            changed: Any = await self._cancel(keys=script_keys(job_id), args=[self._settings.record_ttl_s])
        return bool(changed)

    async def withdraw(self, job_id: str, owner: str) -> None:
        """Leave no payload and no result of a job whose caller gave up, whether it was registered or is finished."""
        if not await self.cancel(job_id):
            await self._drop(job_id, 0, keys.owned_jobs(owner))
        with redis_errors_translated():
            await self._redis.unlink(keys.payloads(job_id))

    async def backlogs(self) -> dict[Lane, Backlog]:
        """Return what each lane still has to do."""
        _, models = await self.known_models()
        model_ids = ["", *(model.model_id for model in models)]
        of_lane = {lane: [queue for model_id in model_ids for queue in lane.queues_of(model_id)] for lane in Lane}
        queues = [queue for lane in Lane for queue in of_lane[lane]]
        with redis_errors_translated():
            async with self._redis.pipeline(transaction=True) as pipe:
                pipe.time()
                pipe.hgetall(keys.BACKLOG)
                for queue in queues:
                    pipe.llen(queue)
                    pipe.lindex(queue, -1)
                (seconds, microseconds), counts, *found = await pipe.execute()
        now = seconds + microseconds / 1e6
        tasks, oldest = dict(zip(queues, found[::2], strict=True)), dict(zip(queues, found[1::2], strict=True))
        ages = {queue: age for queue, message in oldest.items() if (age := _age_s(message, queue, now)) is not None}
        return {
            lane: Backlog(
                tasks=sum(tasks[queue] for queue in of_lane[lane]),
                inputs=int(counts.get(f"{lane} * inputs".encode(), 0)),
                bytes=int(counts.get(f"{lane} * bytes".encode(), 0)),
                oldest_s=max((ages[queue] for queue in of_lane[lane] if queue in ages), default=None),
            )
            for lane in Lane
        }

    async def waiting_for_models(self) -> dict[ServedModel, int]:
        """Return how many inputs wait for each model that no worker serves."""
        now, known = await self.known_models()
        gone = [model for model in known if not model.lives(now)]
        if not gone:
            return {}
        fields = {
            model: [f"{queue} inputs" for lane in Lane for queue in lane.queues_of(model.model_id)] for model in gone
        }
        with redis_errors_translated():
            async with self._redis.pipeline(transaction=False) as pipe:
                for names in fields.values():
                    pipe.hmget(keys.BACKLOG, names)
                counts = await pipe.execute()
        waiting = {model: sum(int(count or 0) for count in found) for model, found in zip(fields, counts, strict=True)}
        return {model: inputs for model, inputs in waiting.items() if inputs}

    async def known_models(self) -> tuple[float, list[KnownModel]]:
        """Return Redis's time and every model that a worker has announced and that is not forgotten yet."""
        with redis_errors_translated():
            async with self._redis.pipeline(transaction=False) as pipe:
                pipe.time()
                pipe.hvals(keys.MODELS)
                (now, _), told = await pipe.execute()
        return now, readable_models(told)

    async def workers(self, seen_within_s: float) -> dict[str, dict[str, str]]:
        """Return what each worker heard of lately says of itself, by name."""
        with redis_errors_translated():
            now, _ = await self._redis.time()
            names: Any = await self._redis.zrangebyscore(keys.WORKERS, now - seen_within_s, "+inf")
            async with self._redis.pipeline(transaction=False) as pipe:
                for name in names:
                    pipe.hgetall(keys.worker(name.decode()))
                facts = await pipe.execute()
        return {
            name.decode(): readable
            for name, said in zip(names, facts, strict=True)
            if (readable := readable_facts(name.decode(), said))
        }


def _listed(job_id: bytes, record: Mapping[bytes, bytes]) -> Job | None:
    """Return the job of a record; None where it has expired or cannot be read."""
    try:
        return job_from_hash(record) if record else None
    except (NewerRecordError, UnreadableRecordError) as error:
        log_skipped(f"job {job_id.decode()}", error.message)
        return None


def _is_job_id(text: str) -> bool:
    return re.fullmatch(JOB_ID, text) is not None


def _age_s(message: bytes | None, queue: str, now: float) -> float | None:
    """Return how long a message has waited in its queue; None where there is none, or none of ours."""
    try:
        return None if message is None else max(0.0, now - QueuedTask.parse(message, queue).queued_at)
    except ForeignMessageError:
        return None


def new_job_id() -> str:
    """Return an id that no job has."""
    return uuid.uuid4().hex


def _refused(kind: type[UnavailableError], reason: str, seconds: int) -> UnavailableError:
    wait_s = min(seconds or _UNMEASURED_WAIT_S, _LONGEST_WAIT_S)
    return kind(f"{reason} Please try again later.", retry_after_s=wait_s)
