"""Tells which records in Redis this release can read, and refuses those that a newer release wrote."""

from collections.abc import Iterable, Mapping
from functools import lru_cache
from typing import Any, Final

import structlog

from shared.errors import NewerRecordError, UnreadableRecordError

__all__ = ["NEWER", "READ_RECORD", "RECORD_VERSION", "UNREADABLE", "log_skipped", "require_version"]

_log = structlog.get_logger(__name__)

RECORD_VERSION: Final = 2
"""The version of the records that this release writes: of a job, of a worker's facts, and of a model.

It is raised when the release before would misread what this one writes. 0.1.0 wrote records without a version, which
count as version 1; this release reads them, too.
"""

NEWER, UNREADABLE = "NEWERRECORD", "ODDRECORD"
"""How a script's refusal begins; `shared.redis_errors` makes errors of them."""

# What every job's record has had since 0.1.0. Scripts calculate with the numbers, so they must be whole.
_TEXTS: Final = ("id", "status", "owner", "lane", "queue", "input_type")
_NUMBERS: Final = ("total", "completed", "failed", "bytes", "pool_factor")
_OPTIONAL_NUMBERS: Final = ("tokens", "expected", "kept")
_TIMES: Final = ("created_at", "deadline_at")


def _lua(names: Iterable[str]) -> str:
    return ", ".join(f"'{name}'" for name in names)


READ_RECORD: Final = f"""
local function read_record(of_job)
  local names = {{'version', {_lua((*_TEXTS, *_NUMBERS, *_OPTIONAL_NUMBERS, *_TIMES))}}}
  local found, record = redis.call('HMGET', of_job, unpack(names)), {{}}
  for place, name in ipairs(names) do record[name] = found[place] or nil end
  if record.version and (tonumber(record.version) or 0) > {RECORD_VERSION} then
    return record, redis.error_reply('{NEWER} of version ' .. record.version)
  end
  if not record.status then return record, nil end
  local odd = nil
  for _, name in ipairs({{{_lua(_TEXTS)}}}) do if not record[name] then odd = name end end
  for _, name in ipairs({{{_lua(_NUMBERS)}}}) do
    if not (record[name] and record[name]:match('^-?%d+$')) then odd = name end
  end
  for _, name in ipairs({{{_lua(_OPTIONAL_NUMBERS)}}}) do
    if record[name] and not record[name]:match('^-?%d+$') then odd = name end
  end
  for _, name in ipairs({{{_lua(_TIMES)}}}) do if not tonumber(record[name] or '') then odd = name end end
  return record, odd and redis.error_reply('{UNREADABLE} field ' .. odd) or nil
end
"""
"""Lua: `read_record(key)` returns a job's fields by name, and what a script must return where it cannot go on.

A script calls it before it writes anything, because an error in the middle of a script leaves half of its writes.
"""


def require_version(record: Mapping[str, Any], what: str) -> None:
    """Raise `NewerRecordError` for a record of a newer release, and `UnreadableRecordError` for an odd version."""
    version = record.get("version", 1)
    try:
        is_newer = int(version) > RECORD_VERSION
    except (TypeError, ValueError):
        raise UnreadableRecordError(f"The record of {what} cannot be read: it has an odd version.") from None
    if is_newer:
        raise NewerRecordError(
            f"The record of {what} has version {int(version)}, and this process reads versions up to {RECORD_VERSION}. "
            "Please upgrade this process."
        )


@lru_cache(maxsize=1024)
def log_skipped(what: str, reason: str) -> None:
    """Log that a record is left out: once for each record and reason, although it is looked at again and again."""
    _log.error("record.skipped", record=what, reason=reason)
