"""`python -m worker.alive`: exit 0 while the worker of this machine beats, for container health checks."""

import sys
import time

from worker.settings import WorkerSettings

__all__ = ["main"]

# Longer than the store's retries, during which a beat waits: Redis away is no reason to replace the worker.
_STALE_AFTER_S = 60.0


def main() -> int:
    """Return 0 if the alive file was touched lately, else 1 with the reason on stderr."""
    alive_file = WorkerSettings().alive_file
    try:
        age_s = time.time() - alive_file.stat().st_mtime
    except FileNotFoundError:
        sys.stderr.write(f"no worker has started here: {alive_file} does not exist\n")
        return 1
    if age_s > _STALE_AFTER_S:
        sys.stderr.write(f"the worker has not moved for {age_s:.0f} s\n")
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
