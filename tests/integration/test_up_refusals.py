import fcntl
import os
import socket
import subprocess
import sys
from pathlib import Path

import pytest

from colqueue_client.launch.ports import free_port

ROOT = Path(__file__).parents[2]


def up(folder, **environment):
    environment = {"COLQUEUE_PORT": str(free_port()), "COLQUEUE_FLOWER_PORT": str(free_port())} | environment
    return subprocess.run(
        [sys.executable, "-m", "colqueue_client.cli", "up", "--check"],
        cwd=folder,
        env=os.environ | {"PYTHONPATH": f"{ROOT}:{ROOT / 'client'}", "PYTHONSAFEPATH": "1"} | environment,
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )


@pytest.mark.parametrize("variable", ["COLQUEUE_PORT", "COLQUEUE_FLOWER_PORT"])
def test_a_taken_port_is_refused_before_anything_starts_or_is_written(tmp_path, variable):
    with socket.create_server(("127.0.0.1", 0)) as server:
        outcome = up(tmp_path, **{variable: str(server.getsockname()[1])})

    assert outcome.returncode == 1
    assert f"Set {variable} to another port." in outcome.stdout
    assert "Starting" not in outcome.stdout
    assert outcome.stderr == ""
    assert list(tmp_path.iterdir()) == []


def test_one_port_for_both_is_refused(tmp_path):
    port = str(free_port())

    outcome = up(tmp_path, COLQUEUE_PORT=port, COLQUEUE_FLOWER_PORT=port)

    assert outcome.returncode == 1
    assert "cannot share port" in outcome.stdout


def test_a_folder_in_use_is_refused(tmp_path):
    (tmp_path / "var").mkdir()
    with (tmp_path / "var" / "up.lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        outcome = up(tmp_path)

    assert outcome.returncode == 1
    assert "another `colqueue up` is using" in outcome.stdout
    assert not (tmp_path / ".env").exists()


def test_a_setting_that_cannot_be_read_is_one_sentence(tmp_path):
    outcome = up(tmp_path, COLQUEUE_PORT="high")

    assert outcome.returncode == 1
    assert outcome.stdout.startswith("colqueue | Failed: COLQUEUE_PORT: ")
    assert outcome.stdout.count("\n") == 1
    assert outcome.stderr == ""
