"""Every error of Redis's driver becomes one of ours."""

import pytest
import redis
from redis import exceptions

from shared.errors import StoreFullError, StoreRefusedError, StoreUnavailableError, UnavailableError
from shared.redis_errors import redis_errors_translated


def translated(error):
    with pytest.raises(UnavailableError) as raised, redis_errors_translated():
        raise error
    return raised.value


def kinds(cls):
    return {cls, *(kind for child in cls.__subclasses__() for kind in kinds(child))}


@pytest.mark.parametrize("kind", sorted(kinds(redis.RedisError), key=lambda kind: kind.__name__))
def test_whatever_the_driver_raises_is_a_reason_to_come_back_later(kind):
    error = kind.__new__(kind)
    error.args = ("something",)
    assert isinstance(translated(error), UnavailableError)


@pytest.mark.parametrize(
    ("error", "expected", "shown"),
    [
        (
            redis.ResponseError("MISCONF Errors writing to the AOF file: No space left"),
            StoreUnavailableError,
            "MISCONF",
        ),
        (redis.ResponseError("CLUSTERDOWN The cluster is down"), StoreUnavailableError, "CLUSTERDOWN"),
        (redis.ResponseError("BUSY Redis is busy running a script."), StoreUnavailableError, "BUSY"),
        (
            redis.ResponseError("Command # 1 (HSET k 'secret') of pipeline caused error: MISCONF Errors writing"),
            StoreUnavailableError,
            "MISCONF",
        ),
        (redis.ResponseError("wrong number of arguments"), StoreUnavailableError, "ResponseError"),
        (exceptions.ReadOnlyError("You can't write against a read only replica."), StoreUnavailableError, "ReadOnly"),
        (exceptions.NoScriptError("No matching script."), StoreUnavailableError, "NoScript"),
        (exceptions.MasterDownError("Link with MASTER is down"), StoreUnavailableError, "MasterDown"),
        (exceptions.BusyLoadingError("LOADING Redis is loading the dataset"), StoreUnavailableError, "not answer"),
        (redis.TimeoutError("Timeout reading"), StoreUnavailableError, "not answer"),
        (redis.OutOfMemoryError("command not allowed"), StoreFullError, "out of memory"),
        (exceptions.NoPermissionError("this user has no permissions"), StoreRefusedError, "refuses"),
        (redis.AuthenticationError("invalid password"), StoreRefusedError, "refuses"),
    ],
)
def test_an_error_says_what_redis_calls_it_and_shows_nothing_that_was_stored(error, expected, shown):
    raised = translated(error)
    assert type(raised) is expected
    assert shown in raised.message
    assert "secret" not in raised.message
