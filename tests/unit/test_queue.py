import itertools

from hypothesis import given
from hypothesis import strategies as st

from shared.queue import shards

sizes = st.integers(min_value=1, max_value=64)


@given(total=st.integers(min_value=1, max_value=5_000), inputs_a_task=sizes)
def test_shards_hold_every_input_once_in_order(total, inputs_a_task):
    assert list(itertools.chain.from_iterable(shards(range(total), inputs_a_task))) == list(range(total))


@given(total=st.integers(min_value=1, max_value=5_000), inputs_a_task=sizes)
def test_shards_are_as_few_and_as_even_as_they_can_be(total, inputs_a_task):
    lengths = [len(shard) for shard in shards(range(total), inputs_a_task)]
    assert max(lengths) <= inputs_a_task
    assert max(lengths) - min(lengths) <= 1
    assert len(lengths) == -(-total // inputs_a_task)
    assert min(lengths) >= 1
