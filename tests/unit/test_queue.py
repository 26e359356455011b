import itertools

from hypothesis import given
from hypothesis import strategies as st

from shared.queue import shards

costs = st.lists(st.integers(min_value=1, max_value=8192), min_size=1, max_size=300)
most = st.integers(min_value=1, max_value=10_000)


@given(costs=costs, most=most)
def test_shards_hold_every_input_once_in_order_and_know_their_cost(costs, most):
    cut = list(shards(range(len(costs)), costs, most))
    assert list(itertools.chain.from_iterable(indices for indices, _ in cut)) == list(range(len(costs)))
    assert [tokens for _, tokens in cut] == [sum(costs[index] for index in indices) for indices, _ in cut]


@given(costs=costs, most=most)
def test_a_shard_costs_no_more_than_it_may_or_is_a_single_input(costs, most):
    assert all(tokens <= most or len(indices) == 1 for indices, tokens in shards(range(len(costs)), costs, most))


@given(total=st.integers(min_value=1, max_value=2000), inputs=st.integers(min_value=1, max_value=64))
def test_shards_of_like_inputs_are_as_few_and_as_even_as_they_can_be(total, inputs):
    lengths = [len(indices) for indices, _ in shards(range(total), [10] * total, 10 * inputs)]
    assert max(lengths) <= inputs
    assert len(lengths) <= -(-total // inputs) + 1
    assert max(lengths) - min(lengths[:-1] or lengths) <= 1


def test_long_texts_are_not_as_many_a_task_as_short_ones():
    long, short = [6010] * 16, [40] * 64
    assert [len(indices) for indices, _ in shards(range(80), long + short, 3200)] == [1] * 16 + [64]


def test_no_inputs_make_no_shard():
    assert list(shards([], [], 10)) == []
