import json
import os
import pty
import subprocess
import sys

import pytest

LOG = """
import logging, structlog
from shared.logs import configure_logs
from shared.settings import LogSettings
configure_logs(LogSettings(_env_file=None))

def fails():
    secret = "SEC" + "RET"
    raise RuntimeError("what happened")

structlog.get_logger("ours").info("job.queued", job="abc")
logging.getLogger("theirs").warning("%s to say", "something")
structlog.get_logger("ours").debug("too much")
for log in (structlog.get_logger("ours"), logging.getLogger("theirs")):
    try:
        fails()
    except RuntimeError:
        log.exception("task.failed")
"""


ENVIRONMENT = {name: value for name, value in os.environ.items() if not name.startswith("COLQUEUE_")}


@pytest.fixture(scope="module")
def lines():
    """What the program writes where stderr is a file."""
    ran = subprocess.run(
        [sys.executable, "-c", LOG], capture_output=True, text=True, check=True, timeout=60, env=ENVIRONMENT
    )
    assert ran.stdout == ""
    return [json.loads(line) for line in ran.stderr.splitlines()]


@pytest.fixture(scope="module")
def screen():
    """What the program writes to a terminal."""
    ours, theirs = pty.openpty()
    subprocess.run([sys.executable, "-c", LOG], stderr=theirs, check=True, timeout=60, env=ENVIRONMENT)
    os.close(theirs)
    shown = b""
    try:
        while chunk := os.read(ours, 65_536):
            shown += chunk
    except OSError:  # how Linux says that the other side is closed
        pass
    finally:
        os.close(ours)
    return shown.decode()


def test_each_line_is_one_json_object_with_time_level_and_name(lines):
    assert [(line["event"], line["level"], line["logger"]) for line in lines] == [
        ("job.queued", "info", "ours"),
        ("something to say", "warning", "theirs"),
        ("task.failed", "error", "ours"),
        ("task.failed", "error", "theirs"),
    ]
    assert all("timestamp" in line for line in lines)
    assert lines[0]["job"] == "abc"


def test_a_traceback_shows_where_and_what_and_no_local_variable(lines):
    for line in lines[2:]:
        assert "RuntimeError: what happened" in line["exception"]
        assert "in fails" in line["exception"]
    assert "SECRET" not in json.dumps(lines)


def test_a_terminal_gets_no_json_and_no_local_variable_either(screen):
    assert "job.queued" in screen
    assert "too much" not in screen
    assert screen.count("what happened") == 2
    assert "SECRET" not in screen
    with pytest.raises(ValueError, match="Expecting value"):
        json.loads(screen.splitlines()[0])


INJECTED = """
import logging, structlog
from shared.logs import configure_logs
from shared.settings import LogSettings
configure_logs(LogSettings(_env_file=None))
nasty = "a\\x1b[2J\\r\\nb \\x9b \\u202e \\x00\\x7f" + "x" * 5000

structlog.get_logger("ours").info("request.refused", path=nasty, names=[nasty[:20]], number=7)
logging.getLogger("theirs").warning("a name: %s", nasty)
try:
    raise RuntimeError(nasty[:20])
except RuntimeError:
    structlog.get_logger("ours").exception("request.failed", path=nasty)
"""


@pytest.mark.parametrize("log_format", ["text", "json"])
def test_control_characters_of_callers_are_escaped_and_long_values_cut(log_format):
    env = ENVIRONMENT | {"COLQUEUE_LOG_FORMAT": log_format}
    ran = subprocess.run([sys.executable, "-c", INJECTED], capture_output=True, check=True, timeout=60, env=env)
    # Not in universal newlines, which would take a lone carriage return for the end of a line.
    text = ran.stderr.decode()

    assert not {
        char for char in text if char != "\n" and (ord(char) < 32 or 127 <= ord(char) < 160 or char == "\u202e")
    }
    lines = text.splitlines()
    if log_format == "json":
        refused, _, failed = map(json.loads, lines)
        assert refused["path"].startswith(r"a\x1b[2J\r\nb \x9b \u202e \x00\x7fxxx")
        assert "(5015 characters)" in refused["path"]
        assert (refused["number"], refused["names"]) == (7, ["a\x1b[2J\r\nb \x9b \u202e \x00\x7fxxxxx"])
        lines = failed["exception"].split("\n")
    assert len(text) < 8000
    assert not [line for line in lines if line.startswith("b ")], "nothing of it begins a line"
