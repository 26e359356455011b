import asyncio
import itertools

import pytest

from api.patience import Patience
from shared.errors import (
    QueueFullError,
    RateLimitedError,
    StoreFullError,
    StoreRefusedError,
    StoreUnavailableError,
    TooLargeError,
)


class Attempts:
    """Raises these errors one after the other, then answers."""

    def __init__(self, *errors):
        self.errors = list(errors)
        self.made = 0

    async def __call__(self):
        self.made += 1
        if self.errors:
            raise self.errors.pop(0)
        return "answer"


def wait(attempt, wait_s=60, hang_up_at=None):
    async def waiting():
        gone = asyncio.get_running_loop().create_future()

        async def attempt_and_count():
            if attempt.made + 1 == hang_up_at:
                gone.set_result(None)
            return await attempt()

        return await patience.until_passed(attempt_and_count, wait_s=wait_s, gone=gone)

    patience = Patience()
    try:
        return asyncio.run(waiting())
    finally:
        assert patience._waiting == 0  # noqa: SLF001 - a request that is over may not slow others down


@pytest.mark.parametrize("error", [QueueFullError, RateLimitedError, StoreUnavailableError, StoreFullError])
def test_what_passes_soon_is_waited_for(error):
    attempt = Attempts(error("not now"), error("not yet"))
    assert wait(attempt) == "answer"
    assert attempt.made == 3


def test_a_call_that_succeeds_is_made_once():
    attempt = Attempts()
    assert wait(attempt) == "answer"
    assert attempt.made == 1


@pytest.mark.parametrize("error", [StoreRefusedError("wrong password"), TooLargeError("too large")])
def test_what_does_not_pass_is_said_at_once(error):
    attempt = Attempts(error)
    with pytest.raises(type(error)):
        wait(attempt)
    assert attempt.made == 1


def test_the_last_refusal_is_raised_once_the_time_is_up():
    attempt = Attempts(*(QueueFullError(str(number)) for number in range(1000)))
    with pytest.raises(QueueFullError) as caught:
        wait(attempt, wait_s=0.3)
    assert attempt.made >= 2
    assert caught.value.message == str(attempt.made - 1)


def test_without_time_to_wait_the_first_refusal_is_raised():
    attempt = Attempts(QueueFullError("full"))
    with pytest.raises(QueueFullError):
        wait(attempt, wait_s=0)
    assert attempt.made == 1


def test_a_caller_that_hangs_up_is_not_tried_for_any_more():
    attempt = Attempts(*itertools.repeat(QueueFullError("full"), 100))
    assert wait(attempt, hang_up_at=2) is None
    assert attempt.made == 2


def test_many_that_wait_ask_no_more_often_altogether_than_a_few():
    patience = Patience()
    patience._waiting = 1000  # noqa: SLF001 - as if so many waited
    assert all(10 <= patience._pause_s(tries) <= 20 for tries in range(20))  # noqa: SLF001
    patience._waiting = 1  # noqa: SLF001
    assert all(patience._pause_s(tries) <= 2 for tries in range(20))  # noqa: SLF001
    assert patience._pause_s(10_000) <= 2  # noqa: SLF001 - after hours, too
