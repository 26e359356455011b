"""The client's logic without its I/O: when to send, split, pause, try again and give up.

Each function is a generator. It yields a `Request` and is sent a `Reply`, or as `NoReply` the reason why there is none;
it yields a `Pause` and is sent None; it returns what the caller wants.
`colqueue_client.client` drives them, with a thread or with an event loop.
"""

import math
import random
import time
import uuid
from collections import deque
from collections.abc import Callable, Generator, Mapping, Sequence
from collections.abc import Set as AbstractSet
from dataclasses import dataclass, field
from email.utils import parsedate_to_datetime
from typing import Final, TypeVar

import numpy as np

from colqueue_client.answers import is_away, is_unsure, not_colqueue, refusal
from colqueue_client.errors import ClientError, InputFailedError, ServiceError, UnfinishedError, UnreachableError
from colqueue_client.wire import (
    MSGPACK,
    Input,
    Job,
    JobResult,
    Options,
    Reply,
    Request,
    Rows,
    body_of,
    is_ready,
    job_from,
    jobs_from,
    metrics_from,
    result_from,
)

__all__ = [
    "Exchange",
    "NoReply",
    "Pause",
    "Readiness",
    "Retry",
    "Step",
    "Submitted",
    "cancel",
    "embed",
    "fetch_result",
    "jobs",
    "metrics",
    "read",
    "readiness",
    "release",
    "result",
    "submit",
    "submit_split",
    "wait",
]

T = TypeVar("T")

_OK: Final = 200
_ACCEPTED: Final = 202
_NOT_FOUND: Final = 404
_TOO_LARGE: Final = 413
_TIMED_OUT: Final = 504

# `Retry-After: 0` would make a caller ask without a pause, and a proxy's page may name a day.
_SHORTEST_ASKED_S: Final = 0.1
_LONGEST_ASKED_S: Final = 600.0
# The longest that the service waits for us before it answers.
_LONGEST_WAIT_S: Final = 60.0
# Inputs a request: what morphik-core sends of pages; texts are small.
_AT_ONCE: Final = {"image": 16, "text": 128}


@dataclass(frozen=True, slots=True)
class NoReply:
    """The request was sent, or not even that, and there is no answer."""

    reason: str


@dataclass(frozen=True, slots=True)
class Pause:
    """Do nothing for so long."""

    seconds: float


Step = Request | Pause
Exchange = Generator[Step, Reply | NoReply | None, T]


@dataclass(frozen=True, slots=True)
class Retry:
    """For how long a call is tried again where the service is away or full."""

    for_s: float = 120.0
    """Gives up rather than pause for longer in all; `inf` never does."""
    unsure_for_s: float = 20.0
    """Likewise, and no longer than `for_s`, where an answer may pass or may be there for good: a 500, or the page of
    a proxy."""
    first_s: float = 0.5
    """The first pause where the service names none; each further one is twice as long."""
    longest_s: float = 30.0
    """No pause of our own choice is longer. What `Retry-After` asks for is granted, up to 600 s."""


@dataclass(frozen=True, slots=True)
class Readiness:
    """Whether the service can embed now, and if not, why not."""

    ready: bool
    reason: str


@dataclass(frozen=True, slots=True)
class Submitted:
    """What became of inputs that may have been too many for one job: `jobs` with the indices of their inputs."""

    jobs: list[tuple[Job, Sequence[int]]] = field(default_factory=list)
    failures: list[InputFailedError] = field(default_factory=list)
    """Inputs that are too large by themselves."""


def embed(input_type: str, inputs: Sequence[Input], retry: Retry) -> Exchange[list[Rows]]:
    """Embed and wait: one multi-vector (n_rows x dim, float32) an input, in order, over as many requests as it takes.

    A request that is too large is halved, and so are those after it.
    """
    found: list[Rows] = []
    size = _AT_ONCE[input_type]
    while len(found) < len(inputs):
        start = len(found)
        part = inputs[start : start + size]
        try:
            found += yield from _embed_at_once(input_type, part, retry)
        except (ServiceError, InputFailedError) as error:
            if _is_too_large(error) and error.index is None and len(part) > 1:
                size = (len(part) + 1) // 2
                continue
            if error.index is not None or len(part) == 1:
                raise error.at(start + (error.index or 0)) from error.__cause__
            raise
    return [rows.astype(np.float32, copy=False) for rows in found]


def _embed_at_once(input_type: str, inputs: Sequence[Input], retry: Retry) -> Exchange[list[Rows]]:
    def read_result(reply: Reply) -> JobResult | str:
        location = reply.headers.get("location", "")
        if reply.status == _TIMED_OUT and location.startswith("/jobs/"):
            return location.removeprefix("/jobs/")
        return result_from(reply, len(inputs))

    answer = yield from _ask(_post("/embeddings", body_of(input_type, inputs)), retry, read_result, also=_TIMED_OUT)
    if isinstance(answer, str):
        job = yield from wait(answer, retry)
        answer = yield from result(job, retry)
        yield from release(job.id, retry)
    return answer.complete()


def submit(
    input_type: str, inputs: Sequence[Input], options: Options, retry: Retry, key: str | None = None
) -> Exchange[Job]:
    """Submit one job. Sent again under one idempotency key, `key` or one of its own, it makes one job."""
    headers = {"Idempotency-Key": key or uuid.uuid4().hex}
    request = _post("/jobs", body_of(input_type, inputs, options), headers)
    return (yield from _ask(request, retry, job_from, status=_ACCEPTED))


def submit_split(
    input_type: str, inputs: Sequence[Input], options: Options, retry: Retry, key: str
) -> Exchange[Submitted]:
    """Submit in one job, or in several where the service says that it is too large for one.

    The parts' idempotency keys follow from `key`, so that the same inputs under the same key make the same jobs.
    """
    submitted = Submitted()
    parts: deque[Sequence[int]] = deque([range(len(inputs))])
    while parts:
        part = parts.popleft()
        try:
            part_key = f"{key}.{part[0]}.{len(part)}"
            job = yield from submit(input_type, [inputs[index] for index in part], options, retry, part_key)
        except ServiceError as error:
            if not _is_too_large(error):
                raise _at(part, error) from error.__cause__
            if error.index is not None or len(part) == 1:
                bad = part[error.index or 0]
                submitted.failures.append(InputFailedError(error.code, error.at(bad).message, index=bad))
                halves: list[Sequence[int]] = [[index for index in part if index != bad]]
            else:
                middle = (len(part) + 1) // 2
                halves = [part[:middle], part[middle:]]
            parts.extendleft(reversed([half for half in halves if half]))
        else:
            submitted.jobs.append((job, part))
    return submitted


def read(job_id: str, retry: Retry, wait_s: float = 0) -> Exchange[Job]:
    """Return the job now, or on its first change within `wait_s` seconds (60 at most)."""
    query = f"?wait={min(wait_s, _LONGEST_WAIT_S):g}" if wait_s else ""
    return (yield from _ask(Request("GET", f"/jobs/{job_id}{query}"), retry, job_from))


def wait(
    job_id: str, retry: Retry, timeout_s: float | None = None, clock: Callable[[], float] = time.monotonic
) -> Exchange[Job]:
    """Return the job once it is finished; UnfinishedError after `timeout_s` seconds."""
    ends = math.inf if timeout_s is None else clock() + timeout_s
    job = yield from read(job_id, retry)
    while not job.finished:
        if (left := ends - clock()) <= 0:
            raise UnfinishedError(f"job {job_id} is not finished after {timeout_s:g} s")
        job = yield from read(job_id, retry, left)
    return job


def result(job: Job | str, retry: Retry, *, release: bool = False) -> Exchange[JobResult]:
    """Return a finished job's embeddings; UnfinishedError while it is not finished."""
    known = (yield from read(job, retry)) if isinstance(job, str) else job
    return (yield from fetch_result(known.id, known.total, retry, release=release))


def fetch_result(job_id: str, total: int, retry: Retry, *, release: bool = False) -> Exchange[JobResult]:
    """Return the result of a job of `total` inputs without asking after the job first.

    With `release` the service drops the result once it has sent it whole. Where the end of the answer is lost on its
    way, the next try is refused with status 410.
    """

    def read_result(reply: Reply) -> JobResult:
        if reply.status == _ACCEPTED:
            job_from(reply)
            raise UnfinishedError(f"job {job_id} is not finished")
        return result_from(reply, total)

    query = "?release=true" if release else ""
    request = Request("GET", f"/jobs/{job_id}/result{query}", {"Accept": MSGPACK})
    return (yield from _ask(request, retry, read_result, also=_ACCEPTED))


def cancel(job_id: str, retry: Retry) -> Exchange[Job]:
    """Cancel what is not done yet, or drop the result of a finished job, and return the job."""
    return (yield from _ask(Request("DELETE", f"/jobs/{job_id}"), retry, job_from))


def release(job_id: str, retry: Retry) -> Exchange[None]:
    """Drop the result of a finished job; nothing happens where the service does not know the job any more."""
    try:
        yield from cancel(job_id, retry)
    except ServiceError as error:
        if error.status != _NOT_FOUND:
            raise


def jobs(limit: int, after: str | None, retry: Retry) -> Exchange[tuple[list[Job], str | None]]:
    """Return this key's jobs, newest first, and the `after` of the page that follows."""
    query = f"?limit={limit}" + (f"&after={after}" if after else "")
    return (yield from _ask(Request("GET", f"/jobs{query}"), retry, jobs_from))


def readiness() -> Exchange[Readiness]:
    """Ask once whether the service can embed now."""
    once = Retry(for_s=0)
    try:
        return (yield from _ask(Request("GET", "/ready"), once, lambda reply: Readiness(is_ready(reply), "")))
    except ServiceError as error:
        return Readiness(ready=False, reason=error.message)


def metrics(retry: Retry) -> Exchange[str]:
    """Return the service's metrics in Prometheus's text format."""
    return (yield from _ask(Request("GET", "/metrics"), retry, metrics_from))


def _at(indices: Sequence[int], error: ServiceError) -> ServiceError:
    """Return the error with its index among all inputs, where the request held those at `indices`."""
    known = error.index is not None and error.index < len(indices)
    return error.at(indices[error.index or 0]) if known else error


def _post(path: str, content: bytes, headers: dict[str, str] | None = None) -> Request:
    return Request("POST", path, {"Content-Type": MSGPACK, "Accept": MSGPACK} | (headers or {}), content)


def _ask(
    request: Request, retry: Retry, read_answer: Callable[[Reply], T], *, status: int = _OK, also: int | None = None
) -> Exchange[T]:
    """Send until `read_answer` can read an answer of `status` or `also`, and return what it reads.

    Raises what the last answer says, once it is of no use to ask again or `retry` gives up.
    """
    paused, backoff = 0.0, retry.first_s
    while True:
        reply = yield request
        assert reply is not None  # noqa: S101 - for mypy: what a driver sends after a request
        try:
            return _read(reply, read_answer, {status, also})
        except (UnreachableError, ServiceError) as error:
            pause = _pause_s(reply, backoff)
            if paused + pause > _patience_s(reply, error, retry):
                raise
        yield Pause(pause)
        paused, backoff = paused + pause, min(2 * backoff, retry.longest_s)


def _read(reply: Reply | NoReply, read_answer: Callable[[Reply], T], statuses: AbstractSet[int | None]) -> T:
    if isinstance(reply, NoReply):
        raise UnreachableError(reply.reason)
    if reply.status not in statuses:
        raise refusal(reply)
    try:
        return read_answer(reply)
    except UnreachableError as error:
        raise not_colqueue(reply, error.message) from error


def _patience_s(reply: Reply | NoReply, error: ClientError, retry: Retry) -> float:
    """Return for how long in all the request is repeated after this answer; negative: not at all."""
    if isinstance(reply, NoReply) or is_away(reply):
        return retry.for_s
    return min(retry.for_s, retry.unsure_for_s) if is_unsure(reply) and error.index is None else -1


def _pause_s(reply: Reply | NoReply, backoff: float) -> float:
    """Return what the service asks for, or else `backoff`; spread, so that many callers do not return as one."""
    asked = _retry_after_s(reply.headers) if isinstance(reply, Reply) else None
    spread = random.random()  # noqa: S311 - nothing secret
    if asked is None:
        return backoff * (0.5 + spread / 2)
    return min(max(asked, _SHORTEST_ASKED_S), _LONGEST_ASKED_S) * (1 + spread / 4)


def _retry_after_s(headers: Mapping[str, str]) -> float | None:
    said = headers.get("retry-after", "")
    if said.isdecimal():
        return float(said)
    try:
        at, now = parsedate_to_datetime(said), parsedate_to_datetime(headers.get("date", ""))
    except ValueError:
        return None
    return max(0.0, (at - now).total_seconds())


def _is_too_large(error: ClientError) -> bool:
    return isinstance(error, ServiceError) and error.status == _TOO_LARGE
