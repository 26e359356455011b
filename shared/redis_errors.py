"""What Redis's driver raises, in our words. Knows redis-py's errors; works around sync and async calls alike."""

from collections.abc import Iterator
from contextlib import contextmanager

import redis
from redis.exceptions import NoPermissionError

from shared.errors import StoreFullError, StoreRefusedError, StoreUnavailableError

__all__ = ["redis_errors_translated"]


@contextmanager
def redis_errors_translated() -> Iterator[None]:
    """Raise `StoreFullError`, `StoreRefusedError` or `StoreUnavailableError` for what the driver raises inside."""
    try:
        yield
    except redis.OutOfMemoryError as error:
        raise StoreFullError("The store is out of memory. Please try again later.") from error
    except (redis.AuthenticationError, NoPermissionError) as error:
        raise StoreRefusedError("The store refuses this service. Please tell those who run it.") from error
    except (redis.ConnectionError, redis.TimeoutError) as error:  # BusyLoading is a ConnectionError
        raise StoreUnavailableError("The store does not answer. Please try again later.") from error
