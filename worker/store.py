"""The worker's side of the store: loads a shard's inputs and keeps what became of them."""

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from math import inf
from typing import Any, Final, TypeVar, cast

import msgpack
import redis
from redis.backoff import NoBackoff
from redis.exceptions import ReadOnlyError
from redis.retry import Retry

from shared import keys
from shared.codecs import StoredRows, pack_rows
from shared.errors import InputError, NewerRecordError, StoreRefusedError, UnavailableError
from shared.jobs import FINISHED, InputType, Job, Lane, OutputDtype
from shared.models import KnownModel, ServedModel, readable_models
from shared.records import RECORD_VERSION, log_skipped
from shared.redis_errors import redis_errors_translated
from shared.registry import BEGIN, RECOUNT, REQUEUE, SAVE, job_from_hash, script_keys
from shared.room import SWEEP
from shared.settings import StoreSettings

__all__ = ["QUIET_JOBS", "OtherModelError", "QuietJob", "Shard", "Store"]

# How long a task waits for a Redis that is away or refuses to write: long enough for a restart, shorter than the
# visibility timeout. Pauses grow from the first to the last.
_PATIENCE_S: Final = 35.0
_PAUSES_S: Final = 0.05, 2.0
# How long the model's thread may wait for Redis before each batch.
_IMPATIENCE_S: Final = 0.25

T = TypeVar("T")


# The name that kombu gives to its record of the messages that workers hold.
_KOMBU_UNACKNOWLEDGED: Final = "unacked"

QUIET_JOBS: Final = 1000
"""How many quiet jobs one look of the reaper takes up; the next look goes on behind them.

Raised: in a long backlog lost work is found sooner, and one look costs Redis more.
"""

_QUIET_JOB_FIELDS: Final = ("queue", "created_at", "queued_at", "deadline_at", "model", "model_id")

# How many late jobs are ended before the quiet ones are looked at.
_LATE_JOBS: Final = 1000

# A value that is not JSON is as good as none: an error here would end the script after some of its writes.
_DECODED: Final = f"""
local RECORD_VERSION = {RECORD_VERSION}
local function decoded(text)
  local is_json, value = pcall(cjson.decode, text or '')
  return is_json and type(value) == 'table' and value or {{}}
end
"""

# KEYS worker's facts, workers, models
# ARGV worker, seconds to keep it, id and name of the model it is ready to serve ('' before that), seconds to remember a
# model, field, value, ...
# It begins with a command that a full Redis does not refuse: a worker stays visible there.
_BEAT: Final = (
    _DECODED
    + """
local facts, workers, models = unpack(KEYS)
local worker, kept_for_s, model_id, model, remembered_for_s = unpack(ARGV)
local now = tonumber(redis.call('TIME')[1])
redis.call('ZREMRANGEBYSCORE', workers, '-inf', now - kept_for_s)
redis.call('ZADD', workers, now, worker)
redis.call('EXPIRE', workers, kept_for_s)
redis.call('HSET', facts, unpack(ARGV, 6))
redis.call('EXPIRE', facts, kept_for_s)
if model_id == '' then return end
local known = redis.call('HGET', models, model_id)
redis.call('HSET', models, model_id, cjson.encode({
  version = RECORD_VERSION, model_id = model_id, name = model, last_ready_at = now,
  first_ready_at = tonumber(decoded(known).first_ready_at) or now,
}))
redis.call('EXPIRE', models, remembered_for_s)
local told = redis.call('HGETALL', models)
for place = 1, #told, 2 do
  local other = decoded(told[place + 1])
  -- What cannot be read goes, unless a newer release wrote it.
  local is_newer = (tonumber(other.version) or 1) > RECORD_VERSION
  if (tonumber(other.last_ready_at) or (is_newer and now or 0)) < now - remembered_for_s then
    redis.call('HDEL', models, told[place])
  end
end
"""
)

# KEYS attempts   ARGV index, by, seconds to keep it. As above, for a full Redis.
_COUNT: Final = """
redis.call('HDEL', KEYS[1], 'nothing')
redis.call('HINCRBY', KEYS[1], ARGV[1], ARGV[2])
redis.call('EXPIRE', KEYS[1], ARGV[3])
"""

# KEYS worker's facts, workers, models   ARGV worker, id of its model
_LEAVE: Final = (
    _DECODED
    + """
local facts, workers, models = unpack(KEYS)
local worker, model_id = unpack(ARGV)
redis.call('UNLINK', facts)
redis.call('ZREM', workers, worker)
local model = decoded(redis.call('HGET', models, model_id))
if model.model_id then
  model.has_left = true -- another worker of this model corrects it with its next beat
  redis.call('HSET', models, model_id, cjson.encode(model))
end
"""
)

# Longer than any two looks of the reaper are apart, while a worker runs.
_GONE_NOTICED_FOR_S: Final = 120

_MODEL_REMEMBERED_FOR_S: Final = 7 * 86_400
"""How long after its last worker the service still knows a model, and which of its checkpoints was the newer."""

# Jobs that one call of the sweeping script takes up, so that Redis is not kept for long.
_A_SWEEP: Final = 1000

# More than a worker has threads.
_CONNECTIONS: Final = 1024


@dataclass(frozen=True, slots=True)
class Shard:
    """Those of a task's inputs that are not done yet. A payload of None has expired.

    `deadline_at` is by this process's `time.monotonic()`.
    `attempts` counts how often each was begun before: if ever, a worker may have died of it.
    """

    job_id: str
    owner: str
    input_type: InputType
    output_dtype: OutputDtype | None
    pool_factor: int
    deadline_at: float
    payloads: Mapping[int, bytes | None]
    attempts: Mapping[int, int]


@dataclass(frozen=True, slots=True)
class QuietJob:
    """An unfinished job of which nothing was heard for a while. Times are Redis's."""

    id: str
    heard_at: float
    queue: str
    queued_at: float
    deadline_at: float
    model: ServedModel


class OtherModelError(Exception):
    """Another model answers this job: its task belongs in `queue`, which only workers of that model consume."""

    def __init__(self, queue: str) -> None:
        super().__init__(queue)
        self.queue = queue


class Store:
    """Thread-safe. Methods raise `StoreUnavailableError` or `StoreFullError` where Redis is away, refuses or is full.

    `begin` and `save` wait for it for a while before.
    """

    def __init__(self, settings: StoreSettings) -> None:
        self._settings = settings
        self._redis = redis.Redis.from_url(
            settings.redis_dsn,
            retry=Retry(NoBackoff(), 1),  # over a new connection: by its name, Redis may be found elsewhere now
            retry_on_error=[ReadOnlyError],
            max_connections=_CONNECTIONS,
            socket_timeout=10,
            socket_connect_timeout=5,
            health_check_interval=25,
        )
        self._impatient = redis.Redis.from_url(
            settings.redis_dsn,
            retry=Retry(NoBackoff(), 1),
            retry_on_error=[ReadOnlyError],
            socket_timeout=_IMPATIENCE_S,
            socket_connect_timeout=_IMPATIENCE_S,
        )
        self._beat = self._impatient.register_script(_BEAT)
        self._count = self._redis.register_script(_COUNT)
        self._leave = self._impatient.register_script(_LEAVE)
        self._begin = self._redis.register_script(BEGIN)
        self._save = self._redis.register_script(SAVE)
        self._requeue = self._redis.register_script(REQUEUE)
        self._recount = self._redis.register_script(RECOUNT)
        self._sweep = self._redis.register_script(SWEEP)

    def begin(self, job_id: str, indices: Sequence[int], model: ServedModel) -> Shard | None:
        """Mark the job running and load these inputs; None where the job is finished or gone.

        Raises `OtherModelError` where another model than `model` answers the job.
        """
        return self._patiently(lambda: self._begin_once(job_id, indices, model))

    def _begin_once(self, job_id: str, indices: Sequence[int], model: ServedModel) -> Shard | None:
        args: list[str | int] = [self._settings.job_ttl_s, model.name, model.model_id, *indices]
        with redis_errors_translated():
            began: Any = self._begin(keys=script_keys(job_id), args=args)
            began_at = time.monotonic()
            if began is None:
                return None
            if began[0] == b"elsewhere":
                raise OtherModelError(began[1].decode())
            found: Any = self._redis.hmget(keys.payloads(job_id), [str(index) for index in indices])
            payloads = dict(zip(indices, found, strict=True))
            for index in self._done(job_id, [index for index, payload in payloads.items() if payload is None]):
                del payloads[index]
        owner, input_type, output_dtype, pool_factor, left_s, *attempts = began
        return Shard(
            job_id,
            owner.decode(),
            InputType(input_type.decode()),
            OutputDtype(output_dtype.decode()) if output_dtype else None,
            int(pool_factor),
            began_at + float(left_s),
            payloads,
            dict(zip(indices, map(int, attempts), strict=True)),
        )

    def _done(self, job_id: str, indices: list[int]) -> list[int]:
        if not indices:
            return []
        with self._redis.pipeline(transaction=False) as pipe:
            for index in indices:
                pipe.hexists(keys.results(job_id), str(index))
                pipe.hexists(keys.failures(job_id), str(index))
            known = pipe.execute()
        return [index for place, index in enumerate(indices) if any(known[2 * place : 2 * place + 2])]

    def save(self, job_id: str, outcomes: Mapping[int, StoredRows | InputError]) -> int:
        """Keep each input's rows or error, once; return how many were new."""
        args: list[Any] = [self._settings.job_ttl_s, self._settings.result_ttl_s]
        args.append(self._settings.record_ttl_s)
        for index, outcome in outcomes.items():
            if isinstance(outcome, InputError):
                args += [index, "failures", msgpack.packb([outcome.code, outcome.message])]
            else:
                args += [index, "results", pack_rows(outcome)]

        def save() -> int:
            with redis_errors_translated():
                counted: Any = self._save(keys=script_keys(job_id), args=args)
            return int(counted)

        return self._patiently(save)

    def count_attempt(self, job_id: str, index: int, by: int = 1) -> None:
        """Note that an input is begun once more, or with -1 that it was handed back unharmed."""
        with redis_errors_translated():
            self._count(keys=[keys.attempts(job_id)], args=[index, by, self._settings.job_ttl_s])

    def unfinished(self, job_ids: set[str]) -> set[str]:
        """Return those of `job_ids` that still want their inputs: all, where the store does not answer at once.

        The model's thread calls this between batches, so it may neither wait nor raise.
        """
        ordered = sorted(job_ids)
        try:
            with redis_errors_translated(), self._impatient.pipeline(transaction=False) as pipe:
                for job_id in ordered:
                    pipe.hget(keys.job(job_id), "status")
                statuses = pipe.execute()
        except UnavailableError:
            return job_ids
        gone = {None, *(status.encode() for status in FINISHED)}
        return {job_id for job_id, status in zip(ordered, statuses, strict=True) if status not in gone}

    def take_reaping(self, for_s: float) -> bool:
        """Return whether this worker is the one to look after lost work, for a while."""
        with redis_errors_translated():
            return bool(self._impatient.set(keys.REAPER, "taken", nx=True, px=int(for_s * 1000)))

    def now(self) -> float:
        """Return the Unix time by Redis's clock, by which all that is kept in Redis was dated."""
        with redis_errors_translated():
            seconds, microseconds = self._redis.time()
        return seconds + microseconds / 1e6

    def late_jobs(self, now: float) -> list[str]:
        """Return some unfinished jobs whose deadline has passed, the latest first."""
        with redis_errors_translated():
            late: Any = self._redis.zrangebyscore(keys.DEADLINES, "-inf", now, start=0, num=_LATE_JOBS)
        return [job_id.decode() for job_id in late]

    def quiet_jobs(self, since: float, until: float) -> list[QuietJob]:
        """Return unfinished jobs of which something was heard last between two times, the quietest first.

        A full page of them has `QUIET_JOBS`: the next begins with the last one's time.
        """
        with redis_errors_translated():
            page: Any = self._redis.zrangebyscore(
                keys.UNFINISHED, since, until, start=0, num=QUIET_JOBS, withscores=True
            )
            with self._redis.pipeline(transaction=False) as pipe:
                for job_id, _ in page:
                    pipe.hmget(keys.job(job_id.decode()), *_QUIET_JOB_FIELDS)
                records = pipe.execute()
        return [
            _quiet_job(job_id.decode(), heard_at, *record)
            for (job_id, heard_at), record in zip(page, records, strict=True)
        ]

    def open_job(self, job_id: str) -> Job | None:
        """Return an unfinished job; strike a finished one off the lists."""
        with redis_errors_translated():
            record: Any = self._redis.hgetall(keys.job(job_id))
            if record and not (job := job_from_hash(record)).finished:
                return job
            self._redis.zrem(keys.UNFINISHED, job_id)
            self._redis.zrem(keys.DEADLINES, job_id)
            if not record:  # it may have expired unfinished, and what it still lacked would stay counted for ever
                names = [keys.UNFINISHED, keys.BACKLOG, keys.HELD, keys.KEPT]
                _, *unreadable = cast("list[Any]", self._recount(keys=names, args=[keys.job("")]))
                for skipped in unreadable:
                    log_skipped(f"job {skipped.decode()}", "its record cannot be read, and its inputs are not counted")
        return None

    def sweep_expired_results(self) -> int:
        """Take off the memory of results that have expired; return of how many jobs."""
        swept = 0
        with redis_errors_translated():
            while some := int(self._sweep(keys=[keys.HELD, keys.KEPT], args=[_A_SWEEP])):
                swept += some
        return swept

    def undone(self, job: Job) -> list[int]:
        """Return the inputs of a job that have neither a result nor a failure."""
        with redis_errors_translated(), self._redis.pipeline(transaction=True) as pipe:
            pipe.hkeys(keys.results(job.id))
            pipe.hkeys(keys.failures(job.id))
            done = {int(index) for indices in pipe.execute() for index in indices}
        return [index for index in range(job.total) if index not in done]

    def requeue(self, job_id: str) -> float | None:
        """Note that a job's tasks are queued anew, and return when; None where it is finished or gone by now."""
        with redis_errors_translated():
            noted: Any = self._requeue(keys=script_keys(job_id))
        return None if noted is None else float(noted)

    def _patiently(self, call: Callable[[], T]) -> T:
        """Return `call()`, tried again for a while where the store is away, full or refuses to write."""
        ends, (pause_s, longest_s) = time.monotonic() + _PATIENCE_S, _PAUSES_S
        while True:
            try:
                return call()
            except (StoreRefusedError, NewerRecordError):
                raise
            except UnavailableError:
                if time.monotonic() + pause_s > ends:
                    raise
            time.sleep(pause_s)
            pause_s = min(2 * pause_s, longest_s)

    def unacknowledged(self) -> list[bytes]:
        """Return the messages that workers hold, as kombu records them: `[message, exchange, routing key]`."""
        with redis_errors_translated():
            held: Any = self._redis.hvals(_KOMBU_UNACKNOWLEDGED)
        return list(held)

    def next_messages(self, queues: Sequence[str]) -> dict[str, bytes | None]:
        """Return the message of each queue that is taken next."""
        with redis_errors_translated(), self._redis.pipeline(transaction=False) as pipe:
            for queue in queues:
                pipe.lindex(queue, -1)
            return dict(zip(queues, pipe.execute(), strict=True))

    def beat(self, worker: str, facts: Mapping[str, str], kept_for_s: int) -> None:
        """Publish what this worker says of itself. Tried once: the next beat comes soon."""
        model_id = facts.get("model_id", "") if facts["state"] == "ready" else ""
        args: list[str | int] = [worker, kept_for_s, model_id, facts.get("model", ""), _MODEL_REMEMBERED_FOR_S]
        args += [part for fact in {**facts, "version": str(RECORD_VERSION)}.items() for part in fact]
        with redis_errors_translated():
            self._beat(keys=[keys.worker(worker), keys.WORKERS, keys.MODELS], args=args)

    def leave(self, worker: str, model_id: str = "") -> None:
        """Forget this worker, and say that its model is no longer served by it. Tried once: it expires anyway."""
        with redis_errors_translated():
            self._leave(keys=[keys.worker(worker), keys.WORKERS, keys.MODELS], args=[worker, model_id])

    def model_gone_for_s(self, model: ServedModel) -> float:
        """Return how long a model has had no worker; 0 while it has one, or where that is noticed now.

        The time while no worker of any model looks does not count: with none, every model's jobs wait.
        """
        now = self.now()
        name = keys.model_gone_since(model.model_id)
        with redis_errors_translated(), self._redis.pipeline() as pipe:
            if any(known.lives(now) for known in self.known_models() if known.model_id == model.model_id):
                self._redis.unlink(name)
                return 0.0
            pipe.set(name, now, nx=True)
            pipe.expire(name, _GONE_NOTICED_FOR_S)
            pipe.get(name)
            *_, since = pipe.execute()
        return now - float(since)

    def models_with_tasks(self) -> set[ServedModel]:
        """Return the known models in whose queues a task lies."""
        models = self.known_models()
        with redis_errors_translated(), self._redis.pipeline(transaction=False) as pipe:
            for model in models:
                pipe.exists(*_queues(model))
            found = pipe.execute()
        return {
            ServedModel(name=model.name, model_id=model.model_id)
            for model, queues in zip(models, found, strict=True)
            if queues
        }

    def drop_queues(self, model: ServedModel) -> None:
        """Drop all tasks for the workers of a model. Jobs that still need one get another from the reaper."""
        with redis_errors_translated():
            self._redis.unlink(*_queues(model))

    def known_models(self) -> list[KnownModel]:
        """Return every model that a worker has announced and that is not forgotten yet."""
        with redis_errors_translated():
            told: Any = self._redis.hvals(keys.MODELS)
        return readable_models(told)


def _quiet_job(job_id: str, heard_at: float, *record: bytes | None) -> QuietJob:
    """Return a job with what its record says; whoever opens the record finds what is odd about it, and skips it."""
    queue, created_at, queued_at, deadline_at, model, model_id = record
    return QuietJob(
        id=job_id,
        heard_at=heard_at,
        queue=_text(queue),
        queued_at=_number(queued_at or created_at, 0.0),
        deadline_at=_number(deadline_at, inf),
        model=ServedModel(name=_text(model), model_id=_text(model_id)),
    )


def _text(field: bytes | None) -> str:
    return (field or b"").decode(errors="replace")


def _number(field: bytes | None, default: float) -> float:
    try:
        return float(field or default)
    except ValueError:
        return default


def _queues(model: ServedModel) -> list[str]:
    return [queue for lane in Lane for queue in lane.queues_of(model.model_id)]
