"""`python -m bench.paced_service PORT PAGES_PER_S ROWS`: answers jobs at a set pace, computing nothing. A double.

It stands for a service whose GPUs are elsewhere: what its pages take is time, and none of this machine's cores. Its
embeddings are noise of the right shape. Knows as much of the HTTP surface as a backfill uses.
"""

import asyncio
import sys
import time
import uuid
from dataclasses import dataclass
from typing import Annotated, Any, Final

import msgpack
import numpy as np
import uvicorn
from fastapi import FastAPI, Request
from fastapi.responses import PlainTextResponse, Response

__all__ = ["MODEL", "paced"]

MODEL: Final = "paced-double"

_METRICS: Final = f"""\
colqueue_queue_tasks{{lane="bulk"}} 0
colqueue_worker_ready{{model="{MODEL}",worker="double"}} 1
"""


@dataclass(frozen=True, slots=True)
class _Job:
    pages: int
    ready_at: float


def paced(pages_per_s: float, rows: int) -> FastAPI:
    """Return the application: one job after the other, each page `rows` rows."""
    app, jobs = FastAPI(), dict[str, _Job]()
    noise = np.random.default_rng(0).normal(size=(rows, 128)).astype(np.float16)
    packed = {"dtype": "float16", "shape": list(noise.shape), "data": noise.tobytes()}
    free_at = 0.0

    @app.post("/jobs", status_code=202)
    async def submit(request: Request) -> dict[str, Any]:
        nonlocal free_at
        pages = len(msgpack.unpackb(await request.body())["inputs"])
        free_at = max(free_at, time.monotonic()) + pages / pages_per_s
        job_id = uuid.uuid4().hex
        jobs[job_id] = _Job(pages, free_at)
        return _shown(job_id, jobs[job_id])

    @app.get("/jobs/{job_id}")
    async def read(job_id: str, wait: Annotated[float, "seconds"] = 0) -> dict[str, Any]:
        job = jobs[job_id]
        await asyncio.sleep(max(0.0, min(wait, job.ready_at - time.monotonic())))
        return _shown(job_id, job)

    @app.get("/jobs/{job_id}/result")
    async def result(job_id: str) -> Response:
        body = {"input_type": "image", "embeddings": [packed] * jobs.pop(job_id).pages, "errors": []}
        return Response(msgpack.packb(body), media_type="application/msgpack")

    @app.get("/ready")
    async def ready() -> dict[str, str]:
        return {"status": "ready"}

    @app.get("/metrics")
    async def metrics() -> PlainTextResponse:
        return PlainTextResponse(_METRICS)

    return app


def _shown(job_id: str, job: _Job) -> dict[str, Any]:
    done = job.ready_at <= time.monotonic()
    return {
        "id": job_id,
        "status": "completed" if done else "running",
        "input_type": "image",
        "lane": "bulk",
        "total": job.pages,
        "completed": job.pages if done else 0,
        "failed": 0,
        "created_at": "2026-01-01T00:00:00Z",
        "started_at": None,
        "finished_at": None,
        "expires_at": "2026-01-02T00:00:00Z",
    }


if __name__ == "__main__":
    port, pace, rows = sys.argv[1:]
    uvicorn.run(paced(float(pace), int(rows)), port=int(port), log_level="error")
