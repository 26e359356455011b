import itertools

import pytest

from shared import keys
from shared.jobs import Lane

OF_A_JOB = [keys.job, keys.payloads, keys.results, keys.failures, keys.attempts]
OF_ALL = [
    *(keys.ANNOUNCEMENTS, keys.BACKLOG, keys.CACHE, keys.CACHE_USED, keys.DEADLINES, keys.DEAD_LETTERS),
    *(keys.HELD, keys.KEPT, keys.MODELS, keys.REAPER, keys.UNFINISHED, keys.WORKERS),
]
OF_OTHERS = [keys.worker, keys.owned_jobs, keys.submission_rate, keys.drained, keys.model_gone_since]


def test_no_two_names_are_the_same():
    named = [*OF_ALL, keys.idempotency("a", "a"), *(name("a") for name in OF_A_JOB + OF_OTHERS)]
    assert len(set(named)) == len(named) == len(keys.__all__)


@pytest.mark.parametrize("name", [*OF_A_JOB, *OF_OTHERS])
def test_different_owners_of_a_name_have_different_keys(name):
    assert name("a") != name("b")


def test_everything_of_ours_has_our_prefix_and_is_no_queue_of_celerys():
    named = [*OF_ALL, keys.idempotency("o", "k"), *(name("j") for name in OF_A_JOB + OF_OTHERS)]
    assert all(name.startswith("colqueue:") for name in named)
    assert not any(name in lane.queues for lane in Lane for name in named)


def test_one_callers_idempotency_key_cannot_name_anothers_or_a_list_of_jobs():
    """Owners are without a colon, keys are whatever a caller sends."""
    sent = ["k", "", ":", "jobs", "rate", "other:idempotency:k", "k:jobs", "ü\n\0"]
    names = [keys.idempotency(owner, key) for owner, key in itertools.product(["0123456789abcdef", "@name"], sent)]
    assert len(set(names)) == len(names)
    assert {keys.owned_jobs("@name"), keys.submission_rate("@name")}.isdisjoint(names)
