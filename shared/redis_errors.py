"""Translates every error that Redis's driver raises, around synchronous and asynchronous calls alike."""

import re
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Final

import redis
from redis.exceptions import NoPermissionError

from shared.errors import (
    NewerRecordError,
    StoreFullError,
    StoreRefusedError,
    StoreUnavailableError,
    UnreadableRecordError,
)
from shared.records import NEWER, UNREADABLE

__all__ = ["redis_errors_translated"]

# What Redis calls its reason: `MISCONF Errors writing to the AOF file`. A pipeline or a script may set words before it.
_REASON: Final = re.compile(r"\b[A-Z]{3,}\b")


@contextmanager
def redis_errors_translated() -> Iterator[None]:
    """Raise one of our errors for whatever the driver raises inside.

    `NewerRecordError` and `UnreadableRecordError` where a script refuses a record, else `StoreFullError`,
    `StoreRefusedError` or `StoreUnavailableError`.

    Redis has many reasons to refuse a command for a while: its disk is full (MISCONF), it became a replica (READONLY),
    it reads its file (LOADING), a script runs for too long (BUSY), a cluster or a master is down. Callers may try again
    after all of them.
    """
    try:
        yield
    except redis.OutOfMemoryError as error:
        raise StoreFullError("The store is out of memory. Please try again later.") from error
    except (redis.AuthenticationError, NoPermissionError) as error:
        raise StoreRefusedError("The store refuses this service. Please tell those who run it.") from error
    except (redis.ConnectionError, redis.TimeoutError) as error:
        raise StoreUnavailableError("The store does not answer. Please try again later.") from error
    except redis.RedisError as error:
        _raise_refusal(str(error))
        reason = _reason(error)
        raise StoreUnavailableError(f"The store cannot do this now ({reason}). Please try again later.") from error


def _raise_refusal(told: str) -> None:
    """Raise the error that a script's refusal of a record stands for (`shared.records`), if it is one."""
    refusal, _, why = told.partition(" ")
    if refusal == NEWER:
        raise NewerRecordError(f"A newer release wrote the record of this job ({why}). Please upgrade this process.")
    if refusal == UNREADABLE:
        raise UnreadableRecordError(f"The record of this job cannot be read: {why} is missing or odd.")


def _reason(error: redis.RedisError) -> str:
    """Return Redis's word for what is wrong, or the error's name; never the rest, which may show what was stored."""
    named = _REASON.search(str(error).rpartition("caused error: ")[2])
    return named.group() if type(error) is redis.ResponseError and named else type(error).__name__
