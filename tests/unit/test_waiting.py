import pytest

from shared.jobs import Lane
from worker.lanes import Entry, Waiting
from worker.model.seam import Prepared


@pytest.fixture
def waiting():
    return Waiting()


def push(waiting, *tokens, lane=Lane.INTERACTIVE, name=""):
    for number, cost in enumerate(tokens):
        waiting.push(Entry(f"{name}{number}", Prepared(cost, None), None), lane)


def costs(batch):
    return [entry.prepared.tokens for entry in batch.entries]


def test_a_short_query_goes_before_pages_of_its_own_lane(waiting):
    push(waiting, 780, 780, 780, 780)
    push(waiting, 30)
    assert costs(waiting.pop_batch(800)) == [30]
    assert costs(waiting.pop_batch(800)) == [780]


def test_inputs_of_the_same_cost_leave_in_the_order_in_which_they_came(waiting):
    push(waiting, *[10] * 50)
    names = [waiting.pop_batch(1).entries[0].job_id for _ in range(50)]
    assert names == [str(number) for number in range(50)]


def test_a_page_is_not_passed_over_for_ever_by_queries(waiting):
    push(waiting, 780)
    served = 0
    for _ in range(1000):
        push(waiting, 30, 30)
        batch = costs(waiting.pop_batch(60))
        if batch == [780]:
            break
        served += sum(batch)
    assert 0 < served <= 2 * 26 * 60


def test_bulk_leaves_in_the_order_in_which_it_came_whatever_it_costs(waiting):
    push(waiting, 780, 30, 780, lane=Lane.BULK)
    assert [costs(waiting.pop_batch(100)) for _ in range(3)] == [[780], [30], [780]]


def test_bulk_has_its_turn_by_the_tokens_that_went_before_it_and_not_by_the_batches(waiting):
    """Small batches of queries do not bring a bulk batch sooner; seven full ones do."""
    push(waiting, 1000, lane=Lane.BULK)
    for _ in range(100):
        push(waiting, 20)
        assert costs(waiting.pop_batch(1000)) == [20]
    push(waiting, *[1000] * 7)
    lanes = [waiting.pop_batch(1000).lane for _ in range(7)]
    assert lanes.index(Lane.BULK) == 4  # 100 small batches count as 3.1 full ones, a 32nd each


def test_bulk_that_was_served_begins_to_count_anew(waiting):
    push(waiting, *[1000] * 3, lane=Lane.BULK)
    push(waiting, *[1000] * 30)
    lanes = [waiting.pop_batch(1000).lane for _ in range(24)]
    assert [place for place, lane in enumerate(lanes) if lane is Lane.BULK] == [7, 15, 23]


def test_what_is_taken_at_the_end_is_everything(waiting):
    push(waiting, 1, 2, lane=Lane.BULK)
    push(waiting, 3)
    assert sorted(entry.prepared.tokens for entry in waiting.pop_all()) == [1, 2, 3]
    assert len(waiting) == 0
