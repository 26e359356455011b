"""How a job lies in Redis, and the only scripts that change it. Knows no connection: both sides of the store run these.

Each script is atomic, and none touches a finished job, so a task delivered twice, a caller that cancels while a worker
saves, or two workers with the same inputs cannot lose a result or count one twice:

CREATE  registers a job, unless its idempotency key already made one
BEGIN   queued → running, and what the worker needs to know
SAVE    keeps each result or failure once, drops its payload, counts it, finishes the job with the last one
CANCEL  → cancelled, and everything but the record is dropped
DROP    forgets the result of a finished job, once its caller has it

A full Redis refuses a script's first write if it may take memory, but not those after it. All but CREATE begin with one
that frees some, so a full store takes no new work but lets go of what is in it.
"""

from collections.abc import Mapping
from datetime import UTC, datetime
from typing import Final

from shared.jobs import Job

__all__ = ["BEGIN", "CANCEL", "CREATE", "DROP", "SAVE", "job_from_hash", "to_datetime"]

# Enough for every waiter to catch up after a pause; waiters also read the job again every few seconds.
_ANNOUNCE: Final = """
local function announce(stream, id) redis.call('XADD', stream, 'MAXLEN', '~', 10000, '*', 'job', id) end
local function unfinished(status) return status == 'queued' or status == 'running' end
"""

# KEYS job, owned jobs[, idempotency]
# ARGV id, created_at, forget_after_s, the job key's part before the id, field, value, ...   → the job's id
CREATE: Final = """
local id, created_at, forget_after = ARGV[1], tonumber(ARGV[2]), tonumber(ARGV[3])
if KEYS[3] then
  local known = redis.call('GET', KEYS[3])
  if known and redis.call('EXISTS', ARGV[4] .. known) == 1 then return known end
  redis.call('SET', KEYS[3], id, 'EX', forget_after)
end
redis.call('HSET', KEYS[1], 'id', id, 'created_at', ARGV[2], unpack(ARGV, 5))
redis.call('EXPIRE', KEYS[1], forget_after)
redis.call('ZREMRANGEBYSCORE', KEYS[2], '-inf', created_at - forget_after)
redis.call('ZADD', KEYS[2], created_at, id)
redis.call('EXPIRE', KEYS[2], forget_after)
return id
"""

# KEYS job, announcements   ARGV now   → {input_type, output_dtype, deadline_at}, or nil: nothing left to do
BEGIN: Final = (
    _ANNOUNCE
    + """
local id, status = unpack(redis.call('HMGET', KEYS[1], 'id', 'status'))
if not unfinished(status) then return nil end
if status == 'queued' then
  redis.call('HDEL', KEYS[1], 'started_at')
  redis.call('HSET', KEYS[1], 'status', 'running', 'started_at', ARGV[1])
  announce(KEYS[2], id)
end
return redis.call('HMGET', KEYS[1], 'input_type', 'output_dtype', 'deadline_at')
"""
)

# KEYS job, payloads, results, failures, announcements
# ARGV now, job_ttl_s, result_ttl_s, record_ttl_s, index, 'results' | 'failures', bytes, ...   → inputs counted now
SAVE: Final = (
    _ANNOUNCE
    + """
local id, status, total = unpack(redis.call('HMGET', KEYS[1], 'id', 'status', 'total'))
if not unfinished(status) then return 0 end
local now, job_ttl, result_ttl, record_ttl = ARGV[1], ARGV[2], ARGV[3], ARGV[4]
local counted = 0
redis.call('HDEL', KEYS[1], 'finished_at')
for i = 5, #ARGV, 3 do
  local index = ARGV[i]
  if redis.call('HEXISTS', KEYS[3], index) + redis.call('HEXISTS', KEYS[4], index) == 0 then
    local kept = ARGV[i + 1] == 'results'
    redis.call('HSET', kept and KEYS[3] or KEYS[4], index, ARGV[i + 2])
    redis.call('HDEL', KEYS[2], index)
    redis.call('HINCRBY', KEYS[1], kept and 'completed' or 'failed', 1)
    counted = counted + 1
  end
end
if counted == 0 then return 0 end
local completed, failed = unpack(redis.call('HMGET', KEYS[1], 'completed', 'failed'))
local kept_for = job_ttl
if completed + failed >= tonumber(total) then
  kept_for = result_ttl
  redis.call('HSET', KEYS[1], 'status', tonumber(completed) > 0 and 'completed' or 'failed',
    'finished_at', now, 'expires_at', now + result_ttl)
  redis.call('EXPIRE', KEYS[1], result_ttl + record_ttl)
  redis.call('UNLINK', KEYS[2])
end
redis.call('EXPIRE', KEYS[3], kept_for)
redis.call('EXPIRE', KEYS[4], kept_for)
announce(KEYS[5], id)
return counted
"""
)

# KEYS job, payloads, results, failures, announcements   ARGV now, record_ttl_s   → 1, or 0: it was finished already
CANCEL: Final = (
    _ANNOUNCE
    + """
local id, status = unpack(redis.call('HMGET', KEYS[1], 'id', 'status'))
if not unfinished(status) then return 0 end
redis.call('UNLINK', KEYS[2], KEYS[3], KEYS[4])
redis.call('HSET', KEYS[1], 'status', 'cancelled', 'finished_at', ARGV[1], 'expires_at', ARGV[1])
redis.call('EXPIRE', KEYS[1], ARGV[2])
announce(KEYS[5], id)
return 1
"""
)


# KEYS job, results, failures   ARGV now, record_ttl_s
DROP: Final = """
redis.call('UNLINK', KEYS[2], KEYS[3])
if redis.call('EXISTS', KEYS[1]) == 0 then return end
redis.call('HSET', KEYS[1], 'expires_at', ARGV[1])
redis.call('EXPIRE', KEYS[1], ARGV[2])
"""


def to_datetime(timestamp: bytes | float) -> datetime:
    """Return the UTC time of a Unix timestamp as Redis gives it."""
    return datetime.fromtimestamp(float(timestamp), UTC)


def job_from_hash(fields: Mapping[bytes, bytes]) -> Job:
    """Return the job that a record of CREATE and the scripts after it describe."""
    times = ("created_at", "started_at", "finished_at", "expires_at")
    record: dict[str, object] = {
        name: fields[name.encode()].decode()
        for name in ("id", "status", "input_type", "lane", "total", "completed", "failed")
    }
    record |= {name: to_datetime(fields[name.encode()]) for name in times if name.encode() in fields}
    record["output_dtype"] = fields[b"output_dtype"].decode() or None
    return Job.model_validate(record)
