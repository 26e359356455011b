"""Runs one process of the api: `python -m api`. Any number of them serve the same jobs."""

import structlog
import uvicorn

from api.app import create_app
from api.protocol import ImpatientProtocol
from api.repeats import Repeats
from api.settings import ApiSettings
from shared.logs import configure_logs
from shared.settings import LogSettings, StoreSettings

__all__ = ["main"]


def main() -> None:
    """Serve until told to stop; callers that wait then get a while to be answered."""
    settings, store_settings = ApiSettings(), StoreSettings()
    configure_logs(LogSettings(), [Repeats()])
    if not settings.service_api_key.get_secret_value() and settings.keys_file is None:
        structlog.get_logger("api").warning(
            "Neither SERVICE_API_KEY nor COLQUEUE_KEYS_FILE is set: every request will be answered 401"
        )
    uvicorn.run(
        create_app(settings, store_settings),
        host=settings.host,
        port=settings.port,
        log_config=None,
        access_log=False,
        http=ImpatientProtocol,
        timeout_graceful_shutdown=settings.stop_grace_s,
        server_header=False,
    )


if __name__ == "__main__":
    main()
