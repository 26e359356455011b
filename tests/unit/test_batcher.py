import itertools
import random
import threading
import time
from concurrent.futures import CancelledError

import numpy as np
import pytest
from doubles import FakeModel, rows_of
from stack import eventually
from structlog.testing import capture_logs

from shared.errors import DeadlineError, DeviceMemoryError, ModelError
from shared.jobs import Lane
from worker.batcher import Batcher, BatcherClosedError
from worker.model.seam import ModelLostError, Prepared

# Long enough for the slowest machine; no test waits for it unless it fails.
SOON_S = 120


def everything_wanted(job_ids):
    return job_ids


def batcher_of(model, max_tokens=1000, unfinished=everything_wanted):
    return Batcher(model.start, max_tokens=max_tokens, unfinished=unfinished)


@pytest.fixture(autouse=True)
def logs():
    """What is logged, in place of a screen full of tracebacks, which take their time to draw."""
    with capture_logs() as logs:
        yield logs


@pytest.fixture
def start():
    """Run a batcher on a thread of its own, which must have ended once the batcher is closed."""
    started = []

    def start(batcher):
        thread = threading.Thread(target=batcher.run, daemon=True)
        thread.start()
        started.append((batcher, thread))
        return thread

    yield start
    for batcher, thread in started:
        batcher.close()
        thread.join(SOON_S)
        assert not thread.is_alive()


def submit(batcher, payload, *, job="job", lane=Lane.BULK, **options):
    return batcher.submit(job, Prepared(options.pop("tokens", len(payload)), payload), lane, **options)


def assert_rows(future, payload):
    np.testing.assert_array_equal(future.result(SOON_S), rows_of(payload))


def failing(bad, error):
    def during(payloads):
        if bad & set(payloads):
            raise error

    return during


def test_an_idle_model_starts_at_once_with_a_single_input(start):
    model = FakeModel()
    batcher = batcher_of(model)
    start(batcher)
    assert_rows(submit(batcher, b"alone"), b"alone")
    assert model.batches == [[b"alone"]]


def test_what_arrives_during_a_batch_meets_in_the_next_whatever_its_job(start):
    later = []

    def during(payloads):
        if payloads == [b"first"]:
            later.extend([submit(batcher, b"a", job="one"), submit(batcher, b"b", job="two")])
            later.append(submit(batcher, b"c", job="three"))

    model = FakeModel(during)
    batcher = batcher_of(model)
    first = submit(batcher, b"first", job="zero")
    start(batcher)
    assert_rows(first, b"first")
    for future, payload in zip(later, [b"a", b"b", b"c"], strict=True):
        assert_rows(future, payload)
    assert model.batches == [[b"first"], [b"a", b"b", b"c"]]


def test_inputs_leave_their_lane_in_the_order_in_which_they_came(start):
    model = FakeModel()
    batcher = batcher_of(model, max_tokens=3)
    payloads = [bytes([letter]) for letter in b"abcdefgh"]
    futures = [submit(batcher, payload) for payload in payloads]
    start(batcher)
    for future, payload in zip(futures, payloads, strict=True):
        assert_rows(future, payload)
    assert model.batches == [[b"a", b"b", b"c"], [b"d", b"e", b"f"], [b"g", b"h"]]


def test_interactive_inputs_go_first_and_never_share_a_batch_with_bulk(start):
    model = FakeModel()
    batcher = batcher_of(model)
    bulk = [submit(batcher, b"bulk"), submit(batcher, b"bulk too")]
    query = submit(batcher, b"query", lane=Lane.INTERACTIVE)
    start(batcher)
    for future in (query, *bulk):
        future.result(SOON_S)
    assert model.batches == [[b"query"], [b"bulk", b"bulk too"]]


def test_a_flood_of_queries_does_not_stop_the_bulk(start):
    model = FakeModel()
    batcher = batcher_of(model, max_tokens=1)
    futures = [submit(batcher, b"q", lane=Lane.INTERACTIVE) for _ in range(40)]
    futures += [submit(batcher, b"b") for _ in range(3)]
    start(batcher)
    for future in futures:
        future.result(SOON_S)
    order = [batch[0] for batch in model.batches]
    turns = [turn for turn, payload in enumerate(order) if payload == b"b"]
    assert turns == [7, 15, 23]


def test_a_query_goes_before_bulk_that_came_at_the_same_time_however_many_queries_went_before(start):
    """A backfill that begins after a quiet day has no turn saved up."""
    later = []

    def during(payloads):
        if payloads == [b"19"]:
            later.extend([submit(batcher, b"bulk"), submit(batcher, b"query", lane=Lane.INTERACTIVE)])

    model = FakeModel(during)
    batcher = batcher_of(model, max_tokens=2)
    futures = [submit(batcher, b"%02d" % number, lane=Lane.INTERACTIVE) for number in range(20)]
    start(batcher)
    for future in itertools.chain(futures, later):
        future.result(SOON_S)
    assert model.batches[20:] == [[b"query"], [b"bulk"]]


def test_a_batch_keeps_to_the_budget_and_an_input_above_it_runs_alone(start):
    model = FakeModel()
    batcher = batcher_of(model, max_tokens=10)
    sizes = [4, 4, 4, 25, 1, 10, 9, 1, 1]
    futures = [submit(batcher, b"%d" % number, tokens=size) for number, size in enumerate(sizes)]
    start(batcher)
    for number, future in enumerate(futures):
        assert_rows(future, b"%d" % number)
    assert [[sizes[int(payload)] for payload in batch] for batch in model.batches] == [
        [4, 4],
        [4],
        [25],
        [1],
        [10],
        [9, 1],
        [1],
    ]


@pytest.mark.parametrize("bad", [{b"0"}, {b"5"}, {b"7"}, {b"2", b"3"}, {b"0", b"7"}])
def test_a_batch_that_fails_is_halved_until_the_inputs_at_fault_stand_alone(start, bad):
    model = FakeModel(failing(bad, ModelError("not these")))
    batcher = batcher_of(model)
    payloads = [b"%d" % number for number in range(8)]
    futures = {payload: submit(batcher, payload, job=payload.decode()) for payload in payloads}
    start(batcher)
    for payload in set(payloads) - bad:
        assert_rows(futures[payload], payload)
    for payload in bad:
        with pytest.raises(ModelError, match="not these"):
            futures[payload].result(SOON_S)
        assert [payload] in model.batches
    assert len(model.batches[0]) == 8


@pytest.mark.parametrize(
    "error", [ValueError("shapes"), TypeError(), MemoryError(), KeyError("x"), RuntimeError("CUDA")]
)
def test_an_exception_nobody_expected_hurts_the_input_at_fault_only_and_the_thread_lives_on(start, logs, error):
    model = FakeModel(failing({b"bad"}, error))
    batcher = batcher_of(model)
    bad, good = submit(batcher, b"bad"), submit(batcher, b"good")
    start(batcher)
    assert_rows(good, b"good")
    with pytest.raises(ModelError) as caught:
        bad.result(SOON_S)
    assert str(error) not in caught.value.message or not str(error)
    assert_rows(submit(batcher, b"later"), b"later")
    assert ("batch.failed", True) in [(entry["event"], entry.get("exc_info")) for entry in logs]


@pytest.mark.parametrize("answer", [[], None, "too many"])
def test_a_wrong_number_of_rows_is_an_error_and_no_input_gets_anothers(start, answer):
    def embed(batch):
        rows = [rows_of(prepared.features) for prepared in batch]
        if b"bad" not in [prepared.features for prepared in batch]:
            return rows
        return rows * 2 if answer == "too many" else answer

    batcher = Batcher(lambda batch: lambda: embed(batch), max_tokens=1000, unfinished=everything_wanted)
    futures = [submit(batcher, payload) for payload in (b"a", b"bad", b"c")]
    start(batcher)
    assert_rows(futures[0], b"a")
    assert_rows(futures[2], b"c")
    with pytest.raises(ModelError):
        futures[1].result(SOON_S)


def out_of_memory_above(tokens):
    def during(payloads):
        if sum(map(len, payloads)) > tokens:
            raise DeviceMemoryError("no memory left")

    return during


def test_out_of_memory_halves_the_batch_and_the_batches_after_it(start):
    model = FakeModel(out_of_memory_above(10))
    batcher = batcher_of(model, max_tokens=32)
    payloads = [b"%02d" % number for number in range(40)]
    futures = [submit(batcher, payload) for payload in payloads]
    start(batcher)
    for future, payload in zip(futures, payloads, strict=True):
        assert_rows(future, payload)
    sizes = [2 * len(batch) for batch in model.batches]
    failed = [number for number, size in enumerate(sizes) if size > 10]
    assert sizes[:3] == [32, 16, 8]
    assert max(failed) < 5, "batches were too large again after the first had shown what fits"


def test_an_input_that_alone_exceeds_the_memory_fails_alone(start):
    model = FakeModel(out_of_memory_above(10))
    batcher = batcher_of(model, max_tokens=100)
    huge, small = submit(batcher, b"x" * 11), submit(batcher, b"small")
    start(batcher)
    assert_rows(small, b"small")
    with pytest.raises(DeviceMemoryError):
        huge.result(SOON_S)


def test_what_was_learnt_about_the_memory_is_not_unlearnt_by_the_other_half(start):
    """The left half shows that 8 tokens are too many; the right half, of 40, may then not raise the limit to 20."""
    model = FakeModel(out_of_memory_above(7))
    batcher = batcher_of(model, max_tokens=48)
    first = [submit(batcher, payload) for payload in (b"aaaa", b"bbbb", b"c" * 20, b"d" * 20)]
    start(batcher)
    for future in first:
        future.exception(SOON_S)
    before = len(model.batches)
    gate = [submit(batcher, b"e" * 4) for _ in range(8)]
    for future in gate:
        assert_rows(future, b"eeee")
    assert max(sum(map(len, batch)) for batch in model.batches[before:]) <= 7


def test_inputs_of_jobs_that_are_finished_are_dropped_before_the_model(start):
    asked = []

    def unfinished(job_ids):
        asked.append(job_ids)
        return job_ids - {"cancelled"}

    model = FakeModel()
    batcher = batcher_of(model, unfinished=unfinished)
    dropped = [submit(batcher, b"x", job="cancelled"), submit(batcher, b"y", job="cancelled")]
    kept = submit(batcher, b"kept", job="wanted")
    start(batcher)
    assert_rows(kept, b"kept")
    for future in dropped:
        with pytest.raises(CancelledError):
            future.result(SOON_S)
    assert model.batches == [[b"kept"]]
    assert asked == [{"cancelled", "wanted"}]


def test_a_batch_that_nobody_wants_any_more_costs_no_forward_pass(start):
    model = FakeModel()
    batcher = batcher_of(model, unfinished=lambda _: set())
    future = submit(batcher, b"x")
    start(batcher)
    with pytest.raises(CancelledError):
        future.result(SOON_S)
    batcher.close()
    assert model.batches == []


def test_a_deadline_that_passed_fails_the_input_before_the_model(start):
    model = FakeModel()
    batcher = batcher_of(model)
    late, early = (
        submit(batcher, b"l", deadline_at=time.monotonic() - 1),
        submit(batcher, b"e", deadline_at=time.monotonic() + 99),
    )
    start(batcher)
    assert_rows(early, b"e")
    with pytest.raises(DeadlineError):
        late.result(SOON_S)
    assert model.batches == [[b"e"]]


def test_closing_hands_back_what_waits_and_lets_the_running_batch_end(start):
    inside, go_on = threading.Event(), threading.Event()

    def during(_):
        inside.set()
        assert go_on.wait(SOON_S)

    model = FakeModel(during)
    batcher = batcher_of(model)
    running = submit(batcher, b"running")
    thread = start(batcher)
    assert inside.wait(SOON_S)
    waiting = [submit(batcher, b"a"), submit(batcher, b"b", lane=Lane.INTERACTIVE)]
    batcher.close()
    for future in [*waiting, submit(batcher, b"after")]:
        with pytest.raises(BatcherClosedError):
            future.result(SOON_S)
    assert not running.done()
    go_on.set()
    assert_rows(running, b"running")
    thread.join(SOON_S)
    assert not thread.is_alive()
    batcher.close()
    assert model.batches == [[b"running"]]
    assert batcher.waiting == 0


def test_a_batch_that_fails_while_the_batcher_closes_is_still_settled(start):
    def during(payloads):
        batcher.close()
        if b"bad" in payloads:
            raise ModelError("not this")

    batcher = batcher_of(FakeModel(during))
    bad, good = submit(batcher, b"bad"), submit(batcher, b"good")
    start(batcher)
    assert_rows(good, b"good")
    with pytest.raises(ModelError):
        bad.result(SOON_S)


class Device:
    """Does nothing until told: each `step` ends the oldest batch that was started."""

    def __init__(self):
        self.started = []
        self._done = threading.Semaphore(0)

    def start(self, batch):
        payloads = [prepared.features for prepared in batch]
        self.started.append(payloads)

        def finish():
            assert self._done.acquire(timeout=SOON_S)
            return [rows_of(payload) for payload in payloads]

        return finish

    def step(self):
        self._done.release()


@pytest.fixture
def device(start):
    """A batcher, its device, and one batch behind it, from which it knows how little a token takes."""
    device = Device()
    batcher = batcher_of(device, max_tokens=4)
    start(batcher)
    device.step()
    assert_rows(submit(batcher, b"warm"), b"warm")
    return batcher, device


def test_the_next_batch_is_started_behind_one_that_is_about_to_end_and_no_third(device):
    batcher, device = device
    payloads = [b"0000", b"1111", b"2222"]
    futures = [submit(batcher, payload) for payload in payloads]
    eventually(lambda: len(device.started) == 3)
    assert not any(future.done() for future in futures)
    assert batcher.waiting == 1
    device.step()
    assert_rows(futures[0], payloads[0])
    eventually(lambda: len(device.started) == 4)
    for _ in payloads[1:]:
        device.step()
    for future, payload in zip(futures, payloads, strict=True):
        assert_rows(future, payload)
    assert device.started == [[b"warm"], *([payload] for payload in payloads)]


def test_a_batch_that_has_a_while_to_go_is_not_followed_yet_so_that_a_query_may_still_go_first(start, monkeypatch):
    device = Device()
    batcher = batcher_of(device, max_tokens=1000)
    start(batcher)
    monkeypatch.setattr("worker.batcher._LEAD_S", -3600.0)  # every batch has a while to go
    device.step()
    assert_rows(submit(batcher, b"warm"), b"warm")
    running = submit(batcher, b"running")
    eventually(lambda: len(device.started) == 2)
    bulk, query = submit(batcher, b"bulk"), submit(batcher, b"query", lane=Lane.INTERACTIVE)
    for _ in range(3):
        device.step()
    for future in (running, bulk, query):
        future.result(SOON_S)
    assert device.started[2:] == [[b"query"], [b"bulk"]]


def test_a_model_that_is_lost_ends_the_run_and_tells_nobody_that_their_input_failed():
    """The process ends behind it: what it held is done by another."""
    model = FakeModel(failing({b"bad"}, ModelLostError("an illegal memory access")))
    batcher = batcher_of(model)
    future = submit(batcher, b"bad")
    with pytest.raises(ModelLostError):
        batcher.run()
    assert not future.done()


def test_results_that_cannot_be_handed_out_end_the_run_with_the_reason(logs):
    """Were only the thread to end that hands them out, every task would wait for ever."""
    futures = []
    batcher = batcher_of(FakeModel(lambda _: futures[0].cancel()))
    futures.append(submit(batcher, b"x"))
    with pytest.raises(ModelLostError, match="handed out"):
        batcher.run()
    assert "batches.not_settled" in [line["event"] for line in logs]


def test_a_model_that_nobody_needs_for_a_while_hears_of_it_and_serves_again(start):
    idle = threading.Semaphore(0)
    batcher = Batcher(FakeModel().start, max_tokens=9, unfinished=everything_wanted, idle_s=0.01, on_idle=idle.release)
    start(batcher)
    assert idle.acquire(timeout=SOON_S)
    assert_rows(submit(batcher, b"later"), b"later")
    assert idle.acquire(timeout=SOON_S)


def test_running_a_closed_batcher_returns_at_once():
    batcher = batcher_of(FakeModel())
    batcher.close()
    batcher.run()
    assert batcher.counts.batches == 0


def test_what_was_done_is_counted_and_no_second_is_counted_twice(start):
    model = FakeModel(failing({b"bad"}, ModelError("not this")))
    batcher = batcher_of(model)
    payloads = [b"bad", *(b"%03d" % number for number in range(31))]
    futures = [submit(batcher, payload) for payload in payloads]
    assert batcher.waiting == 32
    started = time.perf_counter()
    thread = start(batcher)
    for future in futures:
        future.exception(SOON_S)
    batcher.close()
    thread.join(SOON_S)
    elapsed = time.perf_counter() - started
    assert batcher.waiting == 0
    assert (batcher.counts.inputs, batcher.counts.tokens) == (31, 93)
    assert batcher.counts.batches == 5  # 16 + 8 + 4 + 2 + 1
    assert 0 < batcher.counts.busy_s < elapsed


@pytest.mark.parametrize("seed", range(3))
def test_many_threads_lose_nothing_and_get_their_own_rows(start, seed):
    threads, inputs_each, budget = 16, 250, 40
    poison = {b"%d/%d" % (thread, 16 * thread) for thread in range(threads)}
    model = FakeModel(failing(poison, ValueError("poison")))
    batcher = batcher_of(model, max_tokens=budget)
    start(batcher)
    got, failures = {}, []

    def task(thread):
        choose = random.Random(f"{seed}/{thread}")  # noqa: S311  # no secret
        pending = {}
        for number in range(inputs_each):
            payload = b"%d/%d" % (thread, number)
            pending[payload] = submit(batcher, payload, job=str(thread), lane=choose.choice(list(Lane)))
            if choose.random() < 0.05:  # as a shard does: wait for what was submitted, then go on
                got.update(
                    {payload: future.exception(SOON_S) or future.result() for payload, future in pending.items()}
                )
                pending.clear()
        got.update({payload: future.exception(SOON_S) or future.result() for payload, future in pending.items()})

    def guarded(thread):
        try:
            task(thread)
        except BaseException as error:  # noqa: BLE001  # told below, in the test's own thread
            failures.append(error)

    tasks = [threading.Thread(target=guarded, args=(thread,)) for thread in range(threads)]
    for each in tasks:
        each.start()
    for each in tasks:
        each.join(SOON_S)
    assert failures == []
    assert len(got) == threads * inputs_each
    for payload, rows in got.items():
        if payload in poison:
            assert isinstance(rows, ModelError)
        else:
            np.testing.assert_array_equal(rows, rows_of(payload))
    assert max(sum(map(len, batch)) for batch in model.batches) <= budget
    assert batcher.counts.inputs == threads * inputs_each - len(poison)


def test_closing_amid_many_threads_leaves_no_future_pending(start):
    model = FakeModel()
    batcher = batcher_of(model, max_tokens=20)
    thread = start(batcher)
    outcomes = []
    hundred = threading.Event()

    def task(name):
        for number in range(500):
            future = submit(batcher, b"%d/%d" % (name, number))
            outcomes.append(future)
            if len(outcomes) > 100:
                hundred.set()

    tasks = [threading.Thread(target=task, args=(name,)) for name in range(8)]
    for each in tasks:
        each.start()
    assert hundred.wait(SOON_S)
    batcher.close()
    for each in tasks:
        each.join(SOON_S)
    thread.join(SOON_S)
    assert len(outcomes) == 4000
    assert all(future.done() for future in outcomes)
    closed = [future for future in outcomes if isinstance(future.exception(), BatcherClosedError)]
    assert closed
    assert len(closed) + batcher.counts.inputs == 4000
