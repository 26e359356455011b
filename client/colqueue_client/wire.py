"""What goes over the wire: requests, answers, and both as msgpack. Knows the service's forms; sends nothing."""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime
from typing import Any, Final
from urllib.parse import unquote

import msgpack
import numpy as np
from numpy.typing import NDArray

from colqueue_client.errors import InputFailedError, UnreachableError

__all__ = [
    "MSGPACK",
    "Input",
    "Job",
    "JobResult",
    "Options",
    "Reply",
    "Request",
    "Rows",
    "body_of",
    "is_ready",
    "job_from",
    "jobs_from",
    "json_of",
    "metrics_from",
    "result_from",
]

Rows = NDArray[Any]
"""One input's multi-vector, n_rows x dim: float32, float16 or int8, or uint8 that packs eight signs a byte."""

Input = bytes | str
"""An image file's bytes, or a text."""

MSGPACK: Final = "application/msgpack"

_DTYPES: Final = frozenset({"float32", "float16", "int8", "uint8"})
_FINISHED: Final = frozenset({"completed", "failed", "cancelled"})


@dataclass(frozen=True, slots=True)
class Request:
    """One HTTP request; safe to send again, as all that are made here are."""

    method: str
    path: str
    headers: Mapping[str, str] = field(default_factory=dict)
    content: bytes | None = None


@dataclass(frozen=True, slots=True)
class Reply:
    """One HTTP answer, read to its end. `headers` has lower-case names."""

    status: int
    headers: Mapping[str, str] = field(default_factory=dict)
    content: bytes = b""
    url: str = ""
    """Where the request went, without a user or a password."""


@dataclass(frozen=True, slots=True)
class Options:
    """How a job is to be treated; None leaves the choice to the service."""

    lane: str | None = None
    """`bulk` (the service's default) or `interactive`, which is served first."""
    output_dtype: str | None = None
    """`float32`, `float16`, `int8` or `binary`; `as_float32` reads them all."""
    pool_factor: int | None = None
    """So many of a page's rows become one; pages only."""
    deadline_s: float | None = None
    """After so many seconds, inputs that are not embedded yet fail."""
    model: str | None = None
    """The name of a model, or the id of one of its checkpoints; the service refuses what no worker serves."""

    def fields(self) -> dict[str, Any]:
        """Return those that are set, as the body names them."""
        named = {name: getattr(self, name) for name in self.__slots__}
        return {name: value for name, value in named.items() if value is not None}


@dataclass(frozen=True, slots=True)
class Job:
    """A job as it was when the service answered. `completed` and `failed` count inputs."""

    id: str
    status: str
    """`queued`, `running`, `completed`, `failed` or `cancelled`."""
    input_type: str
    lane: str
    total: int
    completed: int
    failed: int
    created_at: datetime
    started_at: datetime | None
    finished_at: datetime | None
    expires_at: datetime
    released: bool = False
    """True: the result was dropped before its time, because a caller asked for that."""

    @property
    def finished(self) -> bool:
        """True once nothing about the job will change again."""
        return self.status in _FINISHED


@dataclass(frozen=True, slots=True)
class JobResult:
    """A finished job's embeddings in the order of its inputs, None where the input failed, and why."""

    embeddings: list[Rows | None]
    failures: list[InputFailedError]
    model: str | None = None
    """The model that answered; None where the service does not say."""
    model_id: str | None = None
    """The checkpoint of that model, as 12 hex digits."""

    def complete(self) -> list[Rows]:
        """Return the embeddings if every input has one; raise the first input's InputFailedError otherwise."""
        if self.failures:
            raise self.failures[0]
        return [rows for rows in self.embeddings if rows is not None]


def body_of(input_type: str, inputs: Sequence[Input], options: Options | None = None) -> bytes:
    """Return a submission as msgpack: image files and texts as they are."""
    fields = {} if options is None else options.fields()
    body: bytes = msgpack.packb({"input_type": input_type, "inputs": list(inputs), **fields})
    return body


def result_from(reply: Reply, expected: int) -> JobResult:
    """Read an answer's embeddings; UnreachableError where it is not `expected` of them in the form asked for."""
    try:
        body = msgpack.unpackb(reply.content)
        embeddings = [packed and _rows(packed) for packed in body["embeddings"]]
        failures = [
            InputFailedError(failure["code"], failure["message"], index=failure["index"])
            for failure in body.get("errors", ())
        ]
    except (ValueError, KeyError, TypeError, AttributeError, msgpack.UnpackException) as error:
        raise UnreachableError(f"the answer is not the msgpack that was asked for: {error}") from error
    if len(embeddings) != expected or {failure.index for failure in failures} != {
        index for index, rows in enumerate(embeddings) if rows is None
    }:
        raise UnreachableError(f"{expected} inputs were sent and {len(embeddings)} came back, or not all with a reason")
    model, model_id = reply.headers.get("x-colqueue-model"), reply.headers.get("x-colqueue-model-id")
    return JobResult(embeddings, failures, None if model is None else unquote(model), model_id)


def _rows(packed: Mapping[str, Any]) -> Rows:
    name, shape = packed["dtype"], packed["shape"]
    if name not in _DTYPES:
        raise ValueError(f"dtype {name!r} is not known")
    return np.frombuffer(packed["data"], np.dtype(name).newbyteorder("<")).reshape(shape)


def job_from(reply: Reply) -> Job:
    """Read an answer that is one job."""
    return _job(json_of(reply))


def jobs_from(reply: Reply) -> tuple[list[Job], str | None]:
    """Read an answer that lists jobs: those of this page, and where the next one begins."""
    body = json_of(reply)
    try:
        return [_job(one) for one in body["jobs"]], body["next"]
    except (KeyError, TypeError) as error:
        raise UnreachableError(f"the answer is not a list of jobs: {error}") from error


def _job(body: Any) -> Job:
    try:
        fields: dict[str, Any] = {"released": False} | body
        fields = {name: fields[name] for name in Job.__slots__}
        times = {name: datetime.fromisoformat(told) for name, told in fields.items() if name.endswith("_at") and told}
    except (KeyError, TypeError, ValueError) as error:
        raise UnreachableError(f"the answer is not a job: {error}") from error
    return Job(**fields | times)


def is_ready(reply: Reply) -> bool:
    """Read an answer of `/ready`; UnreachableError where it is none."""
    body = json_of(reply)
    if not isinstance(body, dict) or "status" not in body:
        raise UnreachableError("the answer says nothing about readiness")
    return bool(body["status"] == "ready")


def metrics_from(reply: Reply) -> str:
    """Read an answer of `/metrics`; UnreachableError where it is none, or another program's."""
    text = reply.content.decode(errors="replace")
    if "colqueue_" not in text:
        raise UnreachableError("the answer has no metrics of colqueue")
    return text


def json_of(reply: Reply) -> Any:
    """Read an answer that is JSON."""
    try:
        return json.loads(reply.content)
    except ValueError as error:
        raise UnreachableError("the answer is not JSON") from error
