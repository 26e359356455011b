import random
from collections import Counter

from api.errors import error_response
from api.refusals import Refusals
from shared.errors import QueueFullError


class Clock:
    """Stands still until it is set."""

    now = 1000.0

    def __call__(self):
        return self.now


def draw():
    return random.Random(7).uniform  # noqa: S311 - the same numbers each time, nothing secret


def test_a_single_caller_is_told_what_was_measured():
    refusals = Refusals(Clock())
    assert refusals.retry_after_s(1) == 1
    assert refusals.retry_after_s(60) == 60


def test_callers_that_are_refused_together_are_told_to_come_back_at_different_times():
    refusals = Refusals(Clock(), draw())
    told = Counter(refusals.retry_after_s(1) for _ in range(300))
    assert max(told.values()) < 300 / 4
    assert max(told) >= 10


def test_callers_that_come_back_when_they_are_told_to_do_not_come_all_at_once():
    """Three hundred of them for two minutes, of whom nobody is ever taken."""
    clock = Clock()
    refusals = Refusals(clock, draw())
    returns = Counter({0: 300})
    for second in range(120):
        clock.now = 1000.0 + second
        for _ in range(returns[second]):
            returns[second + refusals.retry_after_s(1)] += 1
    assert max(returns[second] for second in range(20, 120)) <= 80


def test_refusals_of_long_ago_are_forgotten():
    clock = Clock()
    refusals = Refusals(clock, lambda _, most: most)
    for _ in range(300):
        refusals.retry_after_s(1)
    clock.now += 11
    assert refusals.retry_after_s(1) == 1


def test_nobody_is_told_to_wait_for_longer_than_a_minute_unless_it_was_measured():
    refusals = Refusals(Clock(), lambda _, most: most)
    assert max(refusals.retry_after_s(1) for _ in range(10_000)) == 60


def test_every_refusal_is_answered_with_a_spread_retry_after(monkeypatch):
    monkeypatch.setattr("api.errors._refusals", Refusals())
    told = {int(error_response(QueueFullError("full", retry_after_s=1)).headers["Retry-After"]) for _ in range(400)}
    assert len(told) >= 5
