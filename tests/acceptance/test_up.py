"""`colqueue up`, which is what `make run` runs, in an empty folder."""

import os
import subprocess
import sys
from signal import SIGINT, SIGKILL, SIGTERM

import httpx2
import pytest
from stack import Process, clean_environment, eventually

from colqueue_client.launch.ports import free_port

START_S = 300


@pytest.fixture(scope="module")
def folder(redis_program, tmp_path_factory):
    """Empty at first; the second start finds in it what the first has left."""
    del redis_program
    return tmp_path_factory.mktemp("up")


@pytest.mark.parametrize("number", [SIGINT, SIGTERM], ids=["first start, Ctrl-C", "second start, SIGTERM"])
def test_it_embeds_a_sample_serves_and_leaves_nothing_behind(folder, number):
    key_before = key_in(folder)
    port, flower_port = free_port(), free_port()
    env = clean_environment(COLQUEUE_PORT=str(port), COLQUEUE_FLOWER_PORT=str(flower_port))
    up = Process([sys.executable, "-m", "colqueue_client.cli", "up"], folder, f"up-{number.name}", env)
    try:
        eventually(lambda: "Serving." in up.log.read_text() or not up.running(), START_S)
        told = up.log.read_text()
        assert up.running(), told

        assert "MaxSim" in told
        assert "page 1 " in told
        assert "query " in told
        assert f"http://127.0.0.1:{port}" in told
        assert f"http://127.0.0.1:{flower_port}" in told
        key = key_in(folder)
        assert key
        assert key in told
        assert key_before in (None, key), "a key is made once"
        assert (folder / ".env").stat().st_mode & 0o077 == 0, "the key is its owner's alone"
        with httpx2.Client(base_url=f"http://127.0.0.1:{port}", timeout=60, trust_env=False) as http:
            body = {"input_type": "text", "inputs": ["Who is supplied first in a drought?"]}
            assert http.post("/embeddings", json=body).status_code == 401
            answer = http.post("/embeddings", json=body, headers={"Authorization": f"Bearer {key}"})
            assert (answer.status_code, len(answer.json()["embeddings"])) == (200, 1)
        flower_url, login = f"http://127.0.0.1:{flower_port}/api/workers", in_dotenv(folder, "FLOWER_BASIC_AUTH")
        assert login in told
        assert httpx2.get(flower_url, trust_env=False).status_code == 401
        assert httpx2.get(flower_url, trust_env=False, auth=tuple(login.split(":"))).status_code == 200
        if number == SIGTERM:
            os.kill(child_that_runs(up.pid, "-m worker"), SIGKILL)
            eventually(lambda: "worker was killed by SIGKILL. Starting it again in 1 s" in up.log.read_text())
            with httpx2.Client(base_url=f"http://127.0.0.1:{port}", timeout=60, trust_env=False) as http:
                # Waits in the queue for the new one.
                answer = http.post("/embeddings", json=body, headers={"Authorization": f"Bearer {key}"})
                assert answer.status_code == 200
        children = descendants(up.pid)
        assert len(children) >= 4, "redis, worker, api, Flower"

        up.signal(number)

        assert up.wait(within_s=240) == 0, up.log.read_text()[-3000:]
        assert [pid for pid in children if is_running(pid)] == []
        assert "Traceback" not in up.log.read_text()
    finally:
        up.stop()


def key_in(folder):
    return in_dotenv(folder, "SERVICE_API_KEY")


def in_dotenv(folder, name):
    dotenv = folder / ".env"
    if not dotenv.exists():
        return None
    return dict(line.split("=", 1) for line in dotenv.read_text().splitlines() if "=" in line).get(name)


def descendants(pid):
    """Return the process ids of a process's children, theirs, and so on."""
    listed = subprocess.run(["ps", "-A", "-o", "pid=,ppid="], capture_output=True, text=True, check=True).stdout
    parents = {int(child): int(parent) for child, parent in map(str.split, listed.splitlines())}
    found, newer = set(), {pid}
    while newer := {child for child, parent in parents.items() if parent in newer} - found:
        found |= newer
    return found


def child_that_runs(pid, command):
    commands = subprocess.run(["ps", "-A", "-o", "pid=,args="], capture_output=True, text=True, check=True).stdout
    family = descendants(pid)
    (found,) = [
        int(child)
        for child, arguments in (line.split(maxsplit=1) for line in commands.splitlines())
        if int(child) in family and command in arguments
    ]
    return found


def is_running(pid):
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    return True
