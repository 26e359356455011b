"""Validates what a caller asks for, whatever form of body it came in."""

import base64
import binascii
import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from shared.errors import (
    ImageInvalidError,
    InvalidBodyError,
    InvalidInputTypeError,
    InvalidJobError,
    InvalidTextInputsError,
    TooLargeError,
)
from shared.jobs import InputType, Lane, OutputDtype
from shared.models import ServedModel

__all__ = ["JobOptions", "Limits", "Submission", "read_submission"]

# Base64 takes 4/3; wrapped in lines, or with a data: prefix, a little more.
_BASE64_OVERHEAD: Final = 1.4
_BLANKS: Final = b" \t\r\n\f\v"
# Editors and shells of Windows write it before a text.
_BYTE_ORDER_MARK: Final = "\ufeff"
_LONGEST_MODEL_NAME: Final = 512


@dataclass(frozen=True, slots=True)
class Limits:
    """Beyond these a submission is too large."""

    max_inputs: int
    max_input_bytes: int


class JobOptions(BaseModel):
    """What `POST /jobs` takes beside the inputs."""

    model_config = ConfigDict(frozen=True)

    lane: Lane = Field(
        Lane.BULK, description="interactive jobs are served before bulk ones; one that costs too much goes to bulk"
    )
    output_dtype: OutputDtype | None = Field(None, description="precision of the result; default: the model's own")
    pool_factor: int = Field(1, ge=1, le=1000, description="how many of a page's rows become one; images only")
    deadline_s: float | None = Field(
        None, gt=0, description="seconds from now after which inputs not yet embedded fail with `deadline_exceeded`"
    )


@dataclass(frozen=True, slots=True)
class Submission:
    """Inputs of one kind as the store will hold them: image files, or UTF-8 text."""

    input_type: InputType
    payloads: Sequence[bytes]
    options: JobOptions
    asked_model: str | None = None
    """The name or the id of the model that the request asks for."""
    model: ServedModel | None = None
    """The model that the job is bound to; None: the first that begins it."""

    def fingerprint(self) -> str:
        """Return a SHA-256 of everything that was asked. It takes about 1 s per GB."""
        asked = hashlib.sha256(f"{self.input_type} {self.asked_model or ''} {self.options.model_dump_json()}".encode())
        for payload in self.payloads:
            asked.update(len(payload).to_bytes(8, "big"))
            asked.update(payload)
        return asked.hexdigest()


def read_submission(fields: Mapping[str, Any], limits: Limits, *, with_options: bool) -> Submission | None:
    """Return what the decoded body asks for; None where it has no inputs (whatever its `input_type` says).

    An image is `bytes` (binary forms) or a base64 `str`, with or without a `data:` prefix; a text is a `str`. Errors
    carry the index of the input at fault. Without options, fields of their names are ignored like any other.
    """
    inputs = fields.get("inputs")
    if inputs is None or inputs == []:
        return None
    if not isinstance(inputs, list):
        raise InvalidBodyError("`inputs` must be a list.")
    try:
        input_type = InputType(str(fields.get("input_type")))
    except ValueError:
        raise InvalidInputTypeError("Invalid input_type") from None
    if len(inputs) > limits.max_inputs:
        raise TooLargeError(f"{len(inputs)} inputs are more than the {limits.max_inputs} taken at once: send fewer.")
    read = _image_bytes if input_type is InputType.IMAGE else _text_bytes
    payloads = [read(index, value, limits.max_input_bytes) for index, value in enumerate(inputs)]
    options = _options(fields, input_type) if with_options else JobOptions()
    return Submission(input_type, payloads, options, _model(fields.get("model")))


def _model(value: Any) -> str | None:
    if value is None or value == "":
        return None
    if not isinstance(value, str) or len(value) > _LONGEST_MODEL_NAME:
        raise InvalidBodyError("`model` must be the name or the id of a model.")
    return value


def _options(fields: Mapping[str, Any], input_type: InputType) -> JobOptions:
    try:
        options = JobOptions.model_validate({name: fields[name] for name in JobOptions.model_fields if name in fields})
    except ValidationError as error:
        first = error.errors(include_input=False, include_url=False)[0]
        raise InvalidJobError(f"{'.'.join(map(str, first['loc']))}: {first['msg']}") from None
    if options.pool_factor > 1 and input_type is InputType.TEXT:
        raise InvalidJobError("pool_factor: a query keeps all its rows, only pages are pooled.")
    return options


def _image_bytes(index: int, value: Any, limit: int) -> bytes:
    if isinstance(value, str):
        if len(value) > limit * _BASE64_OVERHEAD + 1024:
            raise _input_too_large(index, limit)
        value = _from_base64(index, value)
    if not isinstance(value, bytes):
        raise ImageInvalidError("an image must be a base64 string.", index=index)
    if len(value) > limit:
        raise _input_too_large(index, limit)
    return value


def _text_bytes(index: int, value: Any, limit: int) -> bytes:
    if not isinstance(value, str):
        raise InvalidTextInputsError("Invalid text inputs", index=index)
    try:
        text = value.removeprefix(_BYTE_ORDER_MARK).encode()
    except UnicodeEncodeError:
        raise InvalidTextInputsError("Invalid text inputs", index=index) from None
    if len(text) > limit:
        raise _input_too_large(index, limit)
    return text


def _from_base64(index: int, text: str) -> bytes:
    text = text.removeprefix(_BYTE_ORDER_MARK)
    if text.startswith("data:"):
        header, comma, text = text.partition(",")
        if not comma or not header.endswith(";base64"):
            raise ImageInvalidError("a data URI must read data:<mime>;base64,<data>.", index=index)
    try:
        return base64.b64decode(text, validate=True)
    except (binascii.Error, ValueError):
        pass
    try:
        # `base64 page.png` wraps its lines. Splitting the text at blanks would make a Python object of each word.
        return base64.b64decode(text.encode("ascii").translate(None, _BLANKS), validate=True)
    except (binascii.Error, ValueError):
        raise ImageInvalidError("this is not base64.", index=index) from None


def _input_too_large(index: int, limit: int) -> TooLargeError:
    return TooLargeError(f"Input {index} is larger than {limit} bytes.", index=index)
