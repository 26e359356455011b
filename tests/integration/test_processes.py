import io
import os
import re
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest

from colqueue_client.errors import ChildExitedError
from colqueue_client.launch.console import Console
from colqueue_client.launch.log_file import LogFile
from colqueue_client.launch.processes import Children
from colqueue_client.launch.tether import tether

ROOT = Path(__file__).parents[2]
DEADLINE_S = 120

SLEEP = "import os, time; print('pid', os.getpid(), flush=True); time.sleep(600)"
DEAF = f"import signal; signal.signal(signal.SIGTERM, signal.SIG_IGN); {SLEEP}"
PARENT = f"import subprocess, sys; subprocess.Popen([sys.executable, '-c', {DEAF!r}]); {SLEEP}"

LAUNCHER = f"""
import os, sys
from pathlib import Path
from colqueue_client.launch.console import Console
from colqueue_client.launch.processes import Children
with Children(Console(sys.stdout), Path(sys.argv[1]), grace_s=1) as children:
    children.start("calm", [sys.executable, "-c", {SLEEP!r}], os.environ)
    children.start("deaf", [sys.executable, "-c", {DEAF!r}], os.environ)
    try:
        children.wait(600)
    except KeyboardInterrupt:
        print("asked to stop", flush=True)
"""


def is_running(pid):
    """Zombies do not count: who reaps an orphan is the machine's business."""
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    status = Path(f"/proc/{pid}/stat")
    return not status.exists() or status.read_text().rpartition(")")[2].split()[0] != "Z"


def wait_until(condition):
    deadline = time.monotonic() + DEADLINE_S
    while not condition():
        assert time.monotonic() < deadline, "it did not happen in time"
        time.sleep(0.02)


@pytest.fixture
def screen():
    return io.StringIO()


@pytest.fixture
def children(screen, tmp_path):
    with Children(Console(screen), tmp_path / "log", grace_s=1) as children:
        yield children


def start(children, name, program):
    return children.start(name, [sys.executable, "-c", program], os.environ)


def pids(screen, count):
    """Return the process ids that `count` children printed; they have set up their signals by then."""
    found = []

    def printed():
        found[:] = map(int, re.findall(r"\| pid (\d+)", screen.getvalue()))
        return len(found) == count

    wait_until(printed)
    return found


def test_what_a_child_prints_is_shown_behind_its_name_and_kept(children, screen, tmp_path):
    pid = start(children, "calm", f"import sys; print('out'); print('err', file=sys.stderr); {SLEEP}")

    assert pids(screen, 1) == [pid], "the child is the command itself, not something around it"
    assert "calm     | out\n" in screen.getvalue()
    assert "calm     | err\n" in screen.getvalue()
    assert f"pid {pid}\n" in (tmp_path / "log" / "calm.log").read_text()


def test_a_child_gets_exactly_the_environment_it_is_given(children, screen):
    environment = {"ONE": "1", "LD_LIBRARY_PATH": os.environ.get("LD_LIBRARY_PATH", "")}
    children.start("calm", [sys.executable, "-c", f"import os; print(os.environ.get('HOME')); {SLEEP}"], environment)

    pids(screen, 1)
    assert "calm     | None\n" in screen.getvalue()


def test_children_end_last_started_first(screen, tmp_path):
    say_bye = "import signal, sys; signal.signal(signal.SIGTERM, lambda *_: (print('bye', flush=True), sys.exit()))"
    with Children(Console(screen), tmp_path) as children:
        for name in ("one", "two", "three"):
            start(children, name, f"{say_bye}; {SLEEP}")
        pids(screen, 3)

    assert re.findall(r"(\w+) +\| bye", screen.getvalue()) == ["three", "two", "one"]


def test_a_child_that_ignores_sigterm_is_killed(screen, tmp_path):
    with Children(Console(screen), tmp_path, grace_s=0.3) as children:
        start(children, "deaf", DEAF)
        (pid,) = pids(screen, 1)

    assert not is_running(pid)
    assert "deaf is still there 0.3 s after SIGTERM" in screen.getvalue()


def test_what_a_child_started_itself_ends_with_it(screen, tmp_path):
    with Children(Console(screen), tmp_path, grace_s=1) as children:
        start(children, "parent", PARENT)
        both = pids(screen, 2)

    wait_until(lambda: not any(map(is_running, both)))


class SlowTerminal(io.StringIO):
    """A screen that shows 50 lines a second."""

    def write(self, text):
        time.sleep(0.02)
        return super().write(text)


def test_a_child_that_dies_is_named_with_its_status_and_last_lines(tmp_path):
    with Children(Console(SlowTerminal()), tmp_path) as children:
        start(children, "broken", "print(*range(20), 'the reason', sep='\\n'); raise SystemExit(3)")

        with pytest.raises(
            ChildExitedError, match=r"(?s)broken ended with exit status 3.*broken\.log.*\n    the reason"
        ):
            children.wait(DEADLINE_S)


def test_a_child_that_dies_takes_the_others_with_it(screen, tmp_path):
    def launch():
        with Children(Console(screen), tmp_path) as children:
            start(children, "calm", SLEEP)
            pids(screen, 1)
            start(children, "broken", "raise SystemExit(3)")
            children.wait(DEADLINE_S)

    with pytest.raises(ChildExitedError, match="broken"):
        launch()
    (calm,) = pids(screen, 1)
    assert not is_running(calm)


def test_a_child_that_is_killed_is_named_with_the_signal(children, screen):
    start(children, "calm", SLEEP)
    (pid,) = pids(screen, 1)

    os.kill(pid, signal.SIGKILL)

    with pytest.raises(ChildExitedError, match="calm was killed by SIGKILL"):
        children.wait(DEADLINE_S)


def test_a_child_that_is_kept_is_started_again(screen, tmp_path):
    with Children(Console(screen), tmp_path, first_pause_s=0.01) as children:
        start(children, "calm", SLEEP)
        children.keep("calm")
        (first,) = pids(screen, 1)

        os.kill(first, signal.SIGKILL)
        children.during(lambda: pids(screen, 2))

        (_, second) = pids(screen, 2)
    assert "colqueue | calm was killed by SIGKILL. Starting it again in 0.01 s ...\n" in screen.getvalue()
    assert (tmp_path / "calm.log").read_text() == f"pid {first}\npid {second}\n"
    assert not any(map(is_running, (first, second)))


def test_a_child_that_is_kept_and_keeps_dying_is_given_up_after_growing_pauses(screen, tmp_path):
    with Children(Console(screen), tmp_path, first_pause_s=0.001) as children:
        start(children, "broken", "raise SystemExit('the reason')")
        children.keep("broken")

        with pytest.raises(
            ChildExitedError, match=r"(?s)broken ended with exit status 1.*\n    the reason.*10 times in a row"
        ):
            children.wait(DEADLINE_S)

    pauses = [float(pause) for pause in re.findall(r"again in (\S+) s", screen.getvalue())]
    assert pauses == [0.001 * 2**death for death in range(9)]


def test_only_the_children_named_are_kept(children, screen):
    start(children, "calm", SLEEP)
    (pid,) = pids(screen, 1)
    children.keep("other")

    os.kill(pid, signal.SIGKILL)

    with pytest.raises(ChildExitedError, match="calm was killed by SIGKILL"):
        children.wait(DEADLINE_S)


def test_a_command_that_does_not_exist_is_a_child_that_dies(children):
    children.start("ghost", ["/does/not/exist"], os.environ)

    with pytest.raises(ChildExitedError, match=r"(?s)ghost ended with exit status 1.*/does/not/exist|No such file"):
        children.wait(DEADLINE_S)


def test_work_returns_its_result_and_raises_its_error(children):
    assert children.during(lambda: 41 + 1) == 42
    with pytest.raises(ZeroDivisionError):
        children.during(lambda: 1 / 0)


def test_work_is_left_when_a_child_dies(children):
    release = threading.Event()
    start(children, "broken", "raise SystemExit(3)")

    try:
        with pytest.raises(ChildExitedError):
            children.during(lambda: release.wait(DEADLINE_S))
    finally:
        release.set()


@pytest.fixture
def launcher(tmp_path):
    process = subprocess.Popen(
        [sys.executable, "-c", LAUNCHER, str(tmp_path)],
        stdout=subprocess.PIPE,
        text=True,
        env=os.environ | {"PYTHONPATH": str(ROOT)},
    )
    with process:
        yield process
        process.kill()


def launched_pids(launcher):
    found = []
    while len(found) < 2:
        line = launcher.stdout.readline()
        assert line, "the launcher ended early"
        found += map(int, re.findall(r"\| pid (\d+)", line))
    return found


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGHUP])
def test_a_launcher_that_is_asked_to_stop_leaves_no_child(launcher, number):
    both = launched_pids(launcher)

    launcher.send_signal(number)

    output = launcher.stdout.read()
    assert launcher.wait(DEADLINE_S) == 0
    assert "asked to stop" in output
    assert "deaf is still there" in output
    assert not any(map(is_running, both))


def test_signals_while_stopping_leave_no_child_either(launcher):
    both = launched_pids(launcher)

    launcher.send_signal(signal.SIGINT)
    assert "asked to stop" in launcher.stdout.readline()
    launcher.send_signal(signal.SIGINT)
    launcher.send_signal(signal.SIGTERM)

    assert launcher.wait(DEADLINE_S) == 0
    assert not any(map(is_running, both))


@pytest.mark.skipif(sys.platform != "linux", reason="only Linux tells a process that its parent died")
def test_a_launcher_that_is_killed_leaves_no_child(launcher):
    both = launched_pids(launcher)

    launcher.kill()

    wait_until(lambda: not any(map(is_running, both)))


def test_a_command_whose_launcher_is_gone_never_starts(tmp_path):
    mark = tmp_path / "mark"
    command = tether([sys.executable, "-c", f"open({str(mark)!r}, 'w')"])
    command[command.index(str(os.getpid()))] = "1"

    outcome = subprocess.run(command, capture_output=True, text=True, check=False)

    assert outcome.returncode == 1
    assert "launcher ended first" in outcome.stderr
    assert not mark.exists()


FULL_DISK = """
import os, resource, sys
from pathlib import Path
from colqueue_client.launch.console import Console
from colqueue_client.launch.processes import Children

child = (
    "import itertools, pathlib, sys, time\\n"
    "for number in itertools.count():\\n"
    "    print('x' * 1000, number, flush=True)\\n"
    "    pathlib.Path(sys.argv[1]).write_text(str(number))\\n"
    "    time.sleep(0.001)"
)
with Children(Console(open(sys.argv[2], "w")), Path(sys.argv[1]), grace_s=1) as children:
    # Files may not grow beyond this for now, the log and the launcher's own output alike: a write fails, as on a full
    # disk.
    resource.setrlimit(resource.RLIMIT_FSIZE, (20_000, resource.RLIM_INFINITY))
    children.start("busy", [sys.executable, "-c", child, sys.argv[3]], os.environ)
    print("full", flush=True)
    sys.stdin.readline()
    resource.setrlimit(resource.RLIMIT_FSIZE, (resource.RLIM_INFINITY, resource.RLIM_INFINITY))
    print("room", flush=True)
    try:
        children.wait(600)
    except KeyboardInterrupt:
        pass
"""


def last_number(path):
    lines = path.read_text(errors="replace").split() if path.exists() else []
    return int(lines[-1]) if lines and lines[-1].isdigit() else -1


def test_a_full_disk_stops_neither_a_child_nor_its_log_for_good(tmp_path):
    """The child prints far more than a pipe holds while nothing can be written: it would block were nobody to read."""
    log, screen, printed = tmp_path / "log" / "busy.log", tmp_path / "screen", tmp_path / "printed"
    launcher = subprocess.Popen(
        tether([sys.executable, "-c", FULL_DISK, str(tmp_path / "log"), str(screen), str(printed)]),
        cwd=ROOT,
        env=os.environ | {"PYTHONPATH": str(ROOT / "client")},
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )
    try:
        assert launcher.stdout.readline() == "full\n"
        wait_until(lambda: last_number(printed) > 300)
        assert max(log.stat().st_size, screen.stat().st_size) <= 20_000
        full_at = last_number(log)
        launcher.stdin.write("go on\n")
        launcher.stdin.flush()
        assert launcher.stdout.readline() == "room\n"
        wait_until(lambda: last_number(log) > full_at + 100)
        wait_until(lambda: screen.stat().st_size > 21_000)
    finally:
        launcher.send_signal(signal.SIGTERM)
        launcher.communicate(timeout=DEADLINE_S)


def test_logs_rotate_and_stay_within_a_bound(tmp_path):
    log = LogFile(tmp_path / "busy.log", max_bytes=10_000)
    for number in range(1000):
        log.add(f"{number:0100}\n")
    log.close()
    files = sorted(path.name for path in tmp_path.iterdir())
    assert files == ["busy.log", "busy.log.1", "busy.log.2", "busy.log.3"]
    assert max(path.stat().st_size for path in tmp_path.iterdir()) <= 10_000
    assert (tmp_path / "busy.log").read_text().endswith(f"{999:0100}\n")
    log.remove()
    assert list(tmp_path.iterdir()) == []
