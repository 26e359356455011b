"""Defines the job as callers see it: an immutable record and its documented states."""

from datetime import datetime
from enum import StrEnum
from typing import Final

from pydantic import BaseModel, ConfigDict, Field

__all__ = ["FINISHED", "JOB_ID", "InputFailure", "InputType", "Job", "JobStatus", "Lane", "OutputDtype"]


JOB_ID: Final = "^[0-9a-f]{32}$"
"""The pattern of every job's id. What does not match is never made part of a key of Redis."""


class JobStatus(StrEnum):
    """`queued → running → completed | failed | cancelled`."""

    QUEUED = "queued"
    """Accepted; no worker has taken any of its inputs yet."""
    RUNNING = "running"
    """A worker has taken at least one of its inputs."""
    COMPLETED = "completed"
    """Every input is done and at least one succeeded; `failed > 0` makes it a partial result."""
    FAILED = "failed"
    """No input succeeded."""
    CANCELLED = "cancelled"
    """Its caller gave it up; there is no result."""


FINISHED = frozenset({JobStatus.COMPLETED, JobStatus.FAILED, JobStatus.CANCELLED})
"""The states that never change again."""


class InputType(StrEnum):
    """What a job's inputs are."""

    IMAGE = "image"
    TEXT = "text"


_QUEUES_A_LANE: Final = 8
_MODEL_MARK: Final = "@"


class Lane(StrEnum):
    """Which queues a job waits in. Those of `interactive` are served first, and it takes only what costs little."""

    INTERACTIVE = "interactive"
    BULK = "bulk"

    @property
    def queues(self) -> list[str]:
        """The queues of this lane for jobs that are not bound to a model; workers of every model consume them.

        A lane's queues are taken from in turn. An owner has one: others do not wait behind its work. Where more owners
        than there are queues have work at the same time, some share one.
        """
        return [self.value, *(f"{self}.{number}" for number in range(1, _QUEUES_A_LANE))]

    def queues_of(self, model_id: str) -> list[str]:
        """Return the queues of this lane for jobs of one model; for "" those of `queues`."""
        return [f"{queue}{_MODEL_MARK}{model_id}" if model_id else queue for queue in self.queues]

    @classmethod
    def of(cls, queue: str) -> "Lane":
        """Return the lane that a queue belongs to."""
        return cls(queue.partition(_MODEL_MARK)[0].partition(".")[0])


class OutputDtype(StrEnum):
    """What the rows of the answer are made of (docs/storage.md). A model's rows have length 1."""

    FLOAT32 = "float32"
    FLOAT16 = "float16"
    INT8 = "int8"
    """Each row stretched so that its largest value is 127 or -127, and rounded: over its length it is the row again."""
    BINARY = "binary"
    """16 bytes a row: a 1 for each value above zero, the first value in the first byte's highest bit."""


class Job(BaseModel):
    """One submission. `completed` and `failed` count inputs and never overlap."""

    model_config = ConfigDict(frozen=True)

    id: str
    status: JobStatus
    input_type: InputType
    lane: Lane
    output_dtype: OutputDtype | None = Field(None, description="asked precision of the result; null: the model's own")
    pool_factor: int = Field(description="how many of a page's rows become one; 1: all are kept")
    total: int = Field(description="inputs in the job")
    completed: int = Field(description="inputs with a result")
    failed: int = Field(description="inputs that failed, each with a reason in the result")
    created_at: datetime
    started_at: datetime | None = Field(None, description="when a worker took the first input")
    finished_at: datetime | None = None
    model: str | None = Field(None, description="the model that answers the job; null: not decided yet")
    model_id: str | None = Field(
        None, description="which checkpoint of that name: 12 hex digits; null: not decided yet"
    )
    expires_at: datetime = Field(
        description="unfinished: when the job is given up; finished: when its result is dropped"
    )
    released: bool = Field(
        default=False, description="true: the result was dropped before its time, because a caller asked for that"
    )
    # These are internal and not part of any answer.
    queue: str = Field("", exclude=True)
    tokens: int = Field(0, exclude=True)  # estimated cost of all its inputs (shared.cost)
    request_id: str = Field("", exclude=True)

    @property
    def finished(self) -> bool:
        """True once nothing about the job will change again."""
        return self.status in FINISHED


class InputFailure(BaseModel):
    """Why one input of a job has no embedding."""

    model_config = ConfigDict(frozen=True)

    index: int
    code: str
    message: str
