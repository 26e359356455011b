"""What the OpenAPI document says is what the api does, whatever is sent: cases made from that very document."""

import msgpack
import pytest
import requests
import schemathesis
from hypothesis import HealthCheck, given, settings, strategies
from schemathesis import GenerationMode
from schemathesis.specs.openapi.checks import (
    content_type_conformance,
    response_schema_conformance,
    status_code_conformance,
)
from stack import KEY, Stack

EXAMPLES = 80
PATIENCE_S = 30
AS_DOCUMENTED = [content_type_conformance, response_schema_conformance, status_code_conformance]
TRY_LATER = (503, 504)
# They take nothing that could be wrong, but for the key.
WITHOUT_INPUT = {"GET /health", "GET /ready", "GET /metrics"}


@schemathesis.serializer("application/msgpack")
def as_msgpack(_, value):
    return msgpack.packb(value, default=str)


@pytest.fixture(scope="module")
def stack(redis_program, tmp_path_factory):
    del redis_program
    with Stack(tmp_path_factory.mktemp("openapi"), COLQUEUE_SYNC_TIMEOUT_S="5", COLQUEUE_LOG_LEVEL="INFO") as running:
        running.start_api()
        running.start_double("worker")
        running.wait_until_ready()
        yield running


@pytest.fixture(scope="module")
def session():
    with requests.Session() as session:
        session.trust_env = False
        session.headers["Authorization"] = f"Bearer {KEY}"
        yield session


@pytest.fixture(scope="module")
def operations(stack, session):
    document = session.get(f"{stack.url}/openapi.json").json()
    schema = schemathesis.openapi.from_dict(document)
    return {f"{each.ok().method.upper()} {each.ok().path}": each.ok() for each in schema.get_all_operations()}


@pytest.fixture(scope="module")
def jobs(stack):
    """A job that is done, and one that is partly."""
    bodies = [{"input_type": "text", "inputs": ["a", "b"]}, {"input_type": "text", "inputs": ["unreadable", "c"]}]
    with stack.client() as http:
        found = [http.post("/jobs", json=body).json()["id"] for body in bodies]
        for job_id in found:
            while not http.get(f"/jobs/{job_id}", params={"wait": 10}).json()["finished_at"]:
                pass
        return found


def check_all(operations, mode, check):
    """Call `check` with cases of every operation, in this mode, and say of which one failed."""
    for name, operation in operations.items():
        if mode is GenerationMode.NEGATIVE and name in WITHOUT_INPUT:
            continue
        cases = given(operation.as_strategy(generation_mode=mode), strategies.integers(0, 3))
        bounded = settings(
            max_examples=EXAMPLES,
            deadline=None,
            derandomize=True,
            database=None,
            suppress_health_check=list(HealthCheck),
        )
        bounded(cases(check))()


@pytest.mark.parametrize("mode", list(GenerationMode))
def test_every_answer_is_as_documented_and_no_error_is_ours(stack, session, operations, jobs, mode):
    assert len(operations) == 11
    statuses = set()

    def check(case, which):
        if "job_id" in (case.path_parameters or {}) and which < len(jobs):
            case.path_parameters["job_id"] = jobs[which]
        answer = case.call(base_url=stack.url, session=session, timeout=PATIENCE_S)
        statuses.add(answer.status_code)
        assert answer.status_code < 500 or answer.status_code in TRY_LATER, answer.text[:1000]
        case.validate_response(answer, checks=AS_DOCUMENTED)

    check_all(operations, mode, check)
    seen = {GenerationMode.POSITIVE: {200, 202, 404}, GenerationMode.NEGATIVE: {400, 401, 404, 422}}
    assert statuses >= seen[mode]
    with stack.client() as http:
        assert http.post("/embeddings", json={"input_type": "text", "inputs": ["still there?"]}).status_code == 200
