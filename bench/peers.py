"""The environment in which the peers run, apart from ours. Knows pip; knows no peer."""

import hashlib
import subprocess
import sys
import venv
from pathlib import Path
from typing import Final

from bench.errors import BenchError
from bench.terminal import say

__all__ = ["peer_python"]

_REQUIREMENTS: Final = Path(__file__).with_name("peers.txt")


def peer_python(directory: Path) -> Path:
    """Return the interpreter of the peers' environment in `directory`, made or brought up to date first.

    pip is asked where it looks for packages by its own settings. Raises `BenchError` with pip's own words.
    """
    python, stamp = directory / "bin" / "python", directory / ".installed"
    wanted = hashlib.sha256(_REQUIREMENTS.read_bytes()).hexdigest()
    if stamp.exists() and stamp.read_text() == wanted:
        return python
    say(f"Installing the peers into {directory} ...")
    venv.create(directory, with_pip=True, clear=True)
    command = [str(python), "-m", "pip", "install", "--quiet", "--requirement", str(_REQUIREMENTS)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)  # noqa: S603 - our own command line
    if done.returncode != 0:
        raise BenchError(f"pip could not install the peers for {sys.version.split()[0]}: {done.stderr.strip()[-800:]}")
    stamp.write_text(wanted)
    return python
