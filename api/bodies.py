"""Turns HTTP bodies (JSON, msgpack, multipart) into plain fields."""

import codecs
import itertools
from collections.abc import Mapping
from functools import partial
from http import HTTPStatus
from typing import Any, TypeVar

import msgpack
import orjson
from fastapi import Request
from fastapi.concurrency import run_in_threadpool
from starlette.datastructures import FormData, UploadFile
from starlette.exceptions import HTTPException
from starlette.formparsers import MultiPartException

from api.submission import Limits, Submission, read_submission
from shared.errors import InvalidBodyError, RequestError, TooLargeError, UnsupportedBodyError

__all__ = ["submission_of"]

# Below this a thread costs more than it spares the event loop.
_SMALL_BYTES = 16_384

# Each list, object and value takes some 60 bytes of memory however few it has in the body, so a body of little else
# would take 20 times its size. Base64 text contains no `[`, `{` or `,`; in other texts a comma counts as well.
_MOST_PIECES = 1_000_000
# Where they cannot be counted beforehand: lists and objects, and how much each may hold at most.
_MOST_NESTED = 100

T = TypeVar("T")


async def submission_of(request: Request, limits: Limits, *, with_options: bool) -> Submission | None:
    """Read and validate a request's body; None where it holds no inputs."""
    read = partial(read_submission, limits=limits, with_options=with_options)
    content_type = request.headers.get("content-type", "application/json").partition(";")[0].strip().lower()
    if content_type == "multipart/form-data":
        # One more of each than is allowed, so that too many inputs are refused as such.
        many = limits.max_inputs + 8
        try:
            async with request.form(max_files=many, max_fields=many, max_part_size=2 * limits.max_input_bytes) as form:
                fields = await _form_fields(form)
        except (HTTPException, MultiPartException) as error:
            raise _form_refused(error) from None
        return await run_in_threadpool(read, fields)
    if content_type == "application/json" or content_type.endswith("+json"):
        decode = _json_fields
    elif content_type in ("application/msgpack", "application/x-msgpack", "application/vnd.msgpack"):
        decode = _msgpack_fields
    else:
        raise UnsupportedBodyError(
            "Send application/json, application/msgpack or multipart/form-data (with curl: -H 'Content-Type: "
            "application/json')."
        )
    # Not `request.body()`, which keeps it for as long as the caller waits.
    body = b"".join([chunk async for chunk in request.stream()])
    if len(body) < _SMALL_BYTES:
        return read(decode(body))
    return await run_in_threadpool(lambda: read(decode(body)))


def _json_fields(body: bytes) -> Mapping[str, Any]:
    if sum(map(body.count, (b"[", b"{", b","))) > _MOST_PIECES:
        raise _too_many_pieces()
    try:
        return _object(orjson.loads(memoryview(body)[3:] if body.startswith(codecs.BOM_UTF8) else body))
    except orjson.JSONDecodeError as error:
        # Only the driver's own words about the position: its exception also holds the document.
        raise InvalidBodyError(f"The body is not valid JSON: {error.msg}.") from None


def _msgpack_fields(body: bytes) -> Mapping[str, Any]:
    nested = itertools.count(1)

    def counted(container: T) -> T:
        if next(nested) > _MOST_NESTED:
            raise _too_many_pieces()
        return container

    most = _MOST_PIECES // _MOST_NESTED
    try:
        return _object(
            msgpack.unpackb(
                body, list_hook=counted, object_hook=counted, max_array_len=most, max_map_len=most, max_ext_len=16
            )
        )
    except (ValueError, msgpack.UnpackException) as error:
        if "exceeds max_" in str(error):
            raise _too_many_pieces() from None
        raise InvalidBodyError("The body is not valid msgpack.") from None


def _too_many_pieces() -> TooLargeError:
    return TooLargeError(f"The body has more than {_MOST_PIECES} pieces, or too many in one: send fewer inputs.")


def _object(value: Any) -> Mapping[str, Any]:
    if not isinstance(value, dict):
        raise InvalidBodyError('The body must be an object: {"input_type": ..., "inputs": [...]}.')
    return value


def _form_refused(error: HTTPException | MultiPartException) -> RequestError:
    said = error.detail if isinstance(error, HTTPException) else error.message
    if isinstance(error, HTTPException) and error.status_code == HTTPStatus.REQUEST_ENTITY_TOO_LARGE:
        return TooLargeError(said)
    # The parser tells its limits and its syntax errors apart by their words only.
    over_a_limit = said.startswith(("Too many", "Part exceeded"))
    return TooLargeError(said) if over_a_limit else InvalidBodyError(f"The form cannot be read: {said}")


async def _form_fields(form: FormData) -> Mapping[str, Any]:
    """Return the form's fields; `inputs` may be repeated, as files or as text fields."""
    fields: dict[str, Any] = {name: value for name, value in form.items() if isinstance(value, str)}
    fields["inputs"] = [
        await value.read() if isinstance(value, UploadFile) else value for value in form.getlist("inputs")
    ]
    return fields
