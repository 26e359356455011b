"""Embeds any number of inputs as a sequence of jobs, without I/O; `calls` describes how such functions are driven."""

import uuid
from collections import deque
from collections.abc import Generator, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import islice
from typing import Final

from colqueue_client.calls import Exchange, NoReply, Retry, Step, Submitted, fetch_result, submit, submit_split, wait
from colqueue_client.errors import InputFailedError, ServiceError
from colqueue_client.wire import Input, Job, JobResult, Options, Reply, Rows

__all__ = ["Outcome", "stream"]

_NOT_FOUND: Final = 404
_GONE: Final = 410
# A job may be lost with its Redis or expire while nobody asks; more often than this, something else is wrong.
_SUBMISSIONS: Final = 3


@dataclass(frozen=True, slots=True)
class Outcome:
    """What became of the input at `index`: its `embedding`, or the `failure` that says why it has none."""

    index: int
    embedding: Rows | None
    failure: InputFailedError | None


@dataclass(frozen=True, slots=True)
class _Flying:
    start: int
    inputs: Sequence[Input]
    submitted: Submitted


def stream(  # noqa: PLR0913 - what a caller may choose
    input_type: str, inputs: Iterable[Input], options: Options, retry: Retry, *, job_size: int, in_flight: int
) -> Generator[Step | Outcome, Reply | NoReply | None, None]:
    """Yield every input's `Outcome`, in order, with at most `in_flight` jobs of `job_size` inputs on their way."""
    flying: deque[_Flying] = deque()
    for start, batch in _in_batches(inputs, job_size):
        if len(flying) >= in_flight:
            yield from _collect(input_type, flying.popleft(), options, retry)
        with _counting_from(range(start, start + len(batch))):
            submitted = yield from submit_split(input_type, batch, options, retry, uuid.uuid4().hex)
        flying.append(_Flying(start, batch, submitted))
    while flying:
        yield from _collect(input_type, flying.popleft(), options, retry)


def _collect(
    input_type: str, flying: _Flying, options: Options, retry: Retry
) -> Generator[Step | Outcome, Reply | NoReply | None, None]:
    found: dict[int, Rows | InputFailedError] = {_index(failure): failure for failure in flying.submitted.failures}
    for job, indices in flying.submitted.jobs:
        inputs = [flying.inputs[index] for index in indices]
        with _counting_from([flying.start + index for index in indices]):
            done = yield from _result_though_lost(job, input_type, inputs, options, retry)
        found |= {indices[place]: rows for place, rows in enumerate(done.embeddings) if rows is not None}
        found |= {indices[_index(failure)]: failure for failure in done.failures}
    for index in range(len(flying.inputs)):
        got, place = found[index], flying.start + index
        if isinstance(got, InputFailedError):
            yield Outcome(place, None, got.at(place))
        else:
            yield Outcome(place, got, None)


def _result_though_lost(
    job: Job, input_type: str, inputs: Sequence[Input], options: Options, retry: Retry
) -> Exchange[JobResult]:
    for submission in range(1, _SUBMISSIONS + 1):
        try:
            yield from wait(job.id, retry)
            return (yield from fetch_result(job.id, len(inputs), retry, release=True))
        except ServiceError as error:
            if error.status not in {_NOT_FOUND, _GONE} or submission == _SUBMISSIONS:
                raise
            job = yield from submit(input_type, inputs, options, retry)
    raise AssertionError("unreachable")


@contextmanager
def _counting_from(places: Sequence[int]) -> Iterator[None]:
    """Give errors about one of the inputs at `places` the input's index among all."""
    try:
        yield
    except ServiceError as error:
        if error.index is None or error.index >= len(places):
            raise
        raise error.at(places[error.index]) from error.__cause__


def _index(failure: InputFailedError) -> int:
    assert failure.index is not None  # noqa: S101 - for mypy: it cannot be made without one
    return failure.index


def _in_batches(inputs: Iterable[Input], size: int) -> Iterator[tuple[int, list[Input]]]:
    iterator, start = iter(inputs), 0
    while batch := list(islice(iterator, size)):
        yield start, batch
        start += len(batch)
