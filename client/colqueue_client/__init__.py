"""The client of a running colqueue, and what starts one on this machine.

>>> from pathlib import Path
>>> from colqueue_client import Client, maxsim
>>> with Client() as colqueue:  # COLQUEUE_URL and SERVICE_API_KEY say which service and which key
...     pages = colqueue.embed_images([Path("page.png")])
...     (query,) = colqueue.embed_queries(["In which month was the most water delivered?"])
...     job = colqueue.submit(images=[Path("page.png"), b"no image"])
...     result = colqueue.result(colqueue.wait(job))
>>> pages[0].shape
(747, 128)
>>> maxsim(query, pages[0]) > 0
True
>>> [(failure.index, failure.code) for failure in result.failures]
[(1, 'image_invalid')]

Every call comes as `AsyncClient`'s too, to be awaited. `load` reads what `colqueue backfill` has written.
"""

from colqueue_client.backfill.load import Backfill, load
from colqueue_client.calls import Readiness, Retry
from colqueue_client.client import AsyncClient, Client
from colqueue_client.errors import (
    BackfillError,
    ClientError,
    InputFailedError,
    ServiceError,
    UnfinishedError,
    UnreachableError,
)
from colqueue_client.maxsim import as_float32, maxsim
from colqueue_client.streams import Outcome
from colqueue_client.wire import Job, JobResult, Options

__all__ = [
    "AsyncClient",
    "Backfill",
    "BackfillError",
    "Client",
    "ClientError",
    "InputFailedError",
    "Job",
    "JobResult",
    "Options",
    "Outcome",
    "Readiness",
    "Retry",
    "ServiceError",
    "UnfinishedError",
    "UnreachableError",
    "as_float32",
    "load",
    "maxsim",
]
