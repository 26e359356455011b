"""Asks the service during a backfill which models it has and how it is."""

import asyncio
import time
from typing import Final

from colqueue_client.backfill.manifest import Manifest
from colqueue_client.backfill.progress import Progress
from colqueue_client.client import AsyncClient
from colqueue_client.errors import BackfillError, UnreachableError
from colqueue_client.status import status_from

__all__ = ["served_model", "watch"]

_SHOW_EVERY_S: Final = 1.0
_ASK_EVERY_S: Final = 5.0


async def served_model(client: AsyncClient, progress: Progress, wanted: str | None = None) -> str:
    """Return the model of the workers, once one is ready; of several, the one that is `wanted`.

    Raises `BackfillError` where the workers have several models and the wanted one is not among them.
    """
    told = False
    while len(models := status_from(await client.metrics()).models) != 1:
        if wanted is not None and wanted in models:
            return wanted
        if models:
            raise BackfillError(f"the workers serve different models: {', '.join(sorted(models))}")
        if not told:
            progress.say("No worker is ready yet; waiting.")
            told = True
        await asyncio.sleep(_SHOW_EVERY_S)
    return models.pop()


async def watch(client: AsyncClient, manifest: Manifest, progress: Progress, model: str) -> None:
    """Show how things stand, and end the run where the workers have other models and none has `model` any more."""
    asked_at, service = -_ASK_EVERY_S, ""
    while True:
        if time.monotonic() - asked_at >= _ASK_EVERY_S:
            asked_at = time.monotonic()
            service = await _service_in_words(client, model)
        progress.show(manifest.counts, service)
        await asyncio.sleep(_SHOW_EVERY_S)


async def _service_in_words(client: AsyncClient, model: str) -> str:
    try:
        readiness = await client.readiness()
    except UnreachableError:
        return "the service does not answer"
    if not readiness.ready:
        return f"the service is not ready: {readiness.reason}"
    status = status_from(await client.metrics())
    if status.models and model not in status.models:
        others = ", ".join(sorted(status.models))
        raise BackfillError(
            f"the service now has {others}, and these pages are of {model}. Give another folder, or start a worker of "
            f"{model} and run the command again."
        )
    return f"{sum(status.queued.values())} tasks queued, {len(status.workers)} worker(s)"
