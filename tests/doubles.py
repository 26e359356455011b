"""A model without a neural network, and the api's store for tests that are not async."""

import asyncio
import zlib
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass
from typing import Any, TypeVar

import numpy as np

from api.store import Budget
from api.store import Store as ApiStore
from api.submission import JobOptions, Submission
from shared.codecs import DIM, Rows, StoredRows
from shared.errors import TextInvalidError
from shared.jobs import InputFailure, InputType, Job, Lane
from shared.models import ServedModel
from shared.settings import StoreSettings, TokenSettings
from worker.model.seam import Prepared

__all__ = [
    "OWNER",
    "ROOM",
    "SERVED",
    "FakeModel",
    "WholeResult",
    "ask_api",
    "read_job",
    "read_result",
    "rows_of",
    "submit_job",
    "submit_pages",
    "submit_texts",
]

OWNER = "owner"

SERVED = ServedModel(name="fake", model_id="fa4e00000001")

ROOM = Budget(max_inputs=10**6, max_bytes=10**9, interactive_max_tokens=10**6)

T = TypeVar("T")


def rows_of(payload: bytes, model_id: str = SERVED.model_id) -> Rows:
    """What a `FakeModel` makes of a payload: one to three rows that no other payload and no other model has."""
    random = np.random.default_rng(zlib.crc32(model_id.encode() + payload))
    return random.standard_normal((1 + len(payload) % 3, DIM), dtype=np.float32)


class FakeModel:
    """Implements `worker.model.seam.Model`; an input costs as many tokens as its payload has bytes.

    "unreadable..." is refused by preparation, "puzzling..." makes it fail as only a fault of ours would. `during` is
    called in every forward pass with its payloads and may wait or raise; `batches` holds all of them.
    """

    def __init__(self, during: Callable[[list[bytes]], None] = lambda _: None, served: ServedModel = SERVED) -> None:
        self.served = served
        self.batches: list[list[bytes]] = []
        self._during = during

    def prepare_page(self, data: bytes) -> Prepared:
        if data.startswith(b"unreadable"):
            raise TextInvalidError("cannot be read")
        if data.startswith(b"puzzling"):
            raise RuntimeError("nobody expected this")
        return Prepared(len(data), data)

    def prepare_query(self, text: str) -> Prepared:
        return self.prepare_page(text.encode())

    def start(self, batch: Sequence[Prepared]) -> Callable[[], list[Rows]]:
        rows = self.embed(batch)
        return lambda: rows

    def embed(self, batch: Sequence[Prepared]) -> list[Rows]:
        payloads = [prepared.features for prepared in batch]
        self.batches.append(payloads)
        self._during(payloads)
        return [rows_of(payload, self.served.model_id) for payload in payloads]

    def pool(self, rows: Rows, factor: int) -> Rows:
        return rows[: max(len(rows) // factor, 1)]


def ask_api(settings: StoreSettings, ask: Callable[[ApiStore], Awaitable[T]], budget: Budget = ROOM) -> T:
    """Return what `ask` gets from the api's store, over connections of its own."""

    async def asking() -> T:
        store = ApiStore(settings, budget, TokenSettings(_env_file=None))
        try:
            return await ask(store)
        finally:
            await store.close()

    return asyncio.run(asking())


@dataclass(frozen=True)
class WholeResult:
    """A job's result, read to its end."""

    embeddings: list[StoredRows | None]
    failures: Sequence[InputFailure]


async def read_result(api: ApiStore, job_id: str) -> WholeResult:
    """Return what a finished job left behind."""
    result = await api.result(await api.job(job_id, OWNER))
    packed = [rows async for piece in result.pieces() for rows in await result.read(piece)]
    return WholeResult([None if rows is None else result.rows(rows) for rows in packed], result.failures)


def submit_job(
    settings: StoreSettings,
    *texts: str,
    lane: Lane = Lane.BULK,
    key: str | None = None,
    owner: str = OWNER,
    **options: object,
) -> Job:
    """Register a job of texts as the api does, without any task."""
    submission = Submission(InputType.TEXT, [text.encode() for text in texts], JobOptions.model_validate(options))
    return ask_api(settings, lambda store: store.create(submission, lane, owner, key))


def submit_texts(settings: StoreSettings, *texts: str, **options: Any) -> str:
    """Register a job of texts as `submit_job` does; return its id."""
    return submit_job(settings, *texts, **options).id


def submit_pages(settings: StoreSettings, *pages: bytes, owner: str = OWNER, **options: object) -> str:
    """Register a job of pages likewise."""
    submission = Submission(InputType.IMAGE, pages, JobOptions.model_validate(options))
    return ask_api(settings, lambda store: store.create(submission, Lane.BULK, owner, None)).id


def read_job(settings: StoreSettings, job_id: str, owner: str = OWNER) -> Job:
    """Return the job as its owner sees it."""
    return ask_api(settings, lambda store: store.job(job_id, owner))
