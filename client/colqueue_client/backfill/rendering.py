"""Ask the render processes about documents: with the plan's options and with the passwords that lists name."""

import os
from collections.abc import Iterable, Iterator, Sequence
from typing import Any

from colqueue_client.backfill.plan import Plan
from colqueue_client.backfill.records import Document
from colqueue_client.backfill.renderers import RenderDiedError, Renderers
from colqueue_client.backfill.sources import Found

__all__ = ["Rendering"]


class Rendering:
    """Opens and renders a backfill's documents in the processes of `renderers`.

    Passwords are kept in memory only, and reach the render processes through their stdin.
    """

    def __init__(self, renderers: Renderers, plan: Plan) -> None:
        self._renderers = renderers
        self._dpi = plan.dpi
        self._passwords = list(plan.passwords)
        self._password_of: dict[str, str] = {}
        self._limits = dict(plan.limits)

    def note_passwords(self, found: Iterable[Found]) -> Iterator[Found]:
        """Yield what is found, and remember the passwords that a list has for its files."""
        for file in found:
            if file.password:
                self._password_of[file.path] = file.password
            yield file

    async def open(self, document: Document) -> dict[str, Any]:
        """Return the render process's answer to opening the document, also where it died of that."""
        try:
            answer: dict[str, Any] = await self._renderers.ask(self._task(document))
        except RenderDiedError as error:
            return {"failure": ("render_crashed", str(error))}
        return answer

    async def render(self, document: Document, pages: Sequence[int]) -> dict[str, Any]:
        """Return the render process's answer to rendering these pages; RenderDiedError where it died of them."""
        task = self._task(document) | {"signature": document.signature, "pages": list(pages), "dpi": self._dpi}
        answer: dict[str, Any] = await self._renderers.ask(task)
        return answer

    def _task(self, document: Document) -> dict[str, Any]:
        own = self._password_of.get(document.path)
        return {
            "path": os.fsencode(document.path),  # it need not be text
            "kind": document.kind,
            "passwords": [*([own] if own else []), *self._passwords],
            "limits": self._limits,
        }
