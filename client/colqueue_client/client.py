"""`Client` and `AsyncClient`: the same calls, driven by a thread or by an event loop."""

import asyncio
import time
from collections.abc import AsyncIterator, Iterator
from types import TracebackType
from typing import Final, Self, TypeVar

import httpx2

from colqueue_client import calls
from colqueue_client.calls import Exchange, NoReply, Pause, Readiness, Retry, Submitted
from colqueue_client.connections import Connections
from colqueue_client.inputs import Image, SequenceOf, StreamOf, as_inputs, images_as_bytes, texts_as_list
from colqueue_client.streams import Outcome, stream
from colqueue_client.wire import Job, JobResult, Options, Reply, Request, Rows

__all__ = ["AsyncClient", "Client"]

T = TypeVar("T")

_IN_FLIGHT: Final = 4
_JOB_SIZE: Final = 16


class Client(Connections[httpx2.Client]):
    """The service at `url`, with `key`; by default what `COLQUEUE_URL` and `SERVICE_API_KEY` say.

    Safe from several threads, and in processes that are forked. Use it in a `with` block, or call `close`. Every call
    tries again while the service is away or full, for as long as `retry` says, and honours `Retry-After`; then, and
    where it refuses, it raises a ClientError: ServiceError what the service answered, UnreachableError where it gave
    no answer.

    Args:
        url: where the service listens.
        key: one of its keys.
        retry: for how long to try again.
        trust_env: whether proxies and `.netrc` of this machine apply.
        transport: instead of the network, for tests.
    """

    _open = httpx2.Client

    def __init__(
        self,
        url: str | None = None,
        key: str | None = None,
        *,
        retry: Retry | None = None,
        trust_env: bool = True,
        transport: httpx2.BaseTransport | None = None,
    ) -> None:
        super().__init__(url, key, retry, trust_env=trust_env, transport=transport)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def close(self) -> None:
        """Drop the connections."""
        self._http.close()

    def embed_images(self, images: SequenceOf[Image]) -> list[Rows]:
        """Return one multi-vector (n_rows x 128, float32) a page image, in order, and wait for them.

        Raises ServiceError with the `index` and `code` of the first image that fails.
        """
        return self._run(calls.embed("image", list(images_as_bytes(images)), self.retry))

    def embed_queries(self, texts: SequenceOf[str]) -> list[Rows]:
        """Return one multi-vector (n_rows x 128, float32) a query, in order, and wait for them."""
        return self._run(calls.embed("text", texts_as_list(texts), self.retry))

    def submit(
        self,
        *,
        images: SequenceOf[Image] | None = None,
        texts: SequenceOf[str] | None = None,
        options: Options | None = None,
        idempotency_key: str | None = None,
    ) -> Job:
        """Submit images or texts as one job and return it at once.

        Submitted again with the same `idempotency_key`, the first job is returned. Without one the call makes its own,
        so that its own tries make one job.
        """
        input_type, inputs = as_inputs(images, texts)
        return self._run(calls.submit(input_type, list(inputs), options or Options(), self.retry, idempotency_key))

    def submit_split(
        self, *, images: SequenceOf[Image], options: Options | None = None, idempotency_key: str
    ) -> Submitted:
        """Submit images as one job, or as several where the service takes less at once."""
        inputs = list(images_as_bytes(images))
        return self._run(calls.submit_split("image", inputs, options or Options(), self.retry, idempotency_key))

    def job(self, job_id: str) -> Job:
        """Return the job as it is now."""
        return self._run(calls.read(job_id, self.retry))

    def jobs(self, *, limit: int = 50, after: str | None = None) -> tuple[list[Job], str | None]:
        """Return this key's jobs, newest first, and the `after` of the page that follows, if there is one."""
        return self._run(calls.jobs(limit, after, self.retry))

    def wait(self, job: Job | str, *, timeout_s: float | None = None) -> Job:
        """Return the job once it is finished; UnfinishedError after `timeout_s` seconds."""
        return self._run(calls.wait(_id(job), self.retry, timeout_s))

    def result(self, job: Job | str, *, release: bool = False) -> JobResult:
        """Return a finished job's embeddings at the precision asked for; UnfinishedError while it is not finished.

        With `release` the service drops the result once it has sent it whole, which frees its memory. Where the end of
        that answer is lost on its way, the call raises ServiceError with status 410; to be safe from that, call
        `release` when the result is where it is needed.
        """
        return self._run(calls.result(job, self.retry, release=release))

    def release(self, job: Job | str) -> None:
        """Drop the result of a finished job, which frees the service's memory; any other job is cancelled."""
        self._run(calls.release(_id(job), self.retry))

    def cancel(self, job: Job | str) -> Job:
        """Cancel what is not done yet and return the job; of a finished job the result is dropped."""
        return self._run(calls.cancel(_id(job), self.retry))

    def iter_results(
        self,
        *,
        images: StreamOf[Image] | None = None,
        texts: StreamOf[str] | None = None,
        options: Options | None = None,
        job_size: int = _JOB_SIZE,
        in_flight: int = _IN_FLIGHT,
    ) -> Iterator[Outcome]:
        """Embed as many inputs as there are, in jobs, and yield what becomes of each, in order.

        Holds the inputs of `in_flight` jobs of `job_size` and no more. A failed input is an Outcome with its `failure`;
        a job that the service lost is submitted again.
        """
        input_type, inputs = as_inputs(images, texts)
        options = options or Options()
        steps = stream(input_type, inputs, options, self.retry, job_size=job_size, in_flight=in_flight)
        reply: Reply | NoReply | None = None
        while True:
            try:
                step = steps.send(reply)
            except StopIteration:
                return
            if isinstance(step, Outcome):
                reply = None
                yield step
            else:
                reply = self._do(step)

    def readiness(self) -> Readiness:
        """Ask once whether the service can embed now."""
        return self._run(calls.readiness())

    def metrics(self) -> str:
        """Return the service's metrics in Prometheus's text format."""
        return self._run(calls.metrics(self.retry))

    def _run(self, call: Exchange[T]) -> T:
        reply: Reply | NoReply | None = None
        while True:
            try:
                step = call.send(reply)
            except StopIteration as done:
                value: T = done.value
                return value
            reply = self._do(step)

    def _do(self, step: Request | Pause) -> Reply | NoReply | None:
        if isinstance(step, Pause):
            time.sleep(step.seconds)
            return None
        try:
            return _reply(self._http.request(step.method, step.path, content=step.content, headers=dict(step.headers)))
        except httpx2.RequestError as error:
            return self._no_reply(error)


class AsyncClient(Connections[httpx2.AsyncClient]):
    """As `Client`, for one event loop. Use it in an `async with` block, or await `close`."""

    _open = httpx2.AsyncClient

    def __init__(
        self,
        url: str | None = None,
        key: str | None = None,
        *,
        retry: Retry | None = None,
        trust_env: bool = True,
        transport: httpx2.AsyncBaseTransport | None = None,
    ) -> None:
        super().__init__(url, key, retry, trust_env=trust_env, transport=transport)

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self.close()

    async def close(self) -> None:
        """Drop the connections."""
        await self._http.aclose()

    async def embed_images(self, images: SequenceOf[Image]) -> list[Rows]:
        """See `Client.embed_images`."""
        return await self._run(calls.embed("image", list(images_as_bytes(images)), self.retry))

    async def embed_queries(self, texts: SequenceOf[str]) -> list[Rows]:
        """See `Client.embed_queries`."""
        return await self._run(calls.embed("text", texts_as_list(texts), self.retry))

    async def submit(
        self,
        *,
        images: SequenceOf[Image] | None = None,
        texts: SequenceOf[str] | None = None,
        options: Options | None = None,
        idempotency_key: str | None = None,
    ) -> Job:
        """See `Client.submit`."""
        input_type, inputs = as_inputs(images, texts)
        call = calls.submit(input_type, list(inputs), options or Options(), self.retry, idempotency_key)
        return await self._run(call)

    async def submit_split(
        self, *, images: SequenceOf[Image], options: Options | None = None, idempotency_key: str
    ) -> Submitted:
        """See `Client.submit_split`."""
        inputs = list(images_as_bytes(images))
        return await self._run(calls.submit_split("image", inputs, options or Options(), self.retry, idempotency_key))

    async def job(self, job_id: str) -> Job:
        """See `Client.job`."""
        return await self._run(calls.read(job_id, self.retry))

    async def jobs(self, *, limit: int = 50, after: str | None = None) -> tuple[list[Job], str | None]:
        """See `Client.jobs`."""
        return await self._run(calls.jobs(limit, after, self.retry))

    async def wait(self, job: Job | str, *, timeout_s: float | None = None) -> Job:
        """See `Client.wait`."""
        return await self._run(calls.wait(_id(job), self.retry, timeout_s))

    async def result(self, job: Job | str, *, release: bool = False) -> JobResult:
        """See `Client.result`."""
        return await self._run(calls.result(job, self.retry, release=release))

    async def release(self, job: Job | str) -> None:
        """See `Client.release`."""
        await self._run(calls.release(_id(job), self.retry))

    async def cancel(self, job: Job | str) -> Job:
        """See `Client.cancel`."""
        return await self._run(calls.cancel(_id(job), self.retry))

    async def iter_results(
        self,
        *,
        images: StreamOf[Image] | None = None,
        texts: StreamOf[str] | None = None,
        options: Options | None = None,
        job_size: int = _JOB_SIZE,
        in_flight: int = _IN_FLIGHT,
    ) -> AsyncIterator[Outcome]:
        """See `Client.iter_results`."""
        input_type, inputs = as_inputs(images, texts)
        options = options or Options()
        steps = stream(input_type, inputs, options, self.retry, job_size=job_size, in_flight=in_flight)
        reply: Reply | NoReply | None = None
        while True:
            try:
                step = steps.send(reply)
            except StopIteration:
                return
            if isinstance(step, Outcome):
                reply = None
                yield step
            else:
                reply = await self._do(step)

    async def readiness(self) -> Readiness:
        """See `Client.readiness`."""
        return await self._run(calls.readiness())

    async def metrics(self) -> str:
        """See `Client.metrics`."""
        return await self._run(calls.metrics(self.retry))

    async def _run(self, call: Exchange[T]) -> T:
        reply: Reply | NoReply | None = None
        while True:
            try:
                step = call.send(reply)
            except StopIteration as done:
                value: T = done.value
                return value
            reply = await self._do(step)

    async def _do(self, step: Request | Pause) -> Reply | NoReply | None:
        if isinstance(step, Pause):
            await asyncio.sleep(step.seconds)
            return None
        try:
            return _reply(
                await self._http.request(step.method, step.path, content=step.content, headers=dict(step.headers))
            )
        except httpx2.RequestError as error:
            return self._no_reply(error)


def _reply(answer: httpx2.Response) -> Reply:
    headers = {name.lower(): value for name, value in answer.headers.items()}
    url = str(answer.url.copy_with(username=None, password=None))
    return Reply(answer.status_code, headers, answer.content, url)


def _id(job: Job | str) -> str:
    return job if isinstance(job, str) else job.id
