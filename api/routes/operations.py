"""The routes for operators: `/health`, `/ready` and `/metrics`."""

from fastapi import APIRouter
from fastapi.concurrency import run_in_threadpool
from fastapi.responses import JSONResponse, PlainTextResponse, Response
from prometheus_client.exposition import CONTENT_TYPE_LATEST

from api.auth import Owner
from api.metrics import exposition
from api.routes.service import TheService
from api.schemas import METRICS_RESPONSES, READY_RESPONSES
from api.service import Service
from shared.errors import StoreRefusedError, StoreUnavailableError
from shared.models import SILENT_AFTER_S

__all__ = ["router"]

router = APIRouter(tags=["operations"])


@router.get("/health")
async def health() -> dict[str, str]:
    """Answer while the process lives; says nothing of Redis or the workers."""
    return {"status": "ok"}


@router.get("/ready", responses=READY_RESPONSES)
async def ready(service: TheService) -> Response:
    """Say whether a job sent now would be embedded, and why not."""
    try:
        reason, waiting = await _reason_not_ready(service), await _waiting(service)
    except StoreRefusedError:
        reason, waiting = "Redis refuses the user or the password in COLQUEUE_REDIS_URL.", {}
    except StoreUnavailableError:
        reason, waiting = "Redis does not answer.", {}
    if reason is None:
        return JSONResponse({"status": "ready"} | waiting)
    return JSONResponse({"status": "not_ready", "reason": reason} | waiting, 503, {"Retry-After": "2"})


@router.get("/metrics", response_class=PlainTextResponse, responses=METRICS_RESPONSES)
async def metrics(owner: Owner, service: TheService) -> Response:
    """Return Prometheus metrics of this api process, the queues and the workers. Needs a key."""
    del owner
    workers = await service.store.workers(SILENT_AFTER_S)
    # Other callers do not wait while the text is written.
    text = await run_in_threadpool(exposition, await service.store.backlogs(), workers)
    return Response(text, media_type=CONTENT_TYPE_LATEST)


async def _waiting(service: Service) -> dict[str, list[str]]:
    """Return the sentences about work that waits for a model without a worker."""
    waiting = await service.store.waiting_for_models()
    said = [
        f"{inputs} inputs wait for the model {model.name} ({model.model_id}), which no worker serves."
        for model, inputs in waiting.items()
    ]
    return {"waiting": said} if said else {}


async def _reason_not_ready(service: Service) -> str | None:
    workers = await service.store.workers(SILENT_AFTER_S)
    states = {facts["state"] for facts in workers.values()}
    if "ready" in states:
        return None
    for facts in workers.values():
        if facts["state"] in {"loading", "not_reading"}:
            return f"No worker is ready yet: {facts.get('reason', '')}."
    for facts in workers.values():
        return f"The worker cannot serve its model: {facts.get('reason', '')}"
    return "No worker is running."
