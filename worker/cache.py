"""Keeps results by content, so that the same bytes, asked for in the same way, are embedded once.

What is kept lies in one hash, by name; a sorted set says when each was used last, so its order is that of eviction and
of expiry at once. Scripts keep the two and the count of bytes, a field of the hash, in step. Nothing here fails a job.
"""

import hashlib
import threading
from collections.abc import Mapping, Sequence
from typing import Any, Final

import redis
import structlog
from redis.backoff import NoBackoff
from redis.retry import Retry

from shared import keys
from shared.codecs import StoredRows, pack_rows, unpack_rows
from shared.errors import UnavailableError
from shared.redis_errors import redis_errors_translated
from shared.registry import NOW
from shared.settings import StoreSettings
from worker.store import Shard

__all__ = ["ContentCache"]

_log = structlog.get_logger(__name__)

# Of Redis's memory; beyond it the cache gives way to work, of which the api takes no more at 0.8.
_FILLED_TO: Final = 0.6

_KEYS: Final = (keys.CACHE, keys.CACHE_USED)

# KEYS kept, used   ARGV ttl_s, name, ...   → the rows of each name, or nil
_FIND: Final = (
    NOW
    + """
local kept, used = unpack(KEYS)
local ttl = tonumber(ARGV[1])
local found = redis.call('HMGET', kept, unpack(ARGV, 2))
for i, name in ipairs({unpack(ARGV, 2)}) do
  if found[i] and tonumber(redis.call('ZSCORE', used, name) or 0) > now - ttl then
    redis.call('ZADD', used, now, name)
    redis.call('EXPIRE', kept, ttl)
    redis.call('EXPIRE', used, ttl)
  else
    found[i] = false
  end
end
return found
"""
)

# KEYS kept, used   ARGV ttl_s, max_bytes, share of Redis's memory, name, rows, ...   → bytes kept
_KEEP: Final = (
    NOW
    + """
local kept, used = unpack(KEYS)
local ttl, limit = tonumber(ARGV[1]), tonumber(ARGV[2])
local size = tonumber(redis.call('HGET', kept, 'bytes') or 0)
local memory = redis.call('INFO', 'memory')
local whole = tonumber(string.match(memory, 'maxmemory:(%d+)'))
if whole > 0 then
  limit = math.min(limit, size + ARGV[3] * whole - tonumber(string.match(memory, 'used_memory:(%d+)')))
end
local function drop(name)
  size = size - redis.call('HSTRLEN', kept, name)
  redis.call('HDEL', kept, name)
  redis.call('ZREM', used, name)
end
local function make_room(bytes)
  while size > 0 and size + bytes > limit do drop(redis.call('ZRANGE', used, 0, 0)[1]) end
end
for _, name in ipairs(redis.call('ZRANGEBYSCORE', used, '-inf', now - ttl)) do drop(name) end
make_room(0)
for i = 4, #ARGV, 2 do
  local name, rows = ARGV[i], ARGV[i + 1]
  if #rows <= limit and redis.call('HEXISTS', kept, name) == 0 then
    make_room(#rows)
    redis.call('HSET', kept, name, rows)
    redis.call('ZADD', used, now, name)
    size = size + #rows
  end
end
if size == 0 then return redis.call('UNLINK', kept, used) * 0 end
redis.call('HSET', kept, 'bytes', size)
redis.call('EXPIRE', kept, ttl)
redis.call('EXPIRE', used, ttl)
return size
"""
)


class ContentCache:
    """Thread-safe. At most `max_bytes` of rows, each for `ttl_s` after its last use, least recently used first to go.

    `model` is all that the rows depend on beside the input and its job's options. Each owner has its own results: that
    an answer came quickly would tell what others have sent. Where Redis is away, slow or full, nothing is found and
    nothing kept.
    """

    def __init__(self, settings: StoreSettings, model: str, *, max_bytes: int, ttl_s: int) -> None:
        self.hits = self.misses = 0
        self._model = model
        self._max_bytes = max_bytes
        self._ttl_s = ttl_s
        self._counting = threading.Lock()
        # Impatient: the model does in a fraction of a second what is looked for here.
        self._redis = redis.Redis.from_url(
            settings.redis_dsn, retry=Retry(NoBackoff(), 0), socket_timeout=1, socket_connect_timeout=0.25
        )
        self._find = self._redis.register_script(_FIND)
        self._keep = self._redis.register_script(_KEEP)

    def find(self, shard: Shard, indices: Sequence[int]) -> dict[int, StoredRows]:
        """Return what is known of these inputs of a shard, as its job asked for it."""
        names = {index: name for index in indices if (name := self._name(shard, index))}
        if not names:
            return {}
        try:
            with redis_errors_translated():
                kept: Any = self._find(keys=_KEYS, args=[self._ttl_s, *names.values()])
        except UnavailableError as error:
            _log.info("cache.not_asked", job=shard.job_id, reason=str(error))
            return {}
        found = {index: unpack_rows(rows) for index, rows in zip(names, kept, strict=True) if rows is not None}
        with self._counting:
            self.hits += len(found)
            self.misses += len(names) - len(found)
        return found

    def keep(self, shard: Shard, embedded: Mapping[int, StoredRows]) -> None:
        """Keep what was embedded of a shard, at the cost of what was not used for longest."""
        if not embedded:
            return
        args: list[Any] = [self._ttl_s, self._max_bytes, _FILLED_TO]
        for index, rows in embedded.items():
            args += [self._name(shard, index), pack_rows(rows)]
        try:
            with redis_errors_translated():
                self._keep(keys=_KEYS, args=args)
        except UnavailableError as error:
            _log.info("cache.not_kept", job=shard.job_id, reason=str(error))

    def _name(self, shard: Shard, index: int) -> bytes | None:
        payload = shard.payloads[index]
        if payload is None:
            return None
        asked = (self._model, shard.owner, shard.input_type, shard.output_dtype or "", str(shard.pool_factor))
        told = hashlib.sha256("\n".join(asked).encode() + b"\n")
        told.update(payload)
        return told.digest()
