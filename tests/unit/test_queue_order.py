import sys
import threading

import pytest
from celery.worker import state

from shared.jobs import Lane
from worker.queue_order import QueueOrder

BOTH = ["bulk", "interactive"]


class Request:
    """As much of Celery's as the order looks at."""

    def __init__(self, lane, number=0):
        self.id = f"{lane}-{number}"
        self.delivery_info = {"routing_key": str(lane)}


@pytest.fixture(autouse=True)
def in_hand(monkeypatch):
    """Take requests in hand as Celery does; at the end nothing is."""
    monkeypatch.setattr(QueueOrder, "bulk_tasks", 4, raising=False)
    taken = []

    def take(*requests):
        for request in requests:
            state.task_reserved(request)
            taken.append(request)

    yield take
    for request in taken:
        state.task_ready(request)


def reads(order, number):
    return [order.consume(2) for _ in range(number)]


def taken_from(order, *queues, tokens=100):
    """The queue that gives a task of so many tokens to the next read, where only `queues` have any."""
    queue = next(queue for queue in order.consume(2) if queue in queues)
    order.rotate(queue)
    order.charge(tokens)
    return queue


def test_interactive_is_asked_first_until_it_has_given_seven_times_what_bulk_has():
    order = QueueOrder(BOTH)
    given = [taken_from(order, *BOTH) for _ in range(40)]
    assert given[:2] == ["interactive", "bulk"]
    between = [len(run) for run in "".join(lane[0] for lane in given[2:]).split("b")]
    assert len(between) in (5, 6)
    assert set(between[1:-1]) == {7}


def test_turns_are_measured_in_tokens_and_not_in_tasks():
    """A hundred short queries for each task of bulk, as each costs a seven-hundredth part of what bulk's costs."""
    order = QueueOrder(BOTH)
    costs = {"interactive": 30, "bulk": 3000}
    given = []
    for _ in range(2000):
        queue = order.consume(2)[0]
        order.rotate(queue)
        order.charge(costs[queue])
        given.append(queue)
    assert 1 <= given.count("bulk") <= 4
    assert given[10:600].count("bulk") == 0


def test_a_lane_that_was_idle_has_no_turns_saved_up():
    order = QueueOrder(BOTH)
    for _ in range(1000):
        assert taken_from(order, "bulk") == "bulk"
    assert order.consume(2)[0] == "interactive"
    for _ in range(7):
        assert taken_from(order, "interactive") == "interactive"
    assert [taken_from(order, *BOTH) for _ in range(4)].count("bulk") <= 1


def test_bulk_is_left_out_while_enough_of_it_is_in_hand_and_asked_again_once_it_is_not(in_hand):
    order = QueueOrder(BOTH)
    bulk = [Request(Lane.BULK, number) for number in range(4)]
    in_hand(*bulk[:3])
    assert order.consume(2) == ["interactive", "bulk"]
    in_hand(bulk[3])
    assert reads(order, 20) == 20 * [["interactive"]]
    state.task_ready(bulk[0])
    assert set(order.consume(2)) == {"interactive", "bulk"}


def test_interactive_work_in_hand_leaves_nothing_out(in_hand):
    in_hand(*(Request(Lane.INTERACTIVE, number) for number in range(100)))
    assert all(set(read) == {"interactive", "bulk"} for read in reads(QueueOrder(BOTH), 20))


def test_only_queues_that_are_consumed_are_asked():
    order = QueueOrder()
    assert order.consume(0) == []
    order.update(["bulk"])
    assert order.consume(1) == ["bulk"]
    order.update(["interactive"])
    assert order.consume(1) == ["interactive"]


def test_within_a_lane_the_queue_that_gave_least_is_asked_first():
    order = QueueOrder(["bulk", "bulk.1", "bulk.2"])
    costs = {"bulk": 3000, "bulk.1": 1000, "bulk.2": 500}
    given = []
    for _ in range(90):
        queue = order.consume(3)[0]
        order.rotate(queue)
        order.charge(costs[queue])
        given.append(queue)
    assert [given.count(queue) for queue in costs] == [9, 27, 54]


def test_a_queue_that_was_empty_gets_its_share_from_now_on_and_no_more():
    order = QueueOrder(["bulk", "bulk.1"])
    for _ in range(100):
        taken_from(order, "bulk")
    given = [taken_from(order, "bulk", "bulk.1") for _ in range(10)]
    assert given.count("bulk.1") in (5, 6)


def test_a_queue_that_is_no_longer_consumed_is_neither_asked_nor_charged():
    order = QueueOrder(["bulk", "bulk.1"])
    order.consume(2)
    order.update(["bulk.1"])
    order.rotate("bulk")
    order.charge(100)
    assert order.consume(1) == ["bulk.1"]


def test_bulk_of_every_queue_counts_as_bulk_in_hand(in_hand):
    in_hand(*(Request(queue, number) for number, queue in enumerate(["bulk", "bulk.1", "bulk.1", "bulk.7"])))
    assert QueueOrder(["bulk", "bulk.1", "interactive"]).consume(3) == ["interactive"]


def test_tasks_that_end_on_other_threads_do_not_disturb_a_read():
    """Pool threads take requests out of Celery's sets while the loop counts them: an error there ends the worker."""
    order, enough = QueueOrder(BOTH), threading.Event()

    def work():
        while not enough.is_set():
            requests = [Request(Lane.BULK, number) for number in range(8)]
            for request in requests:
                state.task_reserved(request)
            for request in requests:
                state.task_ready(request)

    threads = [threading.Thread(target=work, daemon=True) for _ in range(2)]
    interval = sys.getswitchinterval()
    sys.setswitchinterval(1e-6)
    try:
        for thread in threads:
            thread.start()
        for _ in range(20_000):
            order.consume(2)
    finally:
        enough.set()
        sys.setswitchinterval(interval)
        for thread in threads:
            thread.join(120)
