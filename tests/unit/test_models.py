"""Which model a new job is bound to."""

import pytest

from shared.errors import ModelNotFoundError
from shared.models import SILENT_AFTER_S, KnownModel, choose_model

NOW = 1_000_000.0


def model(model_id: str, name: str = "a", *, first: float = 0, silent_s: float = 0) -> KnownModel:
    return KnownModel(model_id=model_id, name=name, first_ready_at=first, last_ready_at=NOW - silent_s)


def chosen(*known: KnownModel, asked: str | None = None, preferred: str = "a") -> str | None:
    choice = choose_model(known, asked=asked, preferred=preferred, gone_after_s=3600, now=NOW)
    return choice and choice.model_id


def test_without_any_known_model_a_job_is_not_bound():
    assert chosen() is None


def test_the_preferred_name_goes_before_another_that_is_newer():
    assert chosen(model("old", "a", first=1), model("new", "b", first=2)) == "old"


def test_of_two_checkpoints_of_one_name_the_newer_takes_new_jobs():
    assert chosen(model("new", first=2), model("old", first=1)) == "new"


def test_after_a_change_back_the_living_one_takes_new_jobs():
    gone = model("new", first=2, silent_s=SILENT_AFTER_S + 1)
    assert chosen(gone, model("old", first=1)) == "old"


def test_a_living_model_goes_before_the_preferred_one_that_is_gone():
    gone = model("gone", "a", silent_s=SILENT_AFTER_S + 1)
    assert chosen(gone, model("here", "b")) == "here"


def test_where_no_worker_lives_the_one_that_was_there_last_is_waited_for():
    known = [model("first", first=2, silent_s=500), model("last", first=1, silent_s=100)]
    assert chosen(*known) == "last"


@pytest.mark.parametrize("asked", ["b", "id of b"])
def test_a_request_may_name_a_model_or_its_id(asked):
    assert chosen(model("id of a", "a"), model("id of b", "b"), asked=asked) == "id of b"


def test_a_model_that_nobody_serves_is_refused_with_the_names_that_are_served():
    with pytest.raises(ModelNotFoundError, match=r"'c'\. Served models: a, b"):
        chosen(model("1", "b"), model("2", "a"), asked="c")


def test_a_named_model_is_waited_for_until_it_has_been_gone_for_long():
    here = model("here", "b")
    assert chosen(here, model("gone", "a", silent_s=3000), asked="a") == "gone"
    with pytest.raises(ModelNotFoundError):
        chosen(here, model("gone", "a", silent_s=4000), asked="a")


def test_while_no_worker_runs_at_all_every_known_model_is_waited_for():
    assert chosen(model("gone", "a", silent_s=100_000), asked="a") == "gone"


def test_a_named_model_is_refused_while_no_worker_has_ever_been_ready():
    with pytest.raises(ModelNotFoundError, match="Served models: none"):
        chosen(asked="a")
