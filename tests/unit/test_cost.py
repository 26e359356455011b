import pytest

from shared.cost import estimate_tokens
from shared.jobs import InputType
from shared.settings import TokenSettings


@pytest.fixture(autouse=True)
def no_env_file(monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)


def text_tokens(text, **settings):
    return estimate_tokens(InputType.TEXT, text.encode(), TokenSettings(**settings))


def page_tokens(**settings):
    return estimate_tokens(InputType.IMAGE, b"any bytes", TokenSettings(**settings))


def test_a_text_costs_one_token_per_byte_and_the_augmentation():
    assert text_tokens("") == 10
    assert text_tokens("12345") == 15
    assert text_tokens("总收入") == 19


def test_a_text_that_becomes_longer_when_it_is_normalised_costs_what_the_tokenizer_reads():
    assert text_tokens("\U0001d160") == 12 + 10  # three characters of four bytes in NFC


def test_a_prefix_counts_with_every_text():
    assert text_tokens("a", query_prefix="Größe: ") == 9 + 1 + 10


def test_a_text_never_costs_more_than_the_longest_text_that_the_worker_accepts():
    assert text_tokens("a" * 10_000) == 8192
    assert text_tokens("a" * 10_000, max_text_tokens=100) == 100


def test_a_page_costs_what_the_largest_page_costs():
    assert page_tokens() == 768 + 11
    assert page_tokens(max_visual_tokens=1000) == 1000 + 11


def test_a_page_of_extreme_aspect_ratio_is_covered_where_few_visual_tokens_are_allowed():
    assert page_tokens(max_visual_tokens=4) == 29 + 11
