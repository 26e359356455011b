"""`make test-flaky` on a small suite of its own."""

import subprocess
import sys

from stack import ROOT, clean_environment

SUITE = """
def test_that_passes():
    pass

def test_that_fails():
    assert False
"""


def test_it_counts_the_failures_of_each_test_over_all_runs(tmp_path):
    (tmp_path / "test_suite.py").write_text(SUITE)
    command = [sys.executable, str(ROOT / "tests" / "flaky.py"), "--runs", "2", "--busy", "1", "test_suite.py"]

    done = subprocess.run(command, cwd=tmp_path, env=clean_environment(), capture_output=True, text=True, check=False)

    assert done.returncode == 1, done.stderr
    assert "2 runs, 2 failures" in done.stdout
    assert "   2 x test_suite::test_that_fails" in done.stdout
    assert "test_that_passes" not in done.stdout
    assert "assert False" in (tmp_path / "var" / "flaky" / "run-2.log").read_text()
