import io
import os

from colqueue_client.launch.console import Console


class Terminal(io.StringIO):
    """A stream that says it is a terminal."""

    def isatty(self):
        return True


def test_every_line_stands_behind_its_source():
    stream = io.StringIO()
    console = Console(stream)

    console.say("one\n\ntwo", name="api")
    console.say("three")

    assert stream.getvalue() == "api      | one\napi      |\napi      | two\ncolqueue | three\n"


def test_what_is_shown_can_be_copied_line_by_line():
    stream = io.StringIO()

    Console(stream).show("one \\\n  two")

    assert stream.getvalue() == "\none \\\n  two\n"


def test_colour_is_for_terminals_only(monkeypatch):
    monkeypatch.delenv("NO_COLOR", raising=False)
    terminal = Terminal()
    Console(terminal).say("x", name="api")
    monkeypatch.setenv("NO_COLOR", "1")
    plain = Terminal()
    Console(plain).say("x", name="api")

    assert "\033[" in terminal.getvalue()
    assert plain.getvalue() == "api      | x\n"


def test_a_reader_that_left_does_not_stop_the_writer():
    reading, writing = os.pipe()
    os.close(reading)
    with os.fdopen(writing, "w") as stream:
        console = Console(stream)
        console.say("nobody reads this")
        console.say("nor this")
