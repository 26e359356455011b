"""How a job lies in Redis, and the only scripts that change it. Knows no connection: both sides of the store run these.

Each script is atomic, and none touches a finished job, so a task delivered twice, a caller that cancels while a worker
saves, or two workers with the same inputs cannot lose a result or count one twice:

CREATE  registers a job, unless its idempotency key already made one
BEGIN   queued → running, and what the worker needs to know
SAVE    keeps each result or failure once, drops its payload, counts it, finishes the job with the last one
CANCEL  → cancelled, and everything but the record is dropped
REQUEUE notes that what a job still lacks is queued anew, if it still lacks anything

A full Redis refuses a script's first write if it may take memory, but not those after it. All but CREATE begin with one
that frees some, so a full store takes no new work but lets go of what is in it.
"""

from collections.abc import Mapping
from datetime import UTC, datetime
from typing import Final

from shared import keys
from shared.jobs import Job

__all__ = ["BEGIN", "CANCEL", "CREATE", "REQUEUE", "SAVE", "job_from_hash", "script_keys"]


def script_keys(job_id: str) -> list[str]:
    """Return the KEYS of all scripts but CREATE: all that is kept of a job, and what knows of it."""
    return [
        keys.job(job_id),
        keys.payloads(job_id),
        keys.results(job_id),
        keys.failures(job_id),
        keys.attempts(job_id),
        keys.UNFINISHED,
        keys.ANNOUNCEMENTS,
    ]


_NAMES: Final = "local job, payloads, results, failures, attempts, open_jobs, announcements = unpack(KEYS)\n"

# The stream is long enough for every waiter to catch up after a pause; they also read the job again every few seconds.
_STATUS: Final = """
local id, status, total = unpack(redis.call('HMGET', job, 'id', 'status', 'total'))
local unfinished = status == 'queued' or status == 'running'
local function announce() redis.call('XADD', announcements, 'MAXLEN', '~', 10000, '*', 'job', id) end
"""

# KEYS job, owned jobs, unfinished jobs[, idempotency]
# ARGV id, created_at, forget_after_s, the job key's part before the id, field, value, ...   → the job's id
CREATE: Final = """
local job, owned, open_jobs, idempotency = unpack(KEYS)
local id, created_at, forget_after = ARGV[1], tonumber(ARGV[2]), tonumber(ARGV[3])
if idempotency then
  local known = redis.call('GET', idempotency)
  if known and redis.call('EXISTS', ARGV[4] .. known) == 1 then return known end
  redis.call('SET', idempotency, id, 'EX', forget_after)
end
redis.call('HSET', job, 'id', id, 'created_at', ARGV[2], unpack(ARGV, 5))
redis.call('EXPIRE', job, forget_after)
redis.call('ZREMRANGEBYSCORE', owned, '-inf', created_at - forget_after)
redis.call('ZADD', owned, created_at, id)
redis.call('EXPIRE', owned, forget_after)
redis.call('ZADD', open_jobs, created_at, id)
redis.call('EXPIRE', open_jobs, forget_after)
return id
"""

# ARGV now, attempts_ttl_s, index, ...   → {owner, input_type, output_dtype, pool_factor, deadline_at, attempts before
# of each index, ...}, or nil: nothing left to do. An input's first attempt is counted here, later ones by the worker
# that runs it alone.
BEGIN: Final = (
    _NAMES
    + _STATUS
    + """
if not unfinished then
  redis.call('ZREM', open_jobs, id or '')
  return nil
end
redis.call('HDEL', job, 'nothing')
if status == 'queued' then
  redis.call('HSET', job, 'status', 'running', 'started_at', ARGV[1])
  announce()
end
redis.call('ZADD', open_jobs, 'XX', ARGV[1], id)
local began = redis.call('HMGET', job, 'owner', 'input_type', 'output_dtype', 'pool_factor', 'deadline_at')
for i = 3, #ARGV do
  local before = redis.call('HGET', attempts, ARGV[i]) or '0'
  if before == '0' then redis.call('HSET', attempts, ARGV[i], 1) end
  began[#began + 1] = before
end
redis.call('EXPIRE', attempts, ARGV[2])
return began
"""
)

# ARGV now, job_ttl_s, result_ttl_s, record_ttl_s, index, 'results' | 'failures', bytes, ...   → inputs counted now
SAVE: Final = (
    _NAMES
    + _STATUS
    + """
if not unfinished then return 0 end
local now, job_ttl, result_ttl, record_ttl = ARGV[1], ARGV[2], ARGV[3], ARGV[4]
redis.call('HDEL', job, 'nothing')
local counted = 0
for i = 5, #ARGV, 3 do
  local index, kept = ARGV[i], ARGV[i + 1] == 'results'
  if redis.call('HEXISTS', results, index) + redis.call('HEXISTS', failures, index) == 0 then
    redis.call('HDEL', payloads, index)
    redis.call('HDEL', attempts, index)
    redis.call('HSET', kept and results or failures, index, ARGV[i + 2])
    redis.call('HINCRBY', job, kept and 'completed' or 'failed', 1)
    counted = counted + 1
  end
end
if counted == 0 then return 0 end
local completed, failed = unpack(redis.call('HMGET', job, 'completed', 'failed'))
local kept_for = job_ttl
if completed + failed >= tonumber(total) then
  kept_for = result_ttl
  redis.call('HSET', job, 'status', tonumber(completed) > 0 and 'completed' or 'failed',
    'finished_at', now, 'expires_at', now + result_ttl)
  redis.call('EXPIRE', job, result_ttl + record_ttl)
  redis.call('UNLINK', payloads, attempts)
  redis.call('ZREM', open_jobs, id)
else
  redis.call('ZADD', open_jobs, 'XX', now, id)
end
redis.call('EXPIRE', results, kept_for)
redis.call('EXPIRE', failures, kept_for)
announce()
return counted
"""
)

# ARGV now, record_ttl_s   → 1, or 0: it was finished already
CANCEL: Final = (
    _NAMES
    + _STATUS
    + """
if not unfinished then return 0 end
redis.call('UNLINK', payloads, results, failures, attempts)
redis.call('HSET', job, 'status', 'cancelled', 'finished_at', ARGV[1], 'expires_at', ARGV[1])
redis.call('EXPIRE', job, ARGV[2])
redis.call('ZREM', open_jobs, id)
announce()
return 1
"""
)


# ARGV now   → 1, or 0: it is finished or gone
REQUEUE: Final = (
    _NAMES
    + _STATUS
    + """
if not unfinished then return 0 end
redis.call('HSET', job, 'queued_at', ARGV[1])
redis.call('ZADD', open_jobs, 'XX', ARGV[1], id)
return 1
"""
)


def job_from_hash(fields: Mapping[bytes, bytes]) -> Job:
    """Return the job that a record of CREATE and the scripts after it describe."""
    times = ("created_at", "started_at", "finished_at", "expires_at")
    record: dict[str, object] = {
        name: fields[name.encode()].decode()
        for name in ("id", "status", "input_type", "lane", "pool_factor", "total", "completed", "failed")
    }
    record |= {
        name: datetime.fromtimestamp(float(fields[name.encode()]), UTC) for name in times if name.encode() in fields
    }
    record["output_dtype"] = fields[b"output_dtype"].decode() or None
    return Job.model_validate(record)
