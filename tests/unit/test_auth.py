import hashlib

import pytest
from hypothesis import given
from hypothesis import strategies as st

from api.auth import Keys
from shared.errors import ForbiddenError, UnauthorizedError

ONE, TWO = "first-key", "second-key"
BOTH = Keys.parse(f" {ONE} ,{TWO},")


def test_the_owner_of_a_key_is_neither_the_key_nor_holds_it():
    owner = BOTH.owner(f"Bearer {ONE}")
    assert ONE not in owner
    assert owner != hashlib.sha256(ONE.encode()).hexdigest()
    assert len(owner) == 16


def test_every_key_has_an_owner_of_its_own_that_never_changes():
    assert BOTH.owner(f"Bearer {ONE}") != BOTH.owner(f"Bearer {TWO}")
    assert BOTH.owner(f"Bearer {TWO}") == Keys.parse(TWO).owner(f"Bearer {TWO}")


@pytest.mark.parametrize("header", [None, ""])
def test_no_authorization_is_unauthorized(header):
    with pytest.raises(UnauthorizedError, match=r"^Unauthorized$"):
        BOTH.owner(header)


@pytest.mark.parametrize("configured", ["", " ", ",", " , ,"])
@pytest.mark.parametrize("header", [None, "", "Bearer", "Bearer ", "Bearer  ", "Bearer ,", "Bearer x"])
def test_where_no_key_is_configured_nobody_is_let_in(configured, header):
    with pytest.raises(UnauthorizedError, match=r"^Unauthorized$"):
        Keys.parse(configured).owner(header)


@pytest.mark.parametrize(
    "header",
    [
        "Bearer",
        "Bearer ",
        "Bearer wrong",
        f"Bearer {ONE}x",
        f"Bearer {ONE[:-1]}",
        f"Bearer {ONE.upper()}",
        f"Bearer {ONE},{TWO}",
        f"Bearer {ONE} {TWO}",
        f"Bearer{ONE}",
        f"Basic {ONE}",
        ONE,
        "Bearer schlüssel",
    ],
)
def test_not_bearer_or_the_wrong_token_is_forbidden(header):
    with pytest.raises(ForbiddenError, match=r"^Forbidden$"):
        BOTH.owner(header)


@pytest.mark.parametrize("header", [f"bearer {ONE}", f"BEARER {ONE}", f"Bearer   {ONE}  "])
def test_the_scheme_is_case_insensitive_and_spaces_around_the_token_do_not_count(header):
    assert BOTH.owner(header) == BOTH.owner(f"Bearer {ONE}")


@given(st.text(st.characters(max_codepoint=255)))
def test_whatever_a_header_holds_it_is_refused_and_never_crashes(header):
    with pytest.raises((UnauthorizedError, ForbiddenError)):
        BOTH.owner(header)


def test_the_keys_are_not_shown():
    assert repr(BOTH) == "<Keys: 2>"
