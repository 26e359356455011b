"""Describes, for the OpenAPI document, the bodies that the routes read themselves."""

from typing import Annotated, Any, Final, Literal

from pydantic import BaseModel, Field

from api.answers import JSON, MSGPACK, NPZ
from api.submission import JobOptions
from shared.jobs import InputFailure, InputType, Job

__all__ = [
    "ACCEPTED",
    "EMBEDDINGS_BODY",
    "EMBEDDINGS_RESPONSES",
    "EVENTS_RESPONSES",
    "JOBS_RESPONSES",
    "JOB_BODY",
    "METRICS_RESPONSES",
    "READY_RESPONSES",
    "RESULT_RESPONSES",
    "THIS_JOB_RESPONSES",
    "JobList",
]

Vector = Annotated[list[float], Field(min_length=128, max_length=128)]
Signs = Annotated[list[Annotated[int, Field(ge=0, le=255)]], Field(min_length=16, max_length=16)]


class EmbeddingsRequest(BaseModel):
    """Inputs of one kind."""

    input_type: InputType
    inputs: list[str] = Field(description="images: base64, with or without `data:<mime>;base64,`; texts: the queries")
    model: str | None = Field(None, description="name or id of the model; default: the one that the service prefers")


class JobRequest(EmbeddingsRequest, JobOptions):
    """Inputs of one kind, and how to treat them."""


class Embeddings(BaseModel):
    """One multi-vector an input, in the order of the inputs."""

    embeddings: list[list[Vector]]


class JobResult(BaseModel):
    """One multi-vector an input, `null` where it failed, and why. 16 bytes a row where `output_dtype` is `binary`."""

    embeddings: list[list[Vector] | list[Signs] | None]
    errors: list[InputFailure]


class Problem(BaseModel):
    """Every error."""

    error: str
    code: str
    index: int | None = Field(None, description="the input at fault, where one is")


class JobList(BaseModel):
    """One page of jobs, newest first; `next` is the `after` of the following page."""

    jobs: list[Job]
    next: str | None


class Readiness(BaseModel):
    """Whether a job sent now would be embedded."""

    status: Literal["ready", "not_ready"]
    reason: str | None = Field(None, description="why not")
    waiting: list[str] = Field([], description="what waits for a model that no worker serves")


def _body(model: type[BaseModel]) -> dict[str, Any]:
    schema = model.model_json_schema(ref_template="#/components/schemas/{model}")
    definitions = schema.pop("$defs", {})
    text = _inline(schema, definitions)
    file = {"type": "string", "format": "binary", "description": "images as they are, or texts"}
    binary = text | {"properties": text["properties"] | {"inputs": {"type": "array", "items": file}}}
    content = {JSON: text, MSGPACK: binary, "multipart/form-data": binary}
    return {
        "requestBody": {"required": True, "content": {form: {"schema": schema} for form, schema in content.items()}}
    }


def _inline(schema: Any, definitions: dict[str, Any]) -> Any:
    if isinstance(schema, dict):
        if "$ref" in schema:
            return _inline(definitions[schema["$ref"].rpartition("/")[2]], definitions)
        return {name: _inline(value, definitions) for name, value in schema.items()}
    if isinstance(schema, list):
        return [_inline(value, definitions) for value in schema]
    return schema


def _problems(**statuses: str) -> dict[int | str, dict[str, Any]]:
    return {int(status[1:]): {"model": Problem, "description": text} for status, text in statuses.items()}


def _embeddings(model: type[BaseModel]) -> dict[int | str, dict[str, Any]]:
    binary = {"schema": {"type": "string", "format": "binary"}}
    return {200: {"model": model, "content": {NPZ: binary, MSGPACK: binary}}}


def _as_json(responses: dict[int | str, dict[str, Any]]) -> dict[int | str, dict[str, Any]]:
    """Say that these are JSON, for a route whose own answer is something else: FastAPI would take them for the same."""
    return {
        status: {"description": told["description"], "content": {JSON: {"schema": told["model"].model_json_schema()}}}
        for status, told in responses.items()
    }


_LATER: Final = "Try again after `Retry-After` seconds"
_ASKED: Final = _problems(_401="No key given, or none configured", _403="Wrong key", _503=_LATER)
_SUBMITTED: Final = _ASKED | _problems(
    _400="An input or the body cannot be read",
    _404="No worker serves the model that the request names",
    _408="The body came too slowly",
    _413="Over a limit: send less at once",
    _415="Content type or content encoding not understood",
    _429="The queue is full, or this key is over its limits: try again after `Retry-After` seconds",
)
_INVALID: Final = _problems(_422="A parameter or an option breaks the schema")

EMBEDDINGS_BODY: Final = _body(EmbeddingsRequest)
JOB_BODY: Final = _body(JobRequest)
EMBEDDINGS_RESPONSES: Final = (
    _embeddings(Embeddings)
    | _SUBMITTED
    | _problems(_500="The model failed", _504="Not ready in time: the job goes on at `Location`")
)
JOBS_RESPONSES: Final = _ASKED | _INVALID
THIS_JOB_RESPONSES: Final = _problems(_404="No such job")
EVENTS_RESPONSES: Final = _as_json(JOBS_RESPONSES | THIS_JOB_RESPONSES)
RESULT_RESPONSES: Final = (
    _embeddings(JobResult)
    | THIS_JOB_RESPONSES
    | {202: {"model": Job, "description": "Not finished"}}
    | _problems(_409="The job was cancelled", _410="No longer kept")
)
ACCEPTED: Final = _SUBMITTED | _INVALID
READY_RESPONSES: Final[dict[int | str, dict[str, Any]]] = {
    200: {"model": Readiness},
    503: {"model": Readiness, "description": "not ready, and why"},
}
METRICS_RESPONSES: Final = _as_json(_ASKED) | {
    200: {"description": "Prometheus's text format", "content": {"text/plain": {}}}
}
