"""What a tree of processes has used: CPU seconds and memory. Knows psutil and /proc; knows no contestant."""

import re
from collections.abc import Iterable
from contextlib import suppress
from pathlib import Path

import psutil

__all__ = ["cpu_s", "end_all", "peak_rss_mb", "tree"]


def tree(pids: Iterable[int]) -> list[psutil.Process]:
    """Return these processes and all their descendants."""
    found: dict[int, psutil.Process] = {}
    for pid in pids:
        with suppress(psutil.NoSuchProcess):
            root = psutil.Process(pid)
            found |= {process.pid: process for process in (root, *root.children(recursive=True))}
    return list(found.values())


def cpu_s(processes: list[psutil.Process]) -> float:
    """Return the CPU seconds that they, and their children that ended, have used so far."""
    total = 0.0
    for process in processes:
        with suppress(psutil.NoSuchProcess):
            total += sum(process.cpu_times()[:4])  # user, system, and the same of children that were waited for
    return total


def peak_rss_mb(processes: list[psutil.Process]) -> float:
    """Return the sum of each one's own peak resident memory, in MiB; what they share counts for each."""
    total = 0
    for process in processes:
        with suppress(OSError):
            found = re.search(r"VmHWM:\s+(\d+) kB", Path(f"/proc/{process.pid}/status").read_text("ascii"))
            total += int(found.group(1)) if found else 0
    return total / 1024


def end_all(processes: list[psutil.Process]) -> None:
    """Kill those that are still there."""
    for process in processes:
        with suppress(psutil.NoSuchProcess):
            process.kill()
