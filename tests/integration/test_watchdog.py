"""The watchdog in processes of its own, as it ends them."""

import json
import subprocess
import sys

import pytest
from stack import ROOT, clean_environment

from worker.watchdog import EXIT_STATUS

TIMEOUT_S = 0.5

# The batcher and the watchdog as `worker.__main__` puts them together; each batch takes as long as its text says, and
# less than nothing means that the model is lost. The farewell hangs as well: what it talks to may be what hangs.
PROGRAM = """
import sys, threading, time
from doubles import FakeModel
from shared.jobs import Lane
from shared.logs import configure_logs
from shared.settings import LogSettings
from worker.batcher import Batcher
from worker.model.seam import ModelLostError
from worker.watchdog import Watchdog

timeout_s, *batches = map(float, sys.argv[1:])
configure_logs(LogSettings(_env_file=None, log_format="json"))


def during(payloads):
    if (seconds := float(payloads[0])) < 0:
        raise ModelLostError("an illegal memory access")
    time.sleep(seconds)


model = FakeModel(during)
batcher = Batcher(model.start, max_tokens=1, unfinished=lambda jobs: jobs)
watchdog = Watchdog(lambda: batcher.busy_for_s, timeout_s, lambda: time.sleep(600))
watchdog.start()
threading.Thread(target=watchdog.guard, args=(batcher.run,), daemon=True).start()
futures = [batcher.submit("job", model.prepare_query(str(s)), Lane.BULK) for s in batches]
for future in futures:
    future.result()
"""


def run_batches(*seconds):
    return subprocess.run(
        [sys.executable, "-c", PROGRAM, str(TIMEOUT_S), *map(str, seconds)],
        cwd=ROOT / "tests",
        env=clean_environment(PYTHONPATH=f"{ROOT}:{ROOT / 'tests'}"),
        capture_output=True,
        text=True,
        timeout=240,
        check=False,
    )


@pytest.mark.parametrize("before", [[], [0.01, 0.01]], ids=["the first batch", "a later batch"])
def test_a_batch_that_never_ends_ends_the_process_and_one_line_says_why(before):
    ended = run_batches(*before, 50)
    assert ended.returncode == EXIT_STATUS
    lines = [json.loads(line) for line in (ended.stdout + ended.stderr).splitlines()]
    (critical,) = [line for line in lines if line["level"] == "critical"]
    assert critical["event"] == "model.hangs"
    assert TIMEOUT_S <= critical["s"] < 50
    assert critical["timeout_s"] == TIMEOUT_S


def test_a_model_that_is_lost_ends_the_process_and_one_line_says_why():
    ended = run_batches(0.01, -1)
    assert ended.returncode == EXIT_STATUS
    lines = [json.loads(line) for line in (ended.stdout + ended.stderr).splitlines()]
    (critical,) = [line for line in lines if line["level"] == "critical"]
    assert (critical["event"], critical["reason"]) == ("model.lost", "an illegal memory access")
