"""Choosing a batch's tokens: the choice from measurements, and the measuring of a model that is none."""

import time
from types import SimpleNamespace

import pytest
import torch

from shared.errors import DeviceMemoryError
from worker.model import calibrate
from worker.model.calibrate import Measurement, calibrated_batch_tokens, chosen, measured
from worker.model.seam import Prepared


class Model:
    """Takes as long for a batch of so many pages as it was told to; short of memory beyond `most`."""

    name, dtype, engine, device = "double", torch.float32, "fast", torch.device("cpu")

    def __init__(self, seconds, most=100):
        self.batches = []
        self._seconds = seconds
        self._most = most

    def prepare_page(self, data):
        assert data
        return Prepared(779, None)

    def embed(self, batch):
        if len(batch) > self._most:
            raise DeviceMemoryError("full")
        self.batches.append(len(batch))
        time.sleep(self._seconds[len(batch)])
        return [None] * len(batch)


@pytest.fixture
def clock(monkeypatch):
    """A clock that only the doubles' work moves."""
    now = [0.0]
    fake = SimpleNamespace(monotonic=lambda: now[0], sleep=lambda s: now.__setitem__(0, now[0] + s))
    monkeypatch.setattr(calibrate, "time", fake)
    monkeypatch.setattr(f"{__name__}.time", fake)
    return now


@pytest.mark.parametrize(
    ("rates", "tokens"),
    [
        ({1: 5.0}, 1),
        ({1: 2.3, 2: 2.0, 4: 1.8}, 1),
        ({1: 1.0, 2: 1.5, 4: 1.9, 8: 1.95}, 4),
        ({1: 95.0, 2: 100.0}, 1),
        ({1: 94.9, 2: 100.0}, 2),
        ({1: 1.0, 2: 3.0, 4: 2.0, 8: 3.1}, 2),
    ],
)
def test_the_smallest_batch_within_five_percent_of_the_best_is_chosen(rates, tokens):
    assert chosen([Measurement(size, rate) for size, rate in rates.items()]) == tokens


@pytest.mark.usefixtures("clock")
def test_larger_batches_are_tried_while_the_rate_grows():
    found = measured(Model({1: 0.1, 2: 0.15, 4: 0.25, 8: 0.45}))
    assert [(one.tokens, round(one.pages_per_s, 1)) for one in found] == [
        (779, 10.0),
        (2 * 779, 13.3),
        (4 * 779, 16.0),
        (8 * 779, 17.8),
    ]


@pytest.mark.usefixtures("clock")
def test_no_larger_batch_is_tried_once_the_rate_has_fallen():
    model = Model({1: 0.1, 2: 0.4})
    assert len(measured(model)) == 2
    assert set(model.batches) == {1, 2}


@pytest.mark.usefixtures("clock")
def test_the_memory_is_the_upper_bound():
    assert [one.tokens for one in measured(Model({1: 0.1, 2: 0.1}, most=2))] == [779, 2 * 779]


def test_a_model_that_takes_minutes_a_page_is_asked_for_one_page_once(clock):
    model = Model({1: 60.0})
    assert chosen(measured(model)) == 779
    assert model.batches == [1]
    assert clock[0] == 60


@pytest.mark.parametrize("seconds", [0.3, 1.5, 4])
def test_the_time_is_bounded(clock, seconds):
    measured(Model({size: seconds * size * 0.9 for size in (1, 2, 4, 8)}))
    assert clock[0] <= 10 + seconds


@pytest.mark.usefixtures("clock")
def test_what_was_found_is_read_from_the_file_the_next_time(tmp_path):
    model = Model({1: 0.1, 2: 0.15, 4: 0.4})
    assert calibrated_batch_tokens(model, tmp_path / "cache") == 2 * 779
    again = Model({})
    assert calibrated_batch_tokens(again, tmp_path / "cache") == 2 * 779
    assert again.batches == []


@pytest.mark.usefixtures("clock")
def test_another_model_is_measured_for_itself_and_the_first_is_kept(tmp_path):
    first, other = Model({1: 0.1, 2: 0.15, 4: 0.4}), Model({1: 0.1, 2: 0.4})
    other.name = "other"
    assert calibrated_batch_tokens(first, tmp_path) == 2 * 779
    assert calibrated_batch_tokens(other, tmp_path) == 779
    assert calibrated_batch_tokens(Model({}), tmp_path) == 2 * 779


@pytest.mark.usefixtures("clock")
@pytest.mark.parametrize("damage", ["", "{", "[1]", '{"a": '])
def test_a_damaged_file_is_measured_anew(tmp_path, damage):
    (tmp_path / "batch-tokens.json").write_text(damage)
    assert calibrated_batch_tokens(Model({1: 0.1, 2: 0.4}), tmp_path) == 779
