"""Puts the api together."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress
from importlib.metadata import version

from fastapi import FastAPI

from api.announcements import Announcements
from api.answers import Answers
from api.auth import Keys
from api.errors import install_error_responses
from api.limits import BodyLimits
from api.metrics import RequestMetrics
from api.models import Models
from api.outgoing import OpenCalls
from api.patience import Patience
from api.request_ids import RequestIds
from api.routes import documentation, embeddings, jobs, operations
from api.service import Service
from api.settings import ApiSettings
from api.stopping import AnswerWhenStopped
from api.store import Budget, Store
from shared.keep_running import keep_running
from shared.queue import celery_app
from shared.settings import StoreSettings, TokenSettings

__all__ = ["create_app"]


def create_app(settings: ApiSettings, store_settings: StoreSettings) -> FastAPI:
    """Return the ASGI app; it connects to Redis when it starts."""

    @asynccontextmanager
    async def lifespan(app: FastAPI) -> AsyncIterator[None]:
        store = Store(store_settings, _budget(settings), TokenSettings())
        announcements = Announcements(store_settings.redis_dsn)
        answers = Answers(settings.max_answers_bytes)
        app.state.service = Service(
            settings=settings,
            store_settings=store_settings,
            store=store,
            queue=celery_app(store_settings),
            announcements=announcements,
            models=Models(store, preferred=settings.model, gone_after_s=store_settings.model_gone_s),
            answers=answers,
            patience=Patience(),
            calls=OpenCalls(settings.key_max_calls, "This key has too many requests open."),
            waits=OpenCalls(settings.key_max_waits, "This key has too many long-polls and event streams open."),
        )
        reading = asyncio.create_task(keep_running("announcements", announcements.run))
        yield
        reading.cancel()
        with suppress(asyncio.CancelledError):
            await reading
        answers.close()
        await announcements.close()
        await store.close()

    app = FastAPI(
        title="colqueue",
        version=version("colqueue"),
        summary="ColQwen2.5 multi-vectors for page images and queries, behind a queue.",
        lifespan=lifespan,
        # The framework's own pages load their scripts from the internet; `/docs` is a route of ours.
        docs_url=None,
        redoc_url=None,
    )
    app.state.keys = Keys.parse(settings.service_api_key.get_secret_value(), settings.keys_file)
    # From the inside out.
    app.add_middleware(
        BodyLimits,
        max_body_bytes=settings.max_body_bytes,
        max_bodies_bytes=settings.max_bodies_bytes,
        grace_s=settings.body_grace_s,
    )
    app.add_middleware(RequestMetrics)
    app.add_middleware(AnswerWhenStopped)
    app.add_middleware(RequestIds)
    install_error_responses(app)
    for subject in (embeddings, jobs, operations, documentation):
        app.include_router(subject.router)
    return app


def _budget(settings: ApiSettings) -> Budget:
    return Budget(
        max_inputs=settings.queue_max_inputs,
        max_bytes=settings.queue_max_bytes,
        key_max_inputs=settings.key_max_inputs,
        key_per_minute=settings.key_submissions_per_minute,
        interactive_max_tokens=settings.interactive_max_tokens,
    )
