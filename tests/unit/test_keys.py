import itertools

import pytest

from shared import keys
from shared.jobs import Lane

OF_A_JOB = [keys.job, keys.payloads, keys.results, keys.failures, keys.attempts]
OF_ALL = [keys.ANNOUNCEMENTS, keys.CACHE, keys.CACHE_USED, keys.REAPER, keys.UNFINISHED, keys.WORKERS]


def test_no_two_names_are_the_same():
    named = [*OF_ALL, keys.worker("a"), keys.owned_jobs("a"), keys.idempotency("a", "a")]
    named += [name("a") for name in OF_A_JOB]
    assert len(set(named)) == len(named) == len(keys.__all__)


@pytest.mark.parametrize("name", [*OF_A_JOB, keys.worker, keys.owned_jobs])
def test_different_owners_of_a_name_have_different_keys(name):
    assert name("a") != name("b")


def test_everything_of_ours_has_our_prefix_and_is_no_queue_of_celerys():
    named = [*OF_ALL, keys.worker("w"), keys.owned_jobs("o"), keys.idempotency("o", "k")]
    assert all(name.startswith("colqueue:") for name in [*named, *(name("j") for name in OF_A_JOB)])
    assert not any(name in set(Lane) for name in named)


def test_one_callers_idempotency_key_cannot_name_anothers_or_a_list_of_jobs():
    """Owners are hashes without a colon, keys are whatever a caller sends."""
    sent = ["k", "", ":", "jobs", "other:idempotency:k", "k:jobs", "ü\n\0"]
    names = [keys.idempotency(owner, key) for owner, key in itertools.product(["0123456789abcdef", "f" * 16], sent)]
    assert len(set(names)) == len(names)
    assert keys.owned_jobs("f" * 16) not in names
