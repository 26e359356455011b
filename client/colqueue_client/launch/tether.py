"""Makes a command die with the process that started it. Run as a script it knows the standard library only.

On Linux the kernel kills the command when its launcher is gone, even by SIGKILL. This small script asks for that in
the new process itself and then becomes the command: doing it between fork and exec (`preexec_fn`) can deadlock in
a launcher that has threads. Elsewhere the command runs untied.
"""

import ctypes
import os
import signal
import sys
from collections.abc import Sequence

__all__ = ["tether"]

_PR_SET_PDEATHSIG = 1  # linux/prctl.h; survives exec, ends at fork: the command's own children are not tied


def tether(command: Sequence[str]) -> list[str]:
    """Return the command line that runs `command` tied to this process.

    The kernel watches the *thread* that starts it: use one that lives as long as the command should, such as the main
    thread.
    """
    return [sys.executable, "-I", "-S", __file__, str(os.getpid()), *command]


def _become(launcher: int, command: list[str]) -> None:
    if sys.platform == "linux" and ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL) != 0:
        sys.exit("cannot tie this process to its launcher: prctl(PR_SET_PDEATHSIG) failed")
    if os.getppid() != launcher:
        sys.exit("the launcher ended first")
    os.execvp(command[0], command)  # noqa: S606  # the launcher's own command, no shell between


if __name__ == "__main__":
    _become(int(sys.argv[1]), sys.argv[2:])
