"""Closes Celery's remote control, except for the commands that only look."""

from typing import Any, Final

import structlog
from celery.worker.control import Panel

__all__ = ["close_remote_control"]

_log = structlog.get_logger(__name__)

# What Flower and `celery inspect` read. Flower also asks every five seconds that workers tell what they do, which
# ours do anyway (`worker_send_task_events`). `hello` is left out, as it takes revoked ids from whoever calls, and so
# are `objgraph`, `memsample` and `memdump`, which cost much and write files.
_INSPECTION: Final = frozenset(
    (
        *("active", "active_queues", "clock", "conf", "ping", "query_task", "registered", "report", "reserved"),
        *("revoked", "scheduled", "stats", "enable_events"),
        *("dump_active", "dump_conf", "dump_reserved", "dump_revoked", "dump_schedule", "dump_tasks"),
    )
)


def close_remote_control() -> None:
    """Answer every command of Celery's remote control that is not in our list with a refusal, in this process.

    Whoever may publish to Redis could otherwise shut a worker down, stop its queues or limit its rate.
    """
    for name in Panel.data.keys() - _INSPECTION:
        Panel.data[name] = _refuse(name)


def _refuse(name: str) -> Any:
    def refuse(state: Any, *_: Any, **__: Any) -> dict[str, str]:
        del state
        _log.warning("control.refused", command=name)
        return {"error": f"{name} is switched off here. COLQUEUE_REMOTE_CONTROL=true switches it on."}

    return refuse
