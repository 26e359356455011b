"""The Celery app built at import, for `celery -A shared.celery_entry flower` and such. The parts build their own."""

from shared.queue import celery_app
from shared.settings import StoreSettings

__all__ = ["app"]

app = celery_app(StoreSettings())
