"""Defines the Lua scripts that change jobs in Redis; the api and the worker run the same ones.

Each script is atomic, and none touches a finished job, so a task delivered twice, a caller that cancels while a worker
saves, or two workers with the same inputs cannot lose a result or count one twice:

CREATE  registers a job, unless its idempotency key already made one or there is no room for it
BEGIN   queued → running; binds the job to a model if it has none, and returns what the worker needs to know
SAVE    keeps each result or failure once, drops its payload, counts it, finishes the job with the last one
CANCEL  → cancelled, and everything but the record is dropped
REQUEUE notes that what a job still lacks is queued anew, if it still lacks anything
RELEASE drops the result of a finished job, and its record too where its caller will not ask again
RECOUNT counts the backlog and the held memory anew, once the record of an unfinished job has expired
LIST    finds an owner's jobs, newest first, and strikes off those whose records have expired

The backlog is what unfinished jobs still lack, in inputs and in bytes: of each queue, of each owner in each lane, and
of each lane. CREATE adds to it, and SAVE and CANCEL take off exactly what they end, so no job can race past the room
that is left. BEGIN moves what a job lacks to another queue when it binds the job to a model.
A job's tokens (its estimated cost) are added as well, and taken off when the job ends. They bound the interactive lane:
CREATE puts a job into bulk where the lane that it asks for has no room for its cost.

Memory is reserved when a job is registered: its payloads and the results to come (`shared.room`). SAVE replaces what
was expected by the real size; what the job holds is taken off when it is cancelled or released, or when its results
expire, which `kept` tells by time. A job is refused where Redis's memory has no room for it beside what is to come, and
one owner may use at most the memory that all owners together leave free.

Times are Redis's own (`TIME`), so that no clock of an api or a worker decides about a deadline, a rate or an age.

Each script looks at the whole record before it writes, and refuses one of a newer release, or one that lacks what it
calculates with (`shared.records`): an error in the middle of a script would leave half of its writes.

A full Redis refuses a script's first write if it may take memory, but not those after it. All but CREATE begin with one
that frees some, so a full store takes no new work but lets go of what is in it.
"""

from collections.abc import Mapping
from datetime import UTC, datetime
from typing import Final

from pydantic import ValidationError

from shared import keys
from shared.errors import UnreadableRecordError
from shared.jobs import Job
from shared.records import READ_RECORD, require_version
from shared.room import FIELD_BYTES, HOLD

__all__ = [
    "BEGIN",
    "CANCEL",
    "CREATE",
    "LIST",
    "NOW",
    "READ",
    "RECOUNT",
    "RELEASE",
    "REQUEUE",
    "SAVE",
    "job_from_hash",
    "script_keys",
]


def script_keys(job_id: str) -> list[str]:
    """Return the KEYS of all scripts that change a job, except CREATE."""
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
        keys.HELD,
        keys.KEPT,
    ]


_NAMES: Final = """
local job, payloads, results, failures, attempts, open_jobs, announcements, backlog, drained, deadlines, held, kept =
  unpack(KEYS)
"""

# The stream is long enough for every waiter to catch up after a pause; they also read the job again every few seconds.
_STATUS: Final = (
    READ_RECORD
    + """
local record, refusal = read_record(job)
if refusal then return refusal end
local id, status, total = record.id, record.status, record.total
local unfinished = status == 'queued' or status == 'running'
local function announce() redis.call('XADD', announcements, 'MAXLEN', '~', 10000, '*', 'job', id) end
"""
)

# A field that comes to zero is deleted: nothing is kept of queues and owners without work. Redis refuses Lua's -0.
_LET_GO: Final = """
local owner, lane, queue, bytes_left, tokens = record.owner, record.lane, record.queue, record.bytes, record.tokens
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

# What a job holds: bytes of results that it still expects, and bytes of results that are kept. Jobs that an older
# release registered hold nothing.
_HELD: Final = (
    HOLD
    + """
local is_counted = record.expected
local expected, kept_bytes = tonumber(record.expected or 0), tonumber(record.kept or 0)
local function kept_member(bytes) return id .. ' ' .. bytes .. ' ' .. record.owner end
"""
)

# Unix time with microseconds, by Redis's clock: the clocks of the machines around it may differ by hours.
NOW: Final = """
local seconds, microseconds = unpack(redis.call('TIME'))
local now = seconds + microseconds / 1e6
"""

# Periods of five seconds; a minute of them tells how fast a lane drains.
_PERIOD: Final = "local function period() return math.floor(redis.call('TIME')[1] / 5) end\n"

# KEYS job, payloads, owned jobs, unfinished jobs, backlog, drained, submission rate, deadlines, held, kept
# [, idempotency]
# ARGV what is asked (JSON), field, value, ...   → {'job', its record's fields and values}, as registered or as known
# before; or {'room'}, where only that was asked; or {'queue_full' | 'rate_limited', seconds until it may
# be otherwise, 0: not known}; or {'too_large'}, {'key_reused'} or {'payloads_gone'}.
CREATE: Final = (
    NOW
    + _PERIOD
    + "local job, payloads, owned, open_jobs, backlog, drained, rate = unpack(KEYS, 1, 7)\n"
    + "local deadlines, held, kept, idempotency = unpack(KEYS, 8)\n"
    + HOLD
    + """
local ask = cjson.decode(ARGV[1])
local function number(value) return tonumber(value or 0) or 0 end

-- The generic cell rate algorithm: one time stands for all submissions of the last minute.
local function refused_by_rate(is_counted)
  if ask.key_per_minute == 0 then return nil end
  local used_until = math.max(now, number(redis.call('GET', rate))) + 60 / ask.key_per_minute
  if used_until > now + 60 then return {'rate_limited', math.ceil(used_until - now - 60)} end
  if is_counted then redis.call('SET', rate, string.format('%.6f', used_until), 'EX', 60) end
end

-- The driver repeats a call whose reply was lost: then the job itself is known already, and that is no repeat of the
-- caller's.
local known = idempotency and redis.call('GET', idempotency)
local record = redis.call('HGETALL', known and ask.job_prefix .. known or job)
if #record > 0 then
  if known and known ~= ask.id then
    local fingerprint = redis.call('HGET', ask.job_prefix .. known, 'fingerprint')
    if fingerprint and fingerprint ~= ask.fingerprint then return {'key_reused'} end
    local refused = refused_by_rate(true)
    if refused then return refused end
  elseif not ask.only_room then
    -- The repeat has stored the payloads again and given them the short life of payloads without a job.
    local status = redis.call('HGET', job, 'status')
    if status == 'queued' or status == 'running' then redis.call('EXPIRE', payloads, ask.job_ttl_s) end
  end
  return {'job', unpack(record)}
end

local function unfinished_of(holder)
  local found = redis.call('HMGET', backlog, holder .. ' inputs', holder .. ' bytes', holder .. ' tokens')
  return number(found[1]), number(found[2]), number(found[3])
end

-- The interactive lane holds at most four times what one job may cost. One owner may use at
-- most what all owners together leave free.
local lane = ask.lane
if lane == 'interactive' then
  local _, _, own_tokens = unfinished_of(lane .. ' ' .. ask.owner)
  local _, _, lane_tokens = unfinished_of(lane .. ' *')
  local tokens, most = own_tokens + lane_tokens, ask.interactive_max_tokens
  if ask.tokens > most or tokens + 2 * ask.tokens > 4 * most then lane = 'bulk' end
end
local holder, whole_lane = lane .. ' ' .. ask.owner, lane .. ' *'
local own_inputs, own_bytes = unfinished_of(holder)
local lane_inputs, lane_bytes = unfinished_of(whole_lane)
-- An owner keeps its queue while it has work there, whichever model the job is for. Only the part of the name before
-- the @ is kept, because an api of 0.1.0 has no other queues.
local function without_model(name) return name:match('^[^@]+') end
local own_queue, queue, fewest = redis.call('HGET', backlog, holder .. ' queue'), nil, nil
for _, name in ipairs(ask.lanes[lane].queues) do
  local ahead = unfinished_of(name) + redis.call('LLEN', name) -- tasks also of jobs that were cancelled
  if without_model(name) == own_queue then ahead = -1 end
  if not fewest or ahead < fewest then queue, fewest = name, ahead end
end

local function drained_after(inputs, bytes)
  local latest, done_inputs, done_bytes, since = period(), 0, 0, nil
  for at = latest - 12, latest do
    local some, their_bytes = unpack(redis.call('HMGET', drained .. at, lane .. ' inputs', lane .. ' bytes'))
    if some then
      done_inputs, done_bytes, since = done_inputs + number(some), done_bytes + number(their_bytes), since or at
    end
  end
  if not since then return 0 end
  local per_done = (latest - since + 1) * 5
  return math.ceil(math.max(inputs * per_done / done_inputs, bytes * per_done / math.max(done_bytes, 1), 1))
end

-- One owner may use at most the room that all owners together leave free: one owner alone gets half of the room, two
-- get a third each, and so on, so a newcomer always finds room. A lane without work takes any one job.
if lane_inputs > 0 then
  local over_inputs = own_inputs + lane_inputs + ask.inputs - ask.max_inputs
  local over_bytes = own_bytes + lane_bytes + ask.bytes - ask.max_bytes
  if over_inputs > 0 or over_bytes > 0 then return {'queue_full', drained_after(over_inputs, over_bytes)} end
end
local memory = redis.call('INFO', 'memory')
local used, most = number(memory:match('used_memory:(%d+)')), number(memory:match('maxmemory:(%d+)'))
if most > 0 then
  -- What is used includes payloads and results that are there; what is to come does not.
  sweep(now, 1000)
  local own, to_come = unpack(redis.call('HMGET', held, ask.owner, ' to come'))
  local room = ask.lanes[lane].fill_to * most
  if used <= room and ask.bytes + ask.expected > room then return {'too_large'} end
  if used + number(to_come) + number(own) + ask.new_bytes + ask.expected > room then
    local next_to_expire = redis.call('ZRANGE', kept, 0, 0, 'WITHSCORES')[2]
    return {'queue_full', next_to_expire and math.ceil(next_to_expire - now) or 0}
  end
end
if ask.key_max_inputs > 0 and own_inputs > 0 and own_inputs + ask.inputs > ask.key_max_inputs then
  return {'rate_limited', drained_after(own_inputs + ask.inputs - ask.key_max_inputs, 0)}
end
local refused = refused_by_rate(not ask.only_room)
if refused then return refused end
if ask.only_room then return {'room'} end

-- Payloads that no job was registered for expire soon; those of a job stay for as long as it may take.
if redis.call('EXPIRE', payloads, ask.job_ttl_s) == 0 then return {'payloads_gone'} end
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
redis.call('HSET', backlog, holder .. ' queue', without_model(queue))
redis.call('EXPIRE', backlog, ask.forget_after_s)
add_held(ask.owner, ask.bytes + ask.expected, ask.expected)
redis.call('EXPIRE', held, ask.forget_after_s)
redis.call('EXPIRE', kept, ask.forget_after_s)
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
local bound, queue = redis.call('HGET', job, 'model_id'), record.queue
if bound and bound ~= '' and bound ~= model_id then return {'elsewhere', queue} end
if bound ~= model_id then
  -- Nobody had served a model when this job came: it is bound to the first that begins it.
  local own = queue .. '@' .. model_id
  local inputs = total - record.completed - record.failed
  for what, amount in pairs({inputs = inputs, bytes = record.bytes, tokens = record.tokens or 0}) do
    redis.call('HINCRBY', backlog, own .. ' ' .. what, amount)
    local left = redis.call('HINCRBY', backlog, queue .. ' ' .. what, 0 - amount)
    if left <= 0 then redis.call('HDEL', backlog, queue .. ' ' .. what) end
  end
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
    + _HELD
    + f"local field_bytes = {FIELD_BYTES}\n"
    + """
if not unfinished then return 0 end
local job_ttl, result_ttl, record_ttl = ARGV[1], ARGV[2], ARGV[3]
redis.call('HDEL', job, 'nothing')
local counted, bytes, new_bytes = 0, 0, 0
for i = 4, #ARGV, 3 do
  local index, is_result = ARGV[i], ARGV[i + 1] == 'results'
  if redis.call('HEXISTS', results, index) + redis.call('HEXISTS', failures, index) == 0 then
    bytes = bytes + redis.call('HSTRLEN', payloads, index)
    redis.call('HDEL', payloads, index)
    redis.call('HDEL', attempts, index)
    redis.call('HSET', is_result and results or failures, index, ARGV[i + 2])
    redis.call('HINCRBY', job, is_result and 'completed' or 'failed', 1)
    counted = counted + 1
    new_bytes = new_bytes + #ARGV[i + 2] + field_bytes
  end
end
if counted == 0 then return 0 end
local completed, failed = unpack(redis.call('HMGET', job, 'completed', 'failed'))
local kept_for, came = job_ttl, math.min(expected, new_bytes)
if completed + failed >= tonumber(total) then
  kept_for = result_ttl
  bytes, came = bytes_left, expected -- also of payloads that had expired and of results that were smaller
  redis.call('HSET', job, 'status', tonumber(completed) > 0 and 'completed' or 'failed',
    'finished_at', now, 'expires_at', now + result_ttl)
  redis.call('EXPIRE', job, result_ttl + record_ttl)
  redis.call('UNLINK', payloads, attempts)
  redis.call('ZREM', open_jobs, id)
  redis.call('ZREM', deadlines, id)
  if is_counted then
    redis.call('ZADD', kept, now + result_ttl, kept_member(kept_bytes + new_bytes))
    redis.call('EXPIRE', kept, job_ttl + result_ttl + record_ttl)
    redis.call('EXPIRE', held, job_ttl + result_ttl + record_ttl)
  end
else
  redis.call('ZADD', open_jobs, 'XX', now, id)
  redis.call('HINCRBY', job, 'bytes', 0 - bytes)
end
let_go(counted, bytes, completed + failed >= tonumber(total))
if is_counted then
  redis.call('HSET', job, 'expected', expected - came, 'kept', kept_bytes + new_bytes)
  add_held(owner, new_bytes - came - bytes, 0 - came)
end
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
    + _HELD
    + """
if not unfinished then return 0 end
redis.call('UNLINK', payloads, results, failures, attempts)
if is_counted then add_held(owner, 0 - bytes_left - expected - kept_bytes, 0 - expected) end
let_go(total - record.completed - record.failed, bytes_left, true)
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


# KEYS as all, and the owner's jobs   ARGV record_ttl_s, or 0: the record goes as well   → 1, or 0: there is no result
RELEASE: Final = (
    _NAMES
    + NOW
    + _STATUS
    + _HELD
    + """
if status ~= 'completed' and status ~= 'failed' then return 0 end
redis.call('UNLINK', results, failures)
if redis.call('ZREM', kept, kept_member(kept_bytes)) == 1 then
  add_held(record.owner, 0 - kept_bytes, 0)
end
if ARGV[1] == '0' then
  redis.call('UNLINK', job)
  redis.call('ZREM', KEYS[#KEYS], id)
elseif redis.call('HSETNX', job, 'released', 1) == 1 then
  redis.call('HSET', job, 'expires_at', now)
  redis.call('EXPIRE', job, ARGV[1])
end
return 1
"""
)


# KEYS unfinished jobs, backlog, held, kept   ARGV the job key's part before the id
# → how many jobs were struck off, and the ids of those whose records cannot be read, which are not counted
# A record expires unfinished only where no worker has looked for long, so this may take its time.
RECOUNT: Final = (
    "local open_jobs, backlog, held, kept = unpack(KEYS)\n"
    + READ_RECORD
    + HOLD
    + """
local counts, counted = {0}, {}
local ttl = redis.call('TTL', open_jobs)
redis.call('UNLINK', held)
for _, member in ipairs(redis.call('ZRANGE', kept, 0, -1)) do
  local bytes, owner = string.match(member, '^%S+ (%d+) (.+)$')
  if bytes then add_held(owner, bytes, 0) else redis.call('ZREM', kept, member) end
end
for _, id in ipairs(redis.call('ZRANGE', open_jobs, 0, -1)) do
  local job, refusal = read_record(ARGV[1] .. id)
  if refusal then
    counts[#counts + 1] = id
  elseif job.status == 'queued' or job.status == 'running' then
    for _, holder in ipairs({job.queue, job.lane .. ' ' .. job.owner, job.lane .. ' *'}) do
      counted[holder .. ' inputs'] = (counted[holder .. ' inputs'] or 0) + job.total - job.completed - job.failed
      counted[holder .. ' bytes'] = (counted[holder .. ' bytes'] or 0) + job.bytes
      counted[holder .. ' tokens'] = (counted[holder .. ' tokens'] or 0) + (job.tokens or 0)
    end
    counted[job.lane .. ' ' .. job.owner .. ' queue'] = job.queue:match('^[^@]+')
    if job.expected then add_held(job.owner, job.bytes + job.expected + (job.kept or 0), job.expected) end
  else
    redis.call('ZREM', open_jobs, id)
    counts[1] = counts[1] + 1
  end
end
redis.call('UNLINK', backlog)
for field, value in pairs(counted) do redis.call('HSET', backlog, field, value) end
redis.call('EXPIRE', backlog, ttl)
redis.call('EXPIRE', held, math.max(ttl, redis.call('TTL', kept)))
return counts
"""
)

# KEYS owned jobs   ARGV id of the job before, or '', limit, the job key's part before the id, most ids to look at
# → {1, where there are no more, else 0, id, ...}: ids with a record, by descending time of creation. By rank and not by
# time, as the rank is that of this very moment. Ids without a record are struck off, so each is looked at once.
LIST: Final = """
local owned, after, limit, most = KEYS[1], ARGV[1], tonumber(ARGV[2]), tonumber(ARGV[4])
local first = 0
if after ~= '' then
  first = redis.call('ZREVRANK', owned, after)
  if not first then return {1} end
  first = first + 1
end
local ids = redis.call('ZREVRANGE', owned, first, first + most - 1)
local found, expired = {#ids < most and 1 or 0}, {}
for _, id in ipairs(ids) do
  if redis.call('EXISTS', ARGV[3] .. id) == 0 then
    expired[#expired + 1] = id
  elseif #found <= limit then
    found[#found + 1] = id
  else
    found[1] = 0
    break
  end
end
if #expired > 0 then redis.call('ZREM', owned, unpack(expired)) end
return found
"""

# KEYS job   ARGV owner   → the record's fields and values; nil where the job is unknown or another owner's
# The owner is read first, so that the reply for another owner's job takes as long as the one for none.
READ: Final = """
if redis.call('HGET', KEYS[1], 'owner') ~= ARGV[1] then return nil end
return redis.call('HGETALL', KEYS[1])
"""


def job_from_hash(fields: Mapping[bytes, bytes]) -> Job:
    """Return the job that a record of CREATE and the scripts after it describe.

    Raises:
        NewerRecordError: a newer release wrote it.
        UnreadableRecordError: it lacks something, or holds what none of our releases writes.
    """
    record = {name.decode(errors="replace"): value.decode(errors="replace") for name, value in fields.items()}
    require_version(record, f"the job {record.get('id', '')}")
    try:
        return _job_from(record)
    except (ArithmeticError, OSError, ValueError) as error:  # pydantic's are ValueErrors
        reason = error.errors()[0]["loc"] if isinstance(error, ValidationError) else type(error).__name__
        raise UnreadableRecordError(f"The record of the job {record.get('id', '')} cannot be read: {reason}.") from None


def _job_from(record: Mapping[str, str]) -> Job:
    asked = {
        name: value for name, value in record.items() if value or name not in {"output_dtype", "model", "model_id"}
    }
    times = {
        name: datetime.fromtimestamp(float(asked[name]), UTC)
        for name in ("created_at", "started_at", "finished_at", "expires_at")
        if name in asked
    }
    return Job.model_validate(asked | times | {"released": "released" in record})
