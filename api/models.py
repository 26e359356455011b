"""Choose the model of each new job, from what the workers have announced."""

import asyncio
import time

from api.store import Store
from shared.errors import ModelNotFoundError
from shared.models import KnownModel, choose_model

__all__ = ["Models"]

_REREAD_S = 1.0


class Models:
    """The known models, read again after a second: so choosing costs a query no round trip of its own."""

    def __init__(self, store: Store, *, preferred: str, gone_after_s: float) -> None:
        self._store = store
        self._preferred = preferred
        self._gone_after_s = gone_after_s
        self._known: list[KnownModel] = []
        self._now = 0.0
        self._read_at = -_REREAD_S
        self._reading = asyncio.Lock()

    async def choose(self, asked: str | None) -> KnownModel | None:
        """Return the model that a new job is bound to; None where no worker has ever been ready.

        Raises `ModelNotFoundError` where no worker serves the model `asked` for.
        """
        asked_at = time.monotonic()
        await self._read_unless_newer(asked_at - _REREAD_S)
        try:
            return self._choose(asked)
        except ModelNotFoundError:  # a worker may have announced it since the last look
            await self._read_unless_newer(asked_at)
            return self._choose(asked)

    async def _read_unless_newer(self, than: float) -> None:
        async with self._reading:
            if self._read_at <= than or not self._known:
                self._now, self._known = await self._store.known_models()
                self._read_at = time.monotonic()

    def _choose(self, asked: str | None) -> KnownModel | None:
        return choose_model(
            self._known, asked=asked, preferred=self._preferred, gone_after_s=self._gone_after_s, now=self._now
        )
