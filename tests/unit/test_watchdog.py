"""When the watchdog leaves a worker alone. How it ends one is tested with real processes in the integration tests."""

import threading
import time

import pytest
from doubles import FakeModel
from stack import eventually

from shared.jobs import Lane
from worker import watchdog
from worker.batcher import Batcher
from worker.watchdog import Watchdog

TIMEOUT_S = 0.01
SOON_S = 120


@pytest.mark.parametrize("busy_for_s", [0, TIMEOUT_S / 2, TIMEOUT_S])
def test_a_model_whose_batch_is_within_the_timeout_is_left_alone(monkeypatch, busy_for_s):
    ended = []
    monkeypatch.setattr(watchdog.os, "_exit", ended.append)
    Watchdog(lambda: busy_for_s, TIMEOUT_S, lambda: None)._look()  # noqa: SLF001  # once, in place of waiting for it
    assert ended == []


def test_a_batch_is_timed_from_its_own_start_and_an_idle_model_is_not_busy():
    """A model that is always busy but progresses never seems to hang, nor does one whose last batch was long ago."""
    inside, go = threading.Semaphore(0), threading.Semaphore(0)

    def during(_):
        inside.release()
        assert go.acquire(timeout=SOON_S)

    model = FakeModel(during)
    batcher = Batcher(model.start, max_tokens=1, unfinished=lambda jobs: jobs)
    thread = threading.Thread(target=batcher.run, daemon=True)
    thread.start()
    first, second = (batcher.submit("job", model.prepare_query(text), Lane.BULK) for text in "ab")
    assert inside.acquire(timeout=SOON_S)
    assert batcher.busy_for_s > 0
    before_second = time.perf_counter()
    go.release()
    assert inside.acquire(timeout=SOON_S)
    first.result(SOON_S)
    assert 0 < batcher.busy_for_s < time.perf_counter() - before_second
    go.release()
    second.result(SOON_S)
    eventually(lambda: batcher.busy_for_s == 0)
    batcher.close()
    thread.join(SOON_S)
