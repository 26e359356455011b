"""Open the documents of a backfill, and settle those that changed, moved or went away before pages are embedded."""

import asyncio
from collections.abc import Awaitable, Callable, Collection, Sequence
from typing import Any, Final

from colqueue_client.backfill.gone import THERE, state_of
from colqueue_client.backfill.manifest import UNREADABLE, Manifest
from colqueue_client.backfill.plan import Plan
from colqueue_client.backfill.records import Document
from colqueue_client.backfill.rendering import Rendering
from colqueue_client.backfill.writing import Writing
from colqueue_client.errors import BackfillError

__all__ = ["Documents"]

# Documents opened at a time; their pages are counted while others are rendered.
_OPENED_AT_ONCE: Final = 2


class Documents:
    """Opens documents in the render processes, and keeps manifest and output right about them."""

    def __init__(self, plan: Plan, manifest: Manifest, writing: Writing, rendering: Rendering) -> None:
        self._plan = plan
        self._manifest = manifest
        self._writing = writing
        self._rendering = rendering

    async def settle(self, roots: Collection[str], write: Callable[[], Awaitable[None]]) -> None:
        """Let pages leave the output that are no longer true, and take over those of renamed documents.

        `roots` are the folders this run has looked into; `write` writes what is collected. After it, no page of a
        document's new content is in the output beside one of its old content.
        """
        await self._writing.remove_leaving()  # of a run that was killed
        await self._settle_changed()
        await self._record_absent(roots)
        if self._manifest.departures.count_absent():
            await self._settle_renamed(write)
        if self._plan.prune:
            self._manifest.departures.begin_pruning()
        await self._writing.remove_leaving()
        self._manifest.recount()

    async def open_all(self, note_progress: Callable[[], None], is_enough: Callable[[], bool]) -> None:
        """Open every new document, until `is_enough`; call `note_progress` after each."""

        async def open_one(document: Document) -> None:
            if not is_enough():
                self._record_opened(document, await self._rendering.open(document))
                note_progress()

        while not is_enough() and (documents := self._manifest.documents("new")):
            await _gather(documents, open_one)

    async def _settle_changed(self) -> None:
        while documents := self._manifest.documents("changed"):
            opened = await _gather(documents, self._rendering.open)
            answers = list(zip(documents, opened, strict=True))
            different = [(one, answer) for one, answer in answers if answer.get("sha256", one.sha256) != one.sha256]
            for document, _ in different:
                self._require_same_root(document)
            self._manifest.departures.begin_removal(document.id for document, _ in different)
            await self._writing.remove_leaving()
            for document, answer in different:
                self._record_opened(document, answer)
            for document, answer in answers:
                if "sha256" not in answer:  # it could not be read: nothing says that its pages are wrong
                    self._manifest.record_unreadable(document.id, answer["failure"])
                elif answer["sha256"] == document.sha256:
                    self._manifest.record_unchanged(document, answer["signature"])

    def _require_same_root(self, document: Document) -> None:
        if document.root in {"", document.found_root} or self._plan.moved:
            return
        raise BackfillError(
            f"{self._plan.out} holds {document.name} of {document.root}, and {document.found_root} has another file of "
            "that name. Nothing was replaced. Name a folder above both as the source, or give another --out; or, where "
            "the first folder has become the second, run again with --moved"
        )

    async def _record_absent(self, roots: Collection[str]) -> None:
        """Find out what became of the documents of earlier runs below `roots` that this run has not found."""
        after = 0
        while unseen := self._manifest.departures.next_missing(roots, after):
            states = await asyncio.to_thread(_states_of, unseen)
            self._manifest.departures.record_absent(
                (document, state) for (document, *_), state in zip(unseen, states, strict=True) if state != THERE
            )
            after = unseen[-1][0]

    async def _settle_renamed(self, write: Callable[[], Awaitable[None]]) -> None:
        """Give new documents the pages of absent ones of the same content; they are not embedded again."""
        while documents := self._manifest.documents("new"):
            for document, answer in zip(documents, await _gather(documents, self._rendering.open), strict=True):
                sha256, pages = answer.get("sha256", ""), answer.get("pages", 0)
                before = self._manifest.departures.find_absent(document.kind, sha256, pages)
                if before is None:
                    self._record_opened(document, answer)
                    continue
                rows = self._writing.read(before)
                if not self._manifest.departures.take_over(document, before, answer["signature"], pages, rows):
                    self._record_opened(document, answer)
                await write()

    def _record_opened(self, document: Document, answer: dict[str, Any]) -> None:
        sha256, now = answer.get("sha256", ""), answer.get("signature", document.signature)
        if "failure" in answer:
            code, message = answer["failure"]
            # What could not be read is looked at again by the next run.
            self._manifest.record_refused(document, "" if code == UNREADABLE else now, (code, message))
        else:
            self._manifest.record_opened(document, sha256, now, answer["pages"])


def _states_of(documents: Sequence[tuple[int, str, str]]) -> list[str]:
    return [state_of(path, root) for _, path, root in documents]


async def _gather(documents: Sequence[Document], do: Callable[[Document], Awaitable[Any]]) -> list[Any]:
    """Return what `do` makes of each document, a few at a time."""
    turn = asyncio.Semaphore(_OPENED_AT_ONCE)

    async def in_turn(document: Document) -> Any:
        async with turn:
            return await do(document)

    async with asyncio.TaskGroup() as tasks:
        started = [tasks.create_task(in_turn(document)) for document in documents]
    return [task.result() for task in started]
