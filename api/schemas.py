"""What the OpenAPI document says of bodies that the routes read themselves. Knows documentation only."""

from typing import Annotated, Any, Final

from pydantic import BaseModel, Field

from api.answers import JSON, MSGPACK, NPZ
from api.submission import JobOptions
from shared.jobs import InputFailure, InputType, Job

__all__ = ["ACCEPTED", "EMBEDDINGS_BODY", "EMBEDDINGS_RESPONSES", "JOB_BODY", "RESULT_RESPONSES", "JobList"]

Vector = Annotated[list[float], Field(min_length=128, max_length=128)]
Signs = Annotated[list[Annotated[int, Field(ge=0, le=255)]], Field(min_length=16, max_length=16)]


class EmbeddingsRequest(BaseModel):
    """Inputs of one kind."""

    input_type: InputType
    inputs: list[str] = Field(description="images: base64, with or without `data:<mime>;base64,`; texts: the queries")


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


def _body(model: type[BaseModel]) -> dict[str, Any]:
    schema = model.model_json_schema(ref_template="#/components/schemas/{model}")
    definitions = schema.pop("$defs", {})
    inlined = _inline(schema, definitions)
    return {"requestBody": {"required": True, "content": {JSON: {"schema": inlined}, MSGPACK: {"schema": inlined}}}}


def _inline(schema: Any, definitions: dict[str, Any]) -> Any:
    if isinstance(schema, dict):
        if "$ref" in schema:
            return _inline(definitions[schema["$ref"].rpartition("/")[2]], definitions)
        return {name: _inline(value, definitions) for name, value in schema.items()}
    if isinstance(schema, list):
        return [_inline(value, definitions) for value in schema]
    return schema


def _responses(model: type[BaseModel], statuses: dict[int, str]) -> dict[int | str, dict[str, Any]]:
    binary = {"schema": {"type": "string", "format": "binary"}}
    return {
        200: {"model": model, "content": {NPZ: binary, MSGPACK: binary}},
        **{status: {"model": Problem, "description": text} for status, text in statuses.items()},
    }


_REFUSED: Final = {
    400: "An input or the body cannot be read",
    401: "No key given, or none configured",
    403: "Wrong key",
    408: "The body came too slowly",
    413: "Over a limit: send less at once",
    415: "Content type not understood",
    429: "The queue is full, or this key is over its limits: try again after `Retry-After` seconds",
    503: "Try again after `Retry-After` seconds",
}

EMBEDDINGS_BODY: Final = _body(EmbeddingsRequest)
JOB_BODY: Final = _body(JobRequest)
EMBEDDINGS_RESPONSES: Final = _responses(
    Embeddings, {**_REFUSED, 500: "The model failed", 504: "Not ready in time: the job goes on at `Location`"}
)
RESULT_RESPONSES: Final = _responses(
    JobResult, {404: "No such job", 409: "The job was cancelled", 410: "No longer kept"}
)
ACCEPTED: Final[dict[int | str, dict[str, Any]]] = {
    status: {"model": Problem, "description": text}
    for status, text in {**_REFUSED, 422: "The job's options break the schema"}.items()
}
