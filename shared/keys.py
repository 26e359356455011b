"""Names everything that colqueue keeps in Redis."""

from typing import Final

__all__ = [
    "ANNOUNCEMENTS",
    "BACKLOG",
    "CACHE",
    "CACHE_USED",
    "DEADLINES",
    "DEAD_LETTERS",
    "HELD",
    "KEPT",
    "MODELS",
    "REAPER",
    "UNFINISHED",
    "WORKERS",
    "attempts",
    "drained",
    "failures",
    "idempotency",
    "job",
    "model_gone_since",
    "owned_jobs",
    "payloads",
    "results",
    "submission_rate",
    "worker",
]

ANNOUNCEMENTS: Final = "colqueue:announcements"
"""Stream: one entry per change of a job's status or counts, `{job: id}`."""

UNFINISHED: Final = "colqueue:unfinished"
"""Sorted set: the ids of jobs that are not finished, by the time of their last sign of life."""

DEADLINES: Final = "colqueue:deadlines"
"""Sorted set: the ids of jobs that are not finished, by the time after which they are ended."""

REAPER: Final = "colqueue:reaper"
"""String: which worker looks for lost work, for a few seconds."""

BACKLOG: Final = "colqueue:backlog"
"""Hash: the inputs, bytes and tokens of all unfinished jobs, by queue, by lane and owner, and by lane.

It also holds the queue of each owner in each lane."""

WORKERS: Final = "colqueue:workers"
"""Sorted set of worker names by the time of their last heartbeat."""

DEAD_LETTERS: Final = "colqueue:dead_letters"
"""List: the latest messages in our queues that were not ours, newest first, as JSON."""

MODELS: Final = "colqueue:models"
"""Hash by model id: JSON of `shared.models.KnownModel`. Ready workers write it, the api and the reaper read it."""

HELD: Final = "colqueue:held"
"""Hash: the bytes that each owner's jobs hold or will hold in Redis, and those of all results to come (shared.room)."""

KEPT: Final = "colqueue:kept"
"""Sorted set: the finished jobs whose results are kept, with their bytes and owners, by the time of their expiry."""

CACHE: Final = "colqueue:cache"
"""Hash of the results kept by content: packed rows by name, and the number of bytes of all rows."""

CACHE_USED: Final = "colqueue:cache:used"
"""Sorted set of the cache's names by the time of their last use."""


def drained(period: int | str) -> str:
    """Hash: the inputs and bytes done in a period of a few seconds, by lane."""
    return f"colqueue:drained:{period}"


def worker(name: str) -> str:
    """Hash: the facts of one worker's last heartbeat."""
    return f"colqueue:worker:{name}"


def model_gone_since(model_id: str) -> str:
    """String: the Unix time since which a model has had no worker, while other workers ran."""
    return f"colqueue:model:{model_id}:gone"


def job(job_id: str) -> str:
    """Hash: the job's record."""
    return f"colqueue:job:{job_id}"


def payloads(job_id: str) -> str:
    """Hash by index: raw bytes of the inputs not yet done."""
    return f"colqueue:job:{job_id}:payloads"


def attempts(job_id: str) -> str:
    """Hash by index: how often a worker has begun an input that is not done."""
    return f"colqueue:job:{job_id}:attempts"


def results(job_id: str) -> str:
    """Hash by index: packed rows of the inputs that succeeded."""
    return f"colqueue:job:{job_id}:results"


def failures(job_id: str) -> str:
    """Hash by index: msgpack `[code, message]` of the inputs that failed."""
    return f"colqueue:job:{job_id}:failures"


def owned_jobs(owner: str) -> str:
    """Sorted set: the ids of one key's jobs by creation time."""
    return f"colqueue:owner:{owner}:jobs"


def idempotency(owner: str, key: str) -> str:
    """String: the id of the job that a caller's `Idempotency-Key` made."""
    return f"colqueue:owner:{owner}:idempotency:{key}"


def submission_rate(owner: str) -> str:
    """String: the Unix time until which an owner has used up its rate of submissions."""
    return f"colqueue:owner:{owner}:rate"
