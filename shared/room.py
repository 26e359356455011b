"""Accounts for Redis's memory: what each job holds there now, and what its results will still add."""

from collections.abc import Iterable
from typing import Final

from shared.jobs import OutputDtype

__all__ = ["FIELD_BYTES", "HOLD", "SWEEP", "expected_result_bytes"]

_ROW_BYTES: Final = {
    None: 512,  # the model's own precision is not known here: float32 is the larger
    OutputDtype.FLOAT32: 512,
    OutputDtype.FLOAT16: 256,
    OutputDtype.INT8: 128,
    OutputDtype.BINARY: 16,
}

FIELD_BYTES: Final = 128
"""What a hash field takes beside its value: its name, its entry in the table, and the header of packed rows."""

# Redis's allocator rounds a value up to the next of four sizes between two powers of two.
_ALLOCATED_PER_BYTE: Final = 1.25


def expected_result_bytes(tokens: Iterable[int], output_dtype: OutputDtype | None, pool_factor: int) -> int:
    """Return an upper bound of the memory that the results of inputs of so many tokens take in Redis.

    An input has at most as many rows as tokens (`shared.cost`), and pooling leaves one row in `pool_factor`.
    """
    row_bytes = _ROW_BYTES[output_dtype]
    return sum(FIELD_BYTES + round(max(rows // pool_factor, 1) * row_bytes * _ALLOCATED_PER_BYTE) for rows in tokens)


# The script around it defines `held` and `kept`. A field that comes to zero is deleted, so that nothing stays of owners
# without work.
HOLD: Final = """
local function add_held(owner, bytes, to_come)
  if redis.call('HINCRBY', held, owner, bytes) <= 0 then redis.call('HDEL', held, owner) end
  if redis.call('HINCRBY', held, ' to come', to_come) <= 0 then redis.call('HDEL', held, ' to come') end
end
local function sweep(until_time, most)
  local expired = redis.call('ZRANGEBYSCORE', kept, '-inf', until_time, 'LIMIT', 0, most)
  for _, member in ipairs(expired) do
    local bytes, owner = string.match(member, '^%S+ (%d+) (.+)$')
    redis.call('ZREM', kept, member)
    if bytes then add_held(owner, 0 - bytes, 0) end
  end
  return #expired
end
"""
"""Lua functions that change what owners hold.

`held` is a hash: for each owner the bytes of payloads that wait, of results to come and of results kept, and in the
field ` to come` the bytes of results to come of all owners. `kept` is a sorted set of the finished jobs whose results
are kept, as `<job> <bytes> <owner>`, by the time at which Redis drops the results. `sweep` takes off what has expired.
"""

# KEYS held, kept   ARGV at most so many jobs   → how many jobs' results had expired
SWEEP: Final = "local held, kept = unpack(KEYS)\n" + HOLD + "return sweep(redis.call('TIME')[1], tonumber(ARGV[1]))"
