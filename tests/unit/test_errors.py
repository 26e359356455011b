import asyncio
import json
import re
from contextlib import suppress

import pytest
from fastapi import FastAPI
from pydantic import BaseModel
from structlog.testing import capture_logs

from api.errors import STATUS, as_raised, error_response, install_error_responses
from api.refusals import Refusals
from shared import errors

ALL = [getattr(errors, name) for name in errors.__all__]
INPUT_ERRORS = [cls for cls in ALL if issubclass(cls, errors.InputError)]


def drawn_tree():
    """Each name in the module docstring's tree with its parent's."""
    parents, path = {}, {0: "ColqueueError"}
    for line in errors.__doc__.splitlines():
        if found := re.match(r"([│ ]*)[├└]── (\w+)", line):
            depth = 1 + len(found[1]) // 4
            path[depth] = found[2]
            parents[found[2]] = path[depth - 1]
    return parents


def answered(error, **options):
    response = error_response(error, **options)
    return response.status_code, json.loads(response.body), response.headers


async def called(app, method="GET", path="/", body=b"{}"):
    """The app's answer to one request: status, headers, body."""
    scope = {"type": "http", "method": method, "path": path, "raw_path": path.encode(), "query_string": b""}
    scope |= {"headers": [(b"content-type", b"application/json")], "http_version": "1.1", "scheme": "http"}
    sent = []

    async def receive():
        return {"type": "http.request", "body": body, "more_body": False}

    async def send(message):
        sent.append(message)

    with suppress(ZeroDivisionError):  # starlette answers, then raises again for the server's log
        await app(scope, receive, send)
    return sent[0]["status"], dict(sent[0]["headers"]), b"".join(message.get("body", b"") for message in sent[1:])


@pytest.fixture
def app():
    app = FastAPI()
    install_error_responses(app)
    return app


def test_every_class_of_the_tree_is_public():
    assert {value for value in vars(errors).values() if isinstance(value, type)} == set(ALL)
    assert all(issubclass(cls, errors.ColqueueError) for cls in ALL)


def test_every_class_has_a_code_of_its_own():
    assert all("code" in vars(cls) for cls in ALL)
    assert len({cls.code for cls in ALL}) == len(ALL)
    assert all(re.fullmatch("[a-z]+(_[a-z]+)*", cls.code) for cls in ALL)


def test_the_docstring_draws_the_tree_as_it_is():
    assert drawn_tree() == {cls.__name__: cls.__base__.__name__ for cls in ALL if cls is not errors.ColqueueError}


@pytest.mark.parametrize("cls", ALL)
def test_every_class_answers_with_its_own_code_and_an_error_status(cls):
    status, body, _ = answered(cls("what happened"))
    assert body["code"] == cls.code
    assert 400 <= status < 600
    assert set(body) == {"error", "code"}


def test_every_class_of_the_status_table_exists_and_decides_for_its_children():
    assert set(STATUS) <= set(ALL)
    assert answered(errors.StoreFullError("full"))[0] == 503
    assert answered(errors.DeviceMemoryError("too big"))[0] == 500
    assert answered(errors.InvalidBodyError("odd"))[0] == 400


@pytest.mark.parametrize(
    ("error", "status", "sentence"),
    [
        (errors.UnauthorizedError("Unauthorized"), 401, "Unauthorized"),
        (errors.ForbiddenError("Forbidden"), 403, "Forbidden"),
        (errors.InvalidInputTypeError("Invalid input_type"), 400, "Invalid input_type"),
        (errors.InvalidTextInputsError("Invalid text inputs", index=3), 400, "Invalid text inputs"),
        (errors.ImageInvalidError("odd bytes", index=3), 400, "Input processing error: input 3: odd bytes"),
        (errors.ImageAspectError("too long", index=0), 400, "Input processing error: input 0: too long"),
        (errors.ModelError("CUDA said this", index=3), 500, "Internal server error during embedding"),
        (errors.InputError("a fault of ours", index=3), 500, "Internal server error during embedding"),
    ],
)
def test_the_sentences_of_the_old_contract_are_kept(error, status, sentence):
    assert answered(error)[:2] == (
        status,
        {"error": sentence, "code": error.code} | ({} if error.index is None else {"index": error.index}),
    )


@pytest.mark.parametrize(
    ("cls", "status"),
    [
        (errors.TooLargeError, 413),
        (errors.ImageTooLargeError, 413),
        (errors.TextTooLongError, 413),
        (errors.BodyTooSlowError, 408),
        (errors.QueueFullError, 429),
        (errors.RateLimitedError, 429),
        (errors.BusyError, 503),
        (errors.UnsupportedBodyError, 415),
        (errors.InvalidJobError, 422),
        (errors.JobNotFoundError, 404),
        (errors.ResultExpiredError, 410),
        (errors.StoreUnavailableError, 503),
        (errors.StoreFullError, 503),
        (errors.WaitTimeoutError, 504),
    ],
)
def test_the_statuses_that_callers_act_on(cls, status):
    assert answered(cls("why"))[0] == status


@pytest.mark.parametrize("cls", ALL)
def test_a_caller_is_told_when_to_come_back_exactly_where_it_may(cls):
    status, _, headers = answered(cls("why"))
    assert ("retry-after" in headers) == (status in {429, 503})


def test_a_wait_that_is_known_is_told(monkeypatch):
    monkeypatch.setattr("api.errors._refusals", Refusals())
    assert answered(errors.QueueFullError("full", retry_after_s=17))[2]["retry-after"] == "17"


def test_headers_given_are_answered_and_win():
    _, _, headers = answered(errors.StoreFullError("full"), headers={"Location": "/jobs/1", "Retry-After": "9"})
    assert headers["location"] == "/jobs/1"
    assert headers["retry-after"] == "9"


@pytest.mark.parametrize("cls", INPUT_ERRORS)
def test_an_inputs_error_is_the_same_after_the_store(cls):
    raised = cls("why")
    again = as_raised(raised.code, raised.message, 7)
    assert (type(again), again.message, again.index) == (cls, "why", 7)


def test_an_inputs_error_of_a_newer_worker_is_an_input_error():
    assert type(as_raised("not_known_here", "why", 0)) is errors.InputError


def test_a_path_or_method_that_does_not_exist_answers_in_our_shape(app):
    app.get("/there")(lambda: None)
    status, _, body = asyncio.run(called(app, path="/nowhere"))
    assert (status, json.loads(body)["code"]) == (404, "not_found")
    status, _, body = asyncio.run(called(app, "DELETE", "/there"))
    assert (status, json.loads(body)["code"]) == (405, "method_not_allowed")


def test_an_unexpected_exception_answers_the_contracts_sentence_and_nothing_of_itself(app):
    @app.get("/")
    async def fails():
        return 1 / 0

    with capture_logs() as logs:
        status, _, body = asyncio.run(called(app))
    assert status == 500
    assert json.loads(body) == {"error": "Internal server error during embedding", "code": "internal_error"}
    assert [entry["event"] for entry in logs] == ["request.failed"]


def test_a_body_that_breaks_a_schema_is_not_echoed(app):
    class Body(BaseModel):
        count: int

    @app.post("/")
    async def takes(body: Body):
        return body

    status, _, body = asyncio.run(called(app, "POST", body=b'{"count": "PAYLOAD"}'))
    assert status == 422
    assert json.loads(body)["code"] == "invalid_job"
    assert b"PAYLOAD" not in body
    assert b"count" in body
