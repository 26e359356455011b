"""What the integration tests share."""

import pytest


@pytest.fixture(autouse=True)
def patient_store(monkeypatch):
    """Let a worker's store wait for Redis: on a busy machine a reply may take longer than a batch may wait for it."""
    monkeypatch.setattr("worker.store._IMPATIENCE_S", 60)
