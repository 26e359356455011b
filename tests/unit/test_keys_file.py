import itertools
import os

import pytest
from structlog.testing import capture_logs

from api import keys_file
from api.auth import Keys
from api.keys_file import KeysFile
from shared.errors import ForbiddenError, UnauthorizedError

# Memory with a file's interface would test another program: this is the one unit that is about a file.


@pytest.fixture
def clock(monkeypatch):
    """A clock that stands; call to let seconds pass."""
    now = [100.0]
    monkeypatch.setattr(keys_file.time, "monotonic", lambda: now[0])

    def passes(seconds=1.0):
        now[0] += seconds

    return passes


@pytest.fixture
def write(tmp_path):
    """Call to replace the file, each time with a later time of change."""
    path, times = tmp_path / "keys", itertools.count(1_000_000_000)
    path.write_text("")

    def write(text):
        path.write_bytes(text if isinstance(text, bytes) else text.encode())
        os.utime(path, (0, next(times)))
        return path

    return write


def test_each_line_names_the_owner_of_its_key(write):
    owners = KeysFile(write("# ours\n\n alice : first \nbob:second:with:colons\nalice:third\r\n")).owners()
    assert owners == {b"first": "@alice", b"second:with:colons": "@bob", b"third": "@alice"}


def test_a_key_is_replaced_without_a_restart_and_its_owner_stays(write, clock):
    keys = Keys.parse("", write("alice:old"))
    alice = keys.owner("Bearer old")
    write("alice:old\nalice:new")
    clock()
    assert keys.owner("Bearer old") == keys.owner("Bearer new") == alice == "@alice"
    write("alice:new")
    clock()
    assert keys.owner("Bearer new") == alice
    with pytest.raises(ForbiddenError):
        keys.owner("Bearer old")


def test_the_file_is_looked_at_once_a_second_at_most(write, clock):
    keys = KeysFile(write("alice:old"))
    keys.owners()
    write("alice:new")
    clock(0.9)
    assert set(keys.owners()) == {b"old"}
    clock(0.2)
    assert set(keys.owners()) == {b"new"}


@pytest.mark.parametrize(
    "broken",
    [
        "alice",
        "alice:",
        ":SECRET",
        "a b:SECRET",
        "alice:SECRET two",
        "alice:SECRET\nbob:SECRET",
        "-:SECRET",
        b"a:\xff\n",
        "x" * 65 + ":SECRET",
    ],
)
def test_a_broken_file_leaves_the_keys_as_they_were_and_is_logged_once_without_what_stands_in_it(write, clock, broken):
    keys = KeysFile(write("alice:good"))
    keys.owners()
    write(broken)
    with capture_logs() as logs:
        for _ in range(3):
            clock()
            assert keys.owners() == {b"good": "@alice"}
    assert [(line["event"], line["log_level"], line["kept"]) for line in logs] == [("keys.not_read", "error", 1)]
    assert "SECRET" not in str(logs)
    write("alice:better")
    clock()
    assert set(keys.owners()) == {b"better"}


def test_a_file_that_goes_leaves_the_keys_and_is_logged_once(write, clock):
    path = write("alice:good")
    keys = KeysFile(path)
    keys.owners()
    path.unlink()
    with capture_logs() as logs:
        for _ in range(3):
            clock()
            assert set(keys.owners()) == {b"good"}
    assert [line["event"] for line in logs] == ["keys.not_read"]
    write("alice:back")
    clock()
    assert set(keys.owners()) == {b"back"}


def test_a_file_that_was_never_there_lets_nobody_in(tmp_path):
    with pytest.raises(UnauthorizedError):
        Keys.parse("", tmp_path / "missing").owner("Bearer x")


def test_a_file_without_keys_lets_nobody_in(write, clock):
    keys = Keys.parse("", write("alice:good"))
    keys.owner("Bearer good")
    write("# all withdrawn\n")
    clock()
    with pytest.raises(UnauthorizedError):
        keys.owner("Bearer good")


def test_keys_of_the_variable_go_on_beside_those_of_the_file(write):
    keys = Keys.parse("plain", write("alice:named"))
    assert keys.owner("Bearer plain") == Keys.parse("plain").owner("Bearer plain")
    assert keys.owner("Bearer named") == "@alice"
    assert repr(keys) == "<Keys: 2>"


def test_no_name_makes_an_owner_that_a_key_of_the_variable_has(write):
    hashed = Keys.parse("plain").owner("Bearer plain")
    assert KeysFile(write(f"{hashed}:other")).owners()[b"other"] != hashed


def test_what_is_logged_are_names_and_never_keys(write):
    with capture_logs() as logs:
        KeysFile(write("alice:SECRET\nbob:SECRET2")).owners()
    assert [line["names"] for line in logs] == [["@alice", "@bob"]]
    assert "SECRET" not in str(logs)
