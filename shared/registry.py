"""How a job lies in Redis, and the only scripts that change it. Knows no connection: both sides of the store run these.

Each script is atomic, and none touches a finished job, so a task delivered twice, a caller that cancels while a worker
saves, or two workers with the same inputs cannot lose a result or count one twice:

CREATE  registers a job, unless its idempotency key already made one or there is no room for it
BEGIN   queued → running, and what the worker needs to know
SAVE    keeps each result or failure once, drops its payload, counts it, finishes the job with the last one
CANCEL  → cancelled, and everything but the record is dropped
REQUEUE notes that what a job still lacks is queued anew, if it still lacks anything
RECOUNT counts the backlog anew, once the record of an unfinished job has expired

The backlog is what unfinished jobs still lack, in inputs and in bytes: of each queue, and of each owner in each lane.
CREATE adds to it, SAVE and CANCEL take off exactly what they end, so nothing can race past the room that is left.
A job's tokens (its estimated cost) are added as well, and taken off when the job ends. They bound the interactive lane:
CREATE puts a job into bulk where the lane that it asks for has no room for its cost.

Times are Redis's own (`TIME`), so that no clock of an api or a worker decides about a deadline, a rate or an age.

A full Redis refuses a script's first write if it may take memory, but not those after it. All but CREATE begin with one
that frees some, so a full store takes no new work but lets go of what is in it.
"""

from collections.abc import Mapping
from datetime import UTC, datetime
from typing import Final

from shared import keys
from shared.jobs import Job

__all__ = ["BEGIN", "CANCEL", "CREATE", "NOW", "READ", "RECOUNT", "REQUEUE", "SAVE", "job_from_hash", "script_keys"]


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
        keys.BACKLOG,
        keys.drained(""),
        keys.DEADLINES,
    ]


_NAMES: Final = """
local job, payloads, results, failures, attempts, open_jobs, announcements, backlog, drained, deadlines = unpack(KEYS)
"""

# The stream is long enough for every waiter to catch up after a pause; they also read the job again every few seconds.
_STATUS: Final = """
local id, status, total = unpack(redis.call('HMGET', job, 'id', 'status', 'total'))
local unfinished = status == 'queued' or status == 'running'
local function announce() redis.call('XADD', announcements, 'MAXLEN', '~', 10000, '*', 'job', id) end
"""

# A field that comes to zero goes, so that nothing is kept of queues and owners without work. Redis refuses Lua's -0.
_LET_GO: Final = """
local owner, lane, queue, bytes_left, tokens = unpack(
  redis.call('HMGET', job, 'owner', 'lane', 'queue', 'bytes', 'tokens'))
local function let_go(inputs, bytes, is_end)
  local left
  for _, holder in ipairs({queue, lane .. ' ' .. owner, lane .. ' *'}) do
    left = redis.call('HINCRBY', backlog, holder .. ' inputs', 0 - inputs)
    redis.call('HINCRBY', backlog, holder .. ' bytes', 0 - bytes)
    if is_end then redis.call('HINCRBY', backlog, holder .. ' tokens', 0 - (tokens or 0)) end
    if left <= 0 then
      redis.call('HDEL', backlog, holder .. ' inputs', holder .. ' bytes', holder .. ' tokens', holder .. ' queue')
    end
  end
end
"""

# Unix time with microseconds, by Redis's clock: the clocks of the machines around it may differ by hours.
NOW: Final = """
local seconds, microseconds = unpack(redis.call('TIME'))
local now = seconds + microseconds / 1e6
"""

# Periods of five seconds; a minute of them tells how fast a lane drains.
_PERIOD: Final = "local function period() return math.floor(redis.call('TIME')[1] / 5) end\n"

# KEYS job, owned jobs, unfinished jobs, backlog, drained, submission rate, deadlines[, idempotency]
# ARGV what is asked (JSON), field, value, ...   → {'job', its record's fields and values}, as registered or as known
# before; or {'room'}, where only that was asked; or {'queue_full' | 'rate_limited', seconds until it may
# be otherwise, 0: not known}.
CREATE: Final = (
    NOW
    + _PERIOD
    + """
local job, owned, open_jobs, backlog, drained, rate, deadlines, idempotency = unpack(KEYS)
local ask = cjson.decode(ARGV[1])
-- The driver repeats a call whose reply was lost: then the job itself is known already.
local known = idempotency and redis.call('GET', idempotency)
local record = redis.call('HGETALL', known and ask.job_prefix .. known or job)
if #record > 0 then return {'job', unpack(record)} end

local function number(value) return tonumber(value or 0) end
local function held(holder)
  local found = redis.call('HMGET', backlog, holder .. ' inputs', holder .. ' bytes', holder .. ' tokens')
  return number(found[1]), number(found[2]), number(found[3])
end

-- The interactive lane holds four times what one job may bring there. An owner may hold as much as is free after that.
local lane = ask.lane
if lane == 'interactive' then
  local _, _, own_tokens = held(lane .. ' ' .. ask.owner)
  local _, _, lane_tokens = held(lane .. ' *')
  local tokens, most = own_tokens + lane_tokens, ask.interactive_max_tokens
  if ask.tokens > most or tokens + 2 * ask.tokens > 4 * most then lane = 'bulk' end
end
local holder, whole_lane = lane .. ' ' .. ask.owner, lane .. ' *'
local own_inputs, own_bytes = held(holder)
local lane_inputs, lane_bytes = held(whole_lane)
-- An owner keeps its queue while it has work there: the job's model may have other queues than the owner's last one.
local kept, queue, fewest = redis.call('HGET', backlog, holder .. ' queue'), nil, nil
for _, name in ipairs(ask.lanes[lane].queues) do
  local ahead = held(name) + redis.call('LLEN', name) -- tasks also of jobs that were cancelled
  if name == kept then ahead = -1 end
  if not fewest or ahead < fewest then queue, fewest = name, ahead end
end

local function drained_after(inputs, bytes)
  local latest, done_inputs, done_bytes, since = period(), 0, 0, nil
  for at = latest - 12, latest do
    local some, their_bytes = unpack(redis.call('HMGET', drained .. at, lane .. ' inputs', lane .. ' bytes'))
    if some then
      done_inputs, done_bytes, since = done_inputs + some, done_bytes + their_bytes, since or at
    end
  end
  if not since then return 0 end
  local per_done = (latest - since + 1) * 5
  return math.ceil(math.max(inputs * per_done / done_inputs, bytes * per_done / math.max(done_bytes, 1), 1))
end

-- An owner may hold as much as is free beside it: one alone comes to half of the room, two to a third each, and so on;
-- so a newcomer always finds some. A lane without work takes any one job.
if lane_inputs > 0 then
  local over_inputs = own_inputs + lane_inputs + ask.inputs - ask.max_inputs
  local over_bytes = own_bytes + lane_bytes + ask.bytes - ask.max_bytes
  if over_inputs > 0 or over_bytes > 0 then return {'queue_full', drained_after(over_inputs, over_bytes)} end
end
local memory = redis.call('INFO', 'memory')
local used, most = number(memory:match('used_memory:(%d+)')), number(memory:match('maxmemory:(%d+)'))
if most > 0 and used + ask.new_bytes > ask.lanes[lane].fill_to * most then return {'queue_full', 0} end
if ask.key_max_inputs > 0 and own_inputs > 0 and own_inputs + ask.inputs > ask.key_max_inputs then
  return {'rate_limited', drained_after(own_inputs + ask.inputs - ask.key_max_inputs, 0)}
end
if ask.key_per_minute > 0 then
  -- The generic cell rate algorithm: one time stands for all submissions of the last minute.
  local used_until = math.max(now, number(redis.call('GET', rate))) + 60 / ask.key_per_minute
  if used_until > now + 60 then return {'rate_limited', math.ceil(used_until - now - 60)} end
  if not ask.only_room then redis.call('SET', rate, string.format('%.6f', used_until), 'EX', 60) end
end
if ask.only_room then return {'room'} end

if idempotency then redis.call('SET', idempotency, ask.id, 'EX', ask.forget_after_s) end
redis.call('HSET', job, 'lane', lane, 'queue', queue, 'created_at', now, 'deadline_at', now + ask.deadline_s,
  'expires_at', now + ask.job_ttl_s, unpack(ARGV, 2))
redis.call('EXPIRE', job, ask.forget_after_s)
redis.call('ZREMRANGEBYSCORE', owned, '-inf', now - ask.forget_after_s)
redis.call('ZADD', owned, now, ask.id)
redis.call('EXPIRE', owned, ask.forget_after_s)
redis.call('ZADD', open_jobs, now, ask.id)
redis.call('EXPIRE', open_jobs, ask.forget_after_s)
redis.call('ZADD', deadlines, now + ask.deadline_s, ask.id)
redis.call('EXPIRE', deadlines, ask.forget_after_s)
for _, name in ipairs({queue, holder, whole_lane}) do
  redis.call('HINCRBY', backlog, name .. ' inputs', ask.inputs)
  redis.call('HINCRBY', backlog, name .. ' bytes', ask.bytes)
  redis.call('HINCRBY', backlog, name .. ' tokens', ask.tokens)
end
redis.call('HSET', backlog, holder .. ' queue', queue)
redis.call('EXPIRE', backlog, ask.forget_after_s)
return {'job', unpack(redis.call('HGETALL', job))}
"""
)

# ARGV attempts_ttl_s, the worker's model, its id, index, ...   → {'elsewhere', queue}: another model answers this job,
# and its tasks belong in that queue; or {owner, input_type, output_dtype, pool_factor, seconds until the deadline,
# attempts before of each index, ...}, or nil: nothing left to do. An input's first attempt is counted here, later ones
# by the worker that runs it alone.
BEGIN: Final = (
    _NAMES
    + NOW
    + _STATUS
    + """
if not unfinished then
  redis.call('ZREM', open_jobs, id or '')
  return nil
end
redis.call('HDEL', job, 'nothing')
local _, model, model_id = unpack(ARGV)
local bound, queue = unpack(redis.call('HMGET', job, 'model_id', 'queue'))
if bound and bound ~= '' and bound ~= model_id then return {'elsewhere', queue} end
if bound ~= model_id then
  -- Nobody had served a model when this job came: it is bound to the first that begins it.
  local own = queue .. '@' .. model_id
  local lane, owner, completed, failed, bytes, tokens =
    unpack(redis.call('HMGET', job, 'lane', 'owner', 'completed', 'failed', 'bytes', 'tokens'))
  for what, amount in pairs({inputs = total - completed - failed, bytes = bytes, tokens = tokens or 0}) do
    redis.call('HINCRBY', backlog, own .. ' ' .. what, amount)
    local left = redis.call('HINCRBY', backlog, queue .. ' ' .. what, 0 - amount)
    if left <= 0 then redis.call('HDEL', backlog, queue .. ' ' .. what) end
  end
  redis.call('HSET', backlog, lane .. ' ' .. owner .. ' queue', own)
  redis.call('HSET', job, 'model', model, 'model_id', model_id, 'queue', own)
end
if status == 'queued' then
  redis.call('HSET', job, 'status', 'running', 'started_at', now)
  announce()
end
redis.call('ZADD', open_jobs, 'XX', now, id)
local began = redis.call('HMGET', job, 'owner', 'input_type', 'output_dtype', 'pool_factor', 'deadline_at')
began[5] = tostring(began[5] - now)
for i = 4, #ARGV do
  local before = redis.call('HGET', attempts, ARGV[i]) or '0'
  if before == '0' then redis.call('HSET', attempts, ARGV[i], 1) end
  began[#began + 1] = before
end
redis.call('EXPIRE', attempts, ARGV[1])
return began
"""
)

# ARGV job_ttl_s, result_ttl_s, record_ttl_s, index, 'results' | 'failures', bytes, ...   → inputs counted now
SAVE: Final = (
    _NAMES
    + NOW
    + _STATUS
    + _PERIOD
    + _LET_GO
    + """
if not unfinished then return 0 end
local job_ttl, result_ttl, record_ttl = ARGV[1], ARGV[2], ARGV[3]
redis.call('HDEL', job, 'nothing')
local counted, bytes = 0, 0
for i = 4, #ARGV, 3 do
  local index, kept = ARGV[i], ARGV[i + 1] == 'results'
  if redis.call('HEXISTS', results, index) + redis.call('HEXISTS', failures, index) == 0 then
    bytes = bytes + redis.call('HSTRLEN', payloads, index)
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
  bytes = bytes_left -- also of payloads that had expired
  redis.call('HSET', job, 'status', tonumber(completed) > 0 and 'completed' or 'failed',
    'finished_at', now, 'expires_at', now + result_ttl)
  redis.call('EXPIRE', job, result_ttl + record_ttl)
  redis.call('UNLINK', payloads, attempts)
  redis.call('ZREM', open_jobs, id)
  redis.call('ZREM', deadlines, id)
else
  redis.call('ZADD', open_jobs, 'XX', now, id)
  redis.call('HINCRBY', job, 'bytes', 0 - bytes)
end
let_go(counted, bytes, completed + failed >= tonumber(total))
local done = drained .. period()
redis.call('HINCRBY', done, lane .. ' inputs', counted)
redis.call('HINCRBY', done, lane .. ' bytes', bytes)
redis.call('EXPIRE', done, 120)
redis.call('EXPIRE', results, kept_for)
redis.call('EXPIRE', failures, kept_for)
announce()
return counted
"""
)

# ARGV record_ttl_s   → 1, or 0: it was finished already
CANCEL: Final = (
    _NAMES
    + NOW
    + _STATUS
    + _LET_GO
    + """
if not unfinished then return 0 end
redis.call('UNLINK', payloads, results, failures, attempts)
local completed, failed = unpack(redis.call('HMGET', job, 'completed', 'failed'))
let_go(total - completed - failed, bytes_left, true)
redis.call('HSET', job, 'status', 'cancelled', 'finished_at', now, 'expires_at', now)
redis.call('EXPIRE', job, ARGV[1])
redis.call('ZREM', open_jobs, id)
redis.call('ZREM', deadlines, id)
announce()
return 1
"""
)


# → when it was queued anew, or nil: it is finished or gone
REQUEUE: Final = (
    _NAMES
    + NOW
    + _STATUS
    + """
if not unfinished then return nil end
redis.call('HSET', job, 'queued_at', now)
redis.call('ZADD', open_jobs, 'XX', now, id)
return redis.call('HGET', job, 'queued_at')
"""
)


# KEYS unfinished jobs, backlog   ARGV the job key's part before the id   → how many jobs were struck off
# A record expires unfinished only where no worker has looked for long, so this may take its time.
RECOUNT: Final = """
local open_jobs, backlog = unpack(KEYS)
local gone, counted = 0, {}
for _, id in ipairs(redis.call('ZRANGE', open_jobs, 0, -1)) do
  local status, lane, owner, queue, total, completed, failed, bytes, tokens = unpack(redis.call('HMGET', ARGV[1] .. id,
    'status', 'lane', 'owner', 'queue', 'total', 'completed', 'failed', 'bytes', 'tokens'))
  if status == 'queued' or status == 'running' then
    for _, holder in ipairs({queue, lane .. ' ' .. owner, lane .. ' *'}) do
      counted[holder .. ' inputs'] = (counted[holder .. ' inputs'] or 0) + total - completed - failed
      counted[holder .. ' bytes'] = (counted[holder .. ' bytes'] or 0) + bytes
      counted[holder .. ' tokens'] = (counted[holder .. ' tokens'] or 0) + (tokens or 0)
    end
    counted[lane .. ' ' .. owner .. ' queue'] = queue
  else
    redis.call('ZREM', open_jobs, id)
    gone = gone + 1
  end
end
local ttl = redis.call('TTL', open_jobs)
redis.call('UNLINK', backlog)
for field, value in pairs(counted) do redis.call('HSET', backlog, field, value) end
redis.call('EXPIRE', backlog, ttl)
return gone
"""

# KEYS job   ARGV owner   → the record's fields and values; nil where the job is unknown or another owner's
# The owner is read first, so that the reply for another owner's job takes as long as the one for none.
READ: Final = """
if redis.call('HGET', KEYS[1], 'owner') ~= ARGV[1] then return nil end
return redis.call('HGETALL', KEYS[1])
"""


def job_from_hash(fields: Mapping[bytes, bytes]) -> Job:
    """Return the job that a record of CREATE and the scripts after it describe."""
    times = ("created_at", "started_at", "finished_at", "expires_at")
    record: dict[str, object] = {
        name: fields[name.encode()].decode()
        for name in (
            "id",
            "status",
            "input_type",
            "lane",
            "queue",
            "request_id",
            "pool_factor",
            "total",
            "completed",
            "failed",
        )
    }
    record |= {
        name: datetime.fromtimestamp(float(fields[name.encode()]), UTC) for name in times if name.encode() in fields
    }
    record |= {name: fields[name.encode()].decode() for name in ("model", "model_id") if fields.get(name.encode())}
    record["output_dtype"] = fields[b"output_dtype"].decode() or None
    record["tokens"] = int(fields.get(b"tokens", b"0"))
    return Job.model_validate(record)
