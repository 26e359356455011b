"""Repeats the test suite while other programs keep every core busy, and counts the failures of each test.

`make test-flaky` runs it. The log and the results of each run stay in var/flaky.
"""

import argparse
import os
import subprocess
import sys
import time
import xml.etree.ElementTree as ET
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from colqueue_client.launch.tether import tether

# A run that takes longer than this is ended, and so are the programs that keep the cores busy.
LONGEST_RUN_S = 2 * 3600
BURN = "import sys, time\nends = time.monotonic() + float(sys.argv[1])\nwhile time.monotonic() < ends: pass"


@contextmanager
def busy_cores(number: int) -> Iterator[None]:
    """Start programs that each use one core, until left, until this process ends, or until the longest run is over."""
    command = tether([sys.executable, "-c", BURN, str(LONGEST_RUN_S)])
    burners = [subprocess.Popen(command) for _ in range(number)]
    try:
        yield
    finally:
        for burner in burners:
            burner.kill()
            burner.wait()


def run_suite(folder: Path, name: str, arguments: list[str]) -> list[str]:
    """Run pytest once; return the tests that failed, or the run itself where it ended without results."""
    results, log = folder / f"{name}.xml", folder / f"{name}.log"
    results.unlink(missing_ok=True)
    command = [sys.executable, "-m", "pytest", f"--junitxml={results}", *arguments]
    with log.open("w") as output:
        try:
            status = subprocess.run(
                command, stdout=output, stderr=subprocess.STDOUT, timeout=LONGEST_RUN_S, check=False
            ).returncode
        except subprocess.TimeoutExpired:
            status = None
    if not results.exists():
        return [f"(the run itself: no results, exit status {status}; see {log})"]
    cases = ET.parse(results).iter("testcase")  # noqa: S314  # a file that pytest has just written
    failed = [case for case in cases if case.find("failure") is not None or case.find("error") is not None]
    return sorted({f"{case.get('classname')}::{case.get('name')}" for case in failed})


def tell(line: str) -> None:
    print(line, flush=True)  # noqa: T201  # it talks to whoever typed the command


def main() -> int:
    """Return 1 where any test failed in any run."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--runs", type=int, default=5, help="number of runs (default: 5)")
    parser.add_argument(
        "--busy", type=int, default=os.cpu_count(), help="number of cores that other programs keep busy (default: all)"
    )
    options, arguments = parser.parse_known_args()
    folder = Path("var/flaky")
    folder.mkdir(parents=True, exist_ok=True)
    failures: Counter[str] = Counter()
    for number in range(1, options.runs + 1):
        started = time.monotonic()
        with busy_cores(options.busy):
            failed = run_suite(folder, f"run-{number}", arguments)
        failures.update(failed)
        tell(f"Run {number} of {options.runs}: {len(failed)} failed in {time.monotonic() - started:.0f} s.")
    tell(f"{options.runs} runs, {failures.total()} failures, logs in {folder}.")
    for test, count in failures.most_common():
        tell(f"{count:4} x {test}")
    return 1 if failures else 0


if __name__ == "__main__":
    sys.exit(main())
