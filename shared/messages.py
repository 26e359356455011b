"""Reads the messages that lie in the queues, and tells ours from everything else that somebody may have put there."""

import base64
import binascii
import json
from typing import Annotated, Any, Final, Literal, Self

import msgpack
from pydantic import BaseModel, ConfigDict, Field, FiniteFloat, ValidationError

from shared.jobs import JOB_ID, Lane

__all__ = [
    "INPUTS_HEADER",
    "JOB_HEADER",
    "QUEUED_AT_HEADER",
    "REQUEST_HEADER",
    "TASK_NAME",
    "TOKENS_HEADER",
    "ForeignMessageError",
    "QueuedTask",
    "TakenTask",
]

TASK_NAME: Final = "colqueue.embed"
"""The unit of work: `(job id, [index, ...])`."""

JOB_HEADER, INPUTS_HEADER, QUEUED_AT_HEADER = "colqueue_job", "colqueue_inputs", "colqueue_queued_at"
"""Message headers by which lost work is told from work that waits."""

TOKENS_HEADER = "colqueue_tokens"
"""Message header that carries the estimated cost of a task, by which the queues take turns."""

REQUEST_HEADER = "colqueue_request"
"""Message header that carries the id of the request that made the job, for the logs."""

_FORM: Final = ConfigDict(frozen=True, strict=True)


class ForeignMessageError(Exception):
    """This is not a message that `shared.queue.publish` wrote. The text says why, without what the message holds."""


class _Headers(BaseModel):
    """What Celery and we read of a message's headers. Celery would obey the fields that must be empty here."""

    model_config = _FORM

    task: Literal["colqueue.embed"]
    id: Annotated[str, Field(min_length=1, max_length=255)]
    eta: None = None
    expires: None = None
    timelimit: tuple[None, None] | None = None
    compression: None = None
    group: None = None
    stamped_headers: None = None
    retries: Literal[0] = 0
    colqueue_job: Annotated[str, Field(pattern=JOB_ID)]
    colqueue_inputs: Annotated[list[Annotated[int, Field(ge=0)]], Field(min_length=1)]
    colqueue_tokens: Annotated[int, Field(ge=0)] = 0
    colqueue_queued_at: FiniteFloat = 0.0
    colqueue_request: str = ""


class _DeliveryInfo(BaseModel):
    model_config = _FORM

    exchange: Literal[""]
    routing_key: str


class _Properties(BaseModel):
    model_config = _FORM

    delivery_tag: Annotated[str, Field(min_length=1, max_length=255)]
    delivery_info: _DeliveryInfo
    body_encoding: Literal["base64"]
    priority: int = 0
    correlation_id: str | None = None
    reply_to: str | None = None


class QueuedTask(BaseModel):
    """One message of ours: which inputs of which job a worker should look at."""

    model_config = _FORM

    body: str
    content_type: Literal["application/x-msgpack"] = Field(alias="content-type")
    content_encoding: Literal["binary"] = Field(alias="content-encoding")
    headers: _Headers
    properties: _Properties

    @property
    def job_id(self) -> str:
        """The job."""
        return self.headers.colqueue_job

    @property
    def indices(self) -> list[int]:
        """Its inputs."""
        return self.headers.colqueue_inputs

    @property
    def queued_at(self) -> float:
        """When it was put into its queue, by Redis's clock."""
        return self.headers.colqueue_queued_at

    @property
    def queue(self) -> str:
        """Where it was put."""
        return self.properties.delivery_info.routing_key

    @classmethod
    def parse(cls, raw: bytes, queue: str | None = None) -> Self:
        """Read a message as it lies in `queue`; without that, in any queue of a lane.

        Raises:
            ForeignMessageError: it is not ours.
        """
        try:
            task = cls.model_validate_json(raw)
            Lane.of(task.queue)
            body = msgpack.unpackb(base64.b64decode(task.body, validate=True))
        except ValidationError as error:
            first = error.errors(include_url=False, include_context=False, include_input=False)[0]
            where = ".".join(str(part) for part in first["loc"]) or "the whole"
            raise ForeignMessageError(f"{where}: {first['msg']}") from None
        except (binascii.Error, ValueError, msgpack.exceptions.UnpackException) as error:
            raise ForeignMessageError(f"the body or the routing key cannot be read ({type(error).__name__})") from None
        if queue is not None and task.queue != queue:
            raise ForeignMessageError("the routing key names another queue")
        if not isinstance(body, list) or body[:2] != [[task.job_id, task.indices], {}] or not _asks_nothing(body[2:]):
            raise ForeignMessageError("the body is not what the headers say")
        return task


class TakenTask(BaseModel):
    """A message that a worker has taken and not yet acknowledged, as kombu keeps it."""

    model_config = ConfigDict(frozen=True, arbitrary_types_allowed=True)

    task: QueuedTask
    message: dict[str, Any]

    @classmethod
    def parse(cls, raw: bytes) -> Self:
        """Read `[message, exchange, routing key]`.

        Raises:
            ForeignMessageError: it is not ours.
        """
        try:
            message, _, routing_key = json.loads(raw)
        except (ValueError, TypeError, RecursionError) as error:
            raise ForeignMessageError(f"not a message that was taken ({type(error).__name__})") from None
        task = QueuedTask.parse(json.dumps(message).encode(), routing_key if isinstance(routing_key, str) else "")
        return cls(task=task, message=message)

    def redelivered(self) -> str:
        """Return the message as it goes back into its queue: marked as delivered before."""
        headers, properties = self.message["headers"], self.message["properties"]
        info = properties["delivery_info"] | {"redelivered": True}
        changed = {"headers": headers | {"redelivered": True}, "properties": properties | {"delivery_info": info}}
        return json.dumps(self.message | changed)


def _asks_nothing(embed: list[Any]) -> bool:
    """Return whether a task's body asks Celery for no further task: no callback, chain or chord."""
    match embed:
        case [dict(further)]:
            return not any(further.values())
    return False
