"""Asks pip-audit about every pinned version: `make audit`. Knows its report; says aloud what could not be asked.

pip-audit itself calls a package that its database does not answer for "skipped", and a report of nothing else clean.
"""

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

__all__ = ["verdict"]

_COMMAND = ["--requirement=constraints.txt", "--no-deps", "--disable-pip", "--format=json", "--progress-spinner=off"]


def verdict(report: dict[str, Any]) -> tuple[int, str]:
    """Return the exit status for a report and what to say: 1 for findings, 2 where the database did not answer."""
    asked = [package for package in report["dependencies"] if "vulns" in package]
    found = [
        f"{package['name']} {package['version']}: {flaw['id']}, mended in {', '.join(flaw['fix_versions']) or '-'}"
        for package in asked
        for flaw in package["vulns"]
    ]
    of = f"{len(asked)} of {len(report['dependencies'])} pinned packages asked about"
    if found:
        return 1, "\n".join([*found, f"{len(found)} known vulnerabilities; {of}."])
    return (0, f"No known vulnerability; {of}.") if asked else (2, f"NOT AUDITED, the database does not answer: {of}.")


def main() -> int:
    """Run it over constraints.txt."""
    program = str(Path(sys.executable).with_name("pip-audit"))
    ran = subprocess.run([program, *_COMMAND], stdout=subprocess.PIPE, text=True, check=False)  # noqa: S603  # no shell
    status, said = verdict(json.loads(ran.stdout)) if ran.stdout else (2, "NOT AUDITED, pip-audit could not run.")
    sys.stdout.write(f"{said}\n")
    return status


if __name__ == "__main__":
    sys.exit(main())
