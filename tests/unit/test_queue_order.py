import sys
import threading

import pytest
from celery.worker import state

from shared.jobs import Lane
from worker.consumer import QueueOrder

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


def test_interactive_is_asked_first_and_bulk_in_one_read_of_eight():
    assert reads(QueueOrder(BOTH), 16) == 2 * (7 * [["interactive", "bulk"]] + [["bulk", "interactive"]])


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


def test_within_a_lane_the_queue_that_gave_the_last_task_is_asked_last():
    order = QueueOrder(["bulk", "bulk.1", "interactive", "bulk.2", "interactive.1"])
    order.rotate("interactive")
    order.rotate("bulk")
    assert order.consume(5) == ["interactive.1", "interactive", "bulk.1", "bulk.2", "bulk"]
    order.rotate("bulk.2")
    order.rotate("no longer consumed")
    assert order.consume(5) == ["interactive.1", "interactive", "bulk.1", "bulk", "bulk.2"]


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
            thread.join(10)
