"""Run a backfill: open, render, submit, collect and write at the same time, in bounded memory."""

import asyncio
import hashlib
import json
import time
from collections import deque
from collections.abc import AsyncGenerator, Iterable, Sequence
from contextlib import ExitStack, aclosing, closing
from dataclasses import dataclass, replace
from itertools import islice
from pathlib import Path
from typing import Final, TextIO

from colqueue_client.backfill.checkpoint import Checkpoint
from colqueue_client.backfill.documents import Documents
from colqueue_client.backfill.files import atomic_write
from colqueue_client.backfill.interrupt import interruptible
from colqueue_client.backfill.layout import failures_path, hold, manifest_path, prepare
from colqueue_client.backfill.manifest import Manifest
from colqueue_client.backfill.output import output_for
from colqueue_client.backfill.plan import Plan, Summary
from colqueue_client.backfill.progress import Progress
from colqueue_client.backfill.records import PageKey, Size
from colqueue_client.backfill.renderers import RenderDiedError, Renderers
from colqueue_client.backfill.rendering import Rendering
from colqueue_client.backfill.sources import find, folders_in, sight
from colqueue_client.backfill.watch import served_model, watch
from colqueue_client.backfill.writing import Writing
from colqueue_client.client import AsyncClient
from colqueue_client.errors import BackfillError, ServiceError
from colqueue_client.wire import Options

__all__ = ["backfill"]

# Pages that a render process does before it takes the next task: opening a large PDF again for each would be slow.
_RENDERED_AT_ONCE: Final = 4
_JOB_BYTES: Final = 32 * 2**20
_SHOWN_FAILURES: Final = 20

# The service no longer has the job, or never will have a result of it: submit its pages again.
_LOST: Final = frozenset({404, 409, 410})
# Failures of pages that came too early or too late, and not of the pages themselves: submit them again.
_PASSING: Final = frozenset({"deadline_exceeded", "model_gone"})
# So many times in a row that everything submitted was lost, it is no accident.
_FRUITLESS: Final = 5


async def backfill(plan: Plan, client: AsyncClient, stdin: TextIO, progress: Progress) -> Summary:
    """Embed every page of the plan's sources that is not embedded yet, and return what became of them all.

    Killed at any moment and called again, it goes on where it was. Waits for the service for as long as `client` does.

    Raises:
        BackfillError: a source that is not there, a folder made with other options, another backfill in it.
        ServiceError: the service refuses, for want of a key say.
        UnreachableError: it gave no answer for longer than `client` goes on.
    """
    started = time.monotonic()
    plan.out.mkdir(parents=True, exist_ok=True)
    with ExitStack() as held:
        held.enter_context(hold(plan.out))
        prepare(plan.out)
        manifest = held.enter_context(closing(Manifest(manifest_path(plan.out))))
        model = await served_model(client, progress, manifest.fact("model") if manifest.has_embeddings() else None)
        _require_alike(manifest, plan, model)
        output = held.enter_context(closing(output_for(plan.format, plan.out, model, plan.shard_bytes, plan.store)))
        writing = Writing(output, manifest, progress)
        await writing.check(plan.output_dtype)
        progress.say(f"Looking for pages; model {model}.")
        renderers = Renderers(plan.processes)
        rendering = Rendering(renderers, plan)
        with interruptible():  # reading a list on stdin or a large folder takes long
            manifest.record_found(map(sight, rendering.note_passwords(find(plan.sources, stdin, plan.out))))
        await writing.tidy()
        await writing.use_columns(manifest.columns())
        if plan.retry_failed:
            manifest.retry_failed()
        manifest.finish_finding()
        try:
            with progress.shown():
                async with renderers:
                    checkpoint = Checkpoint(manifest, plan.out, model)
                    pipeline = _Pipeline(plan, manifest, client, writing, rendering, checkpoint)
                    async with asyncio.TaskGroup() as tasks:
                        watching = tasks.create_task(watch(client, manifest, progress, model))
                        await pipeline.run()
                        watching.cancel()
        except BaseExceptionGroup as group:
            raise _first(group) from None
        _write_failures(failures_path(plan.out), manifest)
        manifest.recount()  # from the records, and not by counting along
        manifest.shrink()
        departures = manifest.departures
        unreachable, because = departures.count_unreachable()
        return Summary(
            counts=manifest.counts,
            seconds=time.monotonic() - started,
            new=manifest.collected_now,
            gone=departures.count_gone(),
            unreachable=unreachable,
            unreachable_because=because,
            renamed=departures.renamed,
            pruned=departures.pruned,
            skipped=manifest.count_skipped(),
            failures=list(islice(manifest.failures(), _SHOWN_FAILURES)),
        )


@dataclass(frozen=True, slots=True)
class _Page:
    key: PageKey
    sha256: str
    image: bytes
    size: Size | None


class _Pipeline:
    def __init__(  # noqa: PLR0913, PLR0917 it puts the parts of a backfill together
        self,
        plan: Plan,
        manifest: Manifest,
        client: AsyncClient,
        writing: Writing,
        rendering: Rendering,
        checkpoint: Checkpoint,
    ) -> None:
        self._checkpoint = checkpoint
        self._plan = plan
        self._manifest = manifest
        self._client = client
        self._writing = writing
        self._rendering = rendering
        self._documents = Documents(plan, manifest, writing, rendering)
        self._options = Options("bulk", plan.output_dtype, plan.pool_factor)
        self._slots = asyncio.Semaphore(plan.jobs_in_flight)
        self._turn_to_write = asyncio.Lock()
        self._opened = asyncio.Event()
        self._all_opened = False
        self._asked = 0

    async def run(self) -> None:
        roots = folders_in(self._plan.sources) | self._manifest.roots()
        await self._documents.settle(roots, lambda: self._write(everything=False))
        fruitless = 0
        while fruitless < _FRUITLESS:
            before = self._manifest.counts.left
            await self._pass()
            if self._is_enough() or not self._manifest.next_pending((0, 0), 1):
                return
            fruitless = fruitless + 1 if self._manifest.counts.left >= before else 0
        raise BackfillError(
            "the service loses jobs before they can be collected: does it keep results long enough "
            "(COLQUEUE_RESULT_TTL_S)?"
        )

    async def _pass(self) -> None:
        """Embed what is pending. What the service loses meanwhile is pending afterwards."""
        self._all_opened = False
        async with asyncio.TaskGroup() as tasks:
            for job in self._manifest.jobs():  # of a run that was killed
                await self._slots.acquire()
                tasks.create_task(self._collect_all([job]))
            tasks.create_task(self._open_all())
            async with aclosing(self._batches()) as batches:
                async for batch in batches:
                    await self._slots.acquire()
                    tasks.create_task(self._collect_all(await self._submit(batch)))
        await self._write(everything=True)

    async def _open_all(self) -> None:
        await self._documents.open_all(self._opened.set, self._is_enough)
        self._all_opened = True
        self._opened.set()

    def _is_enough(self) -> bool:
        return self._plan.limit is not None and self._asked >= self._plan.limit

    # Pages

    async def _batches(self) -> AsyncGenerator[list[_Page]]:
        batch: list[_Page] = []
        size = 0
        async with aclosing(self._render_pending()) as pages:
            async for page in pages:
                if batch and (len(batch) == self._plan.job_pages or size + len(page.image) > _JOB_BYTES):
                    yield batch
                    batch, size = [], 0
                batch.append(page)
                size += len(page.image)
        if batch:
            yield batch

    async def _render_pending(self) -> AsyncGenerator[_Page]:
        """Yield pages in the order in which they were asked for, a few more than there are processes in the making."""
        making: deque[asyncio.Task[list[_Page]]] = deque()
        position = (0, 0)
        try:
            while True:
                self._opened.clear()
                all_opened = self._all_opened
                while len(making) <= 2 * self._plan.processes and not self._is_enough():
                    most = _RENDERED_AT_ONCE
                    if self._plan.limit is not None:
                        most = min(most, self._plan.limit - self._asked)
                    if not (keys := self._manifest.next_pending(position, most)):
                        break
                    self._asked += len(keys)
                    making.append(asyncio.create_task(self._render(keys)))
                    position = keys[-1]
                if making:
                    for page in await making.popleft():
                        yield page
                elif all_opened:
                    return
                else:
                    await self._opened.wait()
        finally:
            for task in making:
                task.cancel()
            await asyncio.gather(*making, return_exceptions=True)  # each ends its render process

    async def _render(self, keys: Sequence[PageKey]) -> list[_Page]:
        document = self._manifest.document(keys[0][0])
        try:
            answer = await self._rendering.render(document, [page for _, page in keys])
        except RenderDiedError as error:
            if len(keys) > 1:  # which of them was it?
                return [page for key in keys for page in await self._render([key])]
            self._manifest.record_failed(keys[0], "render_crashed", str(error))
            return []
        rendered = []
        for key, page, (width, height) in zip(keys, answer["pages"], answer["sizes"], strict=True):
            if isinstance(page, bytes):
                rendered.append(_Page(key, document.sha256, page, (width, height) if width else None))
            else:
                self._manifest.record_failed(key, *page)
        return rendered

    # Jobs

    async def _submit(self, batch: Sequence[_Page]) -> list[tuple[int, str, int]]:
        options = replace(self._options, model=self._checkpoint.model_id)
        try:
            submitted = await self._client.submit_split(
                images=[page.image for page in batch], options=options, idempotency_key=self._key(batch, options)
            )
        except ServiceError as error:
            raise self._checkpoint.explain(error) from error
        for failure in submitted.failures:
            assert failure.index is not None  # noqa: S101 - for mypy: it names the input
            self._manifest.record_failed(batch[failure.index].key, failure.code, failure.message)
        return [
            (self._record_submitted(job.id, [batch[index] for index in indices]), job.id, len(indices))
            for job, indices in submitted.jobs
        ]

    def _record_submitted(self, job: str, pages: Sequence[_Page]) -> int:
        return self._manifest.record_submitted(job, [page.key for page in pages], [page.size for page in pages])

    def _key(self, batch: Sequence[_Page], options: Options) -> str:
        """Return what makes the same job of the same pages, so that one sent just before a kill is found again."""
        attempts = self._manifest.attempts([page.key for page in batch])
        described = [
            [self._manifest.fact("model"), self._plan.dpi, options.fields()],
            # The image, too: the service refuses a key that comes again with other bytes, and another version of this
            # client, or another limit, may make other bytes of the same page.
            *(
                [page.sha256, page.key[1], hashlib.sha256(page.image).hexdigest(), attempt]
                for page, attempt in zip(batch, attempts, strict=True)
            ),
        ]
        return hashlib.sha256(json.dumps(described).encode()).hexdigest()

    async def _collect_all(self, jobs: Iterable[tuple[int, str, int]]) -> None:
        try:
            for number, service_id, _ in jobs:
                await self._collect(number, service_id)
        finally:
            self._slots.release()

    async def _collect(self, number: int, service_id: str) -> None:
        try:
            result = await self._client.result(await self._client.wait(service_id))
        except ServiceError as error:
            if error.status not in _LOST:
                raise
            self._manifest.requeue_lost_pages(number)
            return
        if not self._checkpoint.accept_result(result):  # submitted before the folder's checkpoint was known
            self._manifest.requeue_lost_pages(number)
            return
        passing = [failure for failure in result.failures if failure.code in _PASSING]
        self._manifest.record_collected(number, result, passing)
        # The rows are safe in the manifest now, and the service may use their memory for the next job.
        await self._client.release(service_id)
        await self._write(everything=False)

    # Output

    async def _write(self, *, everything: bool) -> None:
        most = self._writing.batch_bytes
        async with self._turn_to_write:
            if most is None:
                for keys in self._manifest.spool.whole_documents():
                    await self._write_pages(keys)
                return
            while (size := self._manifest.spool.total_bytes()) >= most or (everything and size):
                await self._write_pages(self._manifest.spool.to_write(most))

    async def _write_pages(self, keys: Sequence[PageKey]) -> None:
        self._manifest.spool.record_written(keys, await self._writing.write(keys))


def _require_alike(manifest: Manifest, plan: Plan, model: str) -> None:
    """Refuse options under which the folder's embeddings were not made. Without any, each run may choose anew."""
    asked = plan.fixed_options() | {"model": model}
    before = {name: manifest.fact(name) for name in asked}
    if before == asked:
        return
    if manifest.has_embeddings():
        name = next(name for name, value in asked.items() if before[name] != value)
        raise BackfillError(f"{plan.out} was made with {name} {before[name]}, not {asked[name]}: give another folder")
    for name, value in asked.items():
        manifest.set_fact(name, value)
    manifest.retry_failed()  # under the former options


def _write_failures(path: Path, manifest: Manifest) -> None:
    with atomic_write(path) as temporary, temporary.open("w", encoding="utf-8") as lines:
        for failure in manifest.failures():
            lines.write(json.dumps(failure, ensure_ascii=False) + "\n")


def _first(group: BaseExceptionGroup[BaseException]) -> BaseException:
    """Return the first of what ended the tasks."""
    first = group.exceptions[0]
    return _first(first) if isinstance(first, BaseExceptionGroup) else first
