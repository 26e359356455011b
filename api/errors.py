"""Turns errors into HTTP answers: one table of statuses, one shape of body."""

from collections.abc import Mapping
from typing import Any, Final

import structlog
from fastapi import FastAPI, Request
from fastapi.exceptions import RequestValidationError
from fastapi.responses import JSONResponse, Response
from starlette.exceptions import HTTPException
from starlette.requests import ClientDisconnect

from api.encodings import ENCODINGS
from api.refusals import Refusals
from api.request_ids import REQUEST_ID_HEADER, current_request_id
from shared import errors

__all__ = ["CALLER_GONE", "STATUS", "as_raised", "error_response", "install_error_responses"]

_log = structlog.get_logger(__name__)

_RETRY_AFTER_S: Final = 2
_COME_BACK: Final = {429, 503}

_refusals: Final = Refusals()
_LONGEST_PATH: Final = 200

# The nearest class in an error's ancestry decides.
STATUS: Final[Mapping[type[errors.ColqueueError], int]] = {
    errors.UnauthorizedError: 401,
    errors.ForbiddenError: 403,
    errors.RequestError: 400,
    errors.InvalidJobError: 422,
    errors.UnsupportedBodyError: 415,
    errors.BodyTooSlowError: 408,
    errors.TooLargeError: 413,
    errors.JobNotFoundError: 404,
    errors.ModelNotFoundError: 404,
    errors.JobCancelledError: 409,
    errors.ResultExpiredError: 410,
    errors.ImageInvalidError: 400,
    errors.ImageTooLargeError: 413,
    errors.ImageAspectError: 400,
    errors.TextInvalidError: 400,
    errors.TextTooLongError: 413,
    errors.DeadlineError: 504,
    errors.ModelGoneError: 503,
    errors.InputError: 500,
    errors.QueueFullError: 429,
    errors.RateLimitedError: 429,
    errors.UnavailableError: 503,
    errors.WaitTimeoutError: 504,
    errors.ColqueueError: 500,
}

CALLER_GONE: Final = 499
"""What proxies write of a caller that hung up; nobody is there to read it."""

_INTERNAL: Final = "Internal server error during embedding"


def as_raised(code: str, message: str, index: int) -> errors.InputError:
    """Return the error of one input as the worker raised it, from what the store kept of it."""
    known: dict[str, type[errors.InputError]] = {cls.code: cls for cls in _family(errors.InputError)}
    return known.get(code, errors.InputError)(message, index=index)


def error_response(error: errors.ColqueueError, headers: Mapping[str, str] | None = None) -> Response:
    """Return `{"error", "code"[, "index"]}` with the status of the table."""
    status = next(STATUS[cls] for cls in type(error).__mro__ if cls in STATUS)
    body: dict[str, Any] = {"error": error.message, "code": error.code}
    if error.index is not None:
        body["index"] = error.index
    if isinstance(error, errors.InputError):
        where = "" if error.index is None else f"input {error.index}: "
        body["error"] = _INTERNAL if status == 500 else f"Input processing error: {where}{error.message}"  # noqa: PLR2004
    extra = dict(headers or {})
    if status in _COME_BACK:
        asked_s = getattr(error, "retry_after_s", None) or _RETRY_AFTER_S
        extra.setdefault("Retry-After", str(_refusals.retry_after_s(asked_s)))
    if isinstance(error, errors.UnsupportedEncodingError):
        extra.setdefault("Accept-Encoding", ENCODINGS)  # RFC 9110, 15.5.16
    return JSONResponse(body, status, extra)


def install_error_responses(app: FastAPI) -> None:
    """Make every error that leaves a route, ours or the framework's, answer in the one shape."""

    @app.exception_handler(errors.ColqueueError)
    async def colqueue_error(request: Request, error: errors.ColqueueError) -> Response:
        response = error_response(error)
        _log.info("request.refused", **_asked(request), status=response.status_code, code=error.code)
        return response

    @app.exception_handler(RequestValidationError)
    async def invalid_parameters(_: Request, error: RequestValidationError) -> Response:
        first = error.errors()[0]
        where = ".".join(str(part) for part in first["loc"])
        return error_response(errors.InvalidJobError(f"{where}: {first['msg']}"))

    @app.exception_handler(HTTPException)
    async def framework_error(_: Request, error: HTTPException) -> Response:
        code = {404: "not_found", 405: "method_not_allowed", 413: errors.TooLargeError.code}
        return JSONResponse(
            {"error": str(error.detail), "code": code.get(error.status_code, errors.RequestError.code)},
            error.status_code,
            error.headers,
        )

    @app.exception_handler(ClientDisconnect)
    async def caller_gone(_: Request, __: ClientDisconnect) -> Response:
        return Response(status_code=CALLER_GONE)

    @app.exception_handler(Exception)
    async def unexpected(request: Request, error: Exception) -> Response:
        _log.error("request.failed", **_asked(request), exc_info=error)
        # The framework answers this one outside of all middleware.
        return error_response(errors.ColqueueError(_INTERNAL), {REQUEST_ID_HEADER: current_request_id()})


def _asked(request: Request) -> dict[str, str]:
    """Return what a log line says of a request: a path may be as long as a head."""
    path = request.url.path
    client = request.client.host if request.client else ""
    return {"path": path if len(path) <= _LONGEST_PATH else f"{path[:_LONGEST_PATH]}...", "client": client}


def _family(cls: type[errors.InputError]) -> set[type[errors.InputError]]:
    return {cls, *(member for child in cls.__subclasses__() for member in _family(child))}
