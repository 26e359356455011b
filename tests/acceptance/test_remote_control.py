"""Celery's remote control: whoever can publish may look, and may change nothing unless a setting says so."""

import pytest
from celery.worker.control import Panel
from stack import Stack, eventually

from shared.jobs import Lane
from shared.queue import celery_app
from shared.settings import StoreSettings

ARGUMENTS = {
    "add_consumer": {"queue": "elsewhere"},
    "cancel_consumer": {"queue": Lane.INTERACTIVE.value},
    "hello": {"from_node": "worker@x", "revoked": {}},
    "rate_limit": {"task_name": "colqueue.embed", "rate_limit": "1/h"},
    "revoke": {"task_id": "x", "terminate": True, "signal": "SIGKILL"},
    "revoke_by_stamped_headers": {"headers": {"a": ["b"]}},
    "terminate": {"task_id": "x", "signal": "SIGKILL"},
    "time_limit": {"task_name": "colqueue.embed", "hard": 1, "soft": 1},
    "election": {"id": "x", "topic": "y"},
}
LOOKING = {"active", "active_queues", "clock", "conf", "ping", "query_task", "registered", "report", "reserved"}
LOOKING |= {"revoked", "scheduled", "stats", "enable_events"}


@pytest.fixture
def stack(redis_program, tmp_path):
    del redis_program
    with Stack(tmp_path) as stack:
        stack.start_api()
        yield stack


@pytest.fixture
def control(stack):
    app = celery_app(StoreSettings(_env_file=None, redis_url=stack.redis.url))
    yield app.control
    app.close()


def answered(control, command, **arguments):
    """What the one worker answers."""

    def asked():
        return control.broadcast(command, arguments=arguments, reply=True, limit=1, timeout=5)

    (answer,) = eventually(asked)
    return next(iter(answer.values()))


def embedded(stack):
    with stack.client() as http:
        answer = http.post("/embeddings", json={"input_type": "text", "inputs": ["a"]})
    return answer.status_code == 200


def test_a_worker_answers_those_who_look_and_refuses_all_else(stack, control):
    worker = stack.start_double("worker")
    stack.wait_until_ready()
    assert "error" not in answered(control, "ping")
    for command in sorted(LOOKING - {"query_task"}):
        answer = answered(control, command)
        assert "is switched off here" not in str(answer), command
    aliases = {name for name in Panel.data if name.startswith("dump_")}
    refused = Panel.data.keys() - LOOKING - aliases
    assert {"shutdown", "cancel_consumer", "pool_grow", "autoscale", "disable_events", "memdump"} <= refused
    for command in sorted(refused):
        assert "COLQUEUE_REMOTE_CONTROL" in answered(control, command, **ARGUMENTS.get(command, {}))["error"], command
    assert embedded(stack)
    assert worker.running()
    with stack.client() as http:
        assert http.get("/ready").status_code == 200


def test_a_worker_that_was_told_to_leave_a_queue_out_is_not_ready(stack, control):
    worker = stack.start_double("worker", COLQUEUE_REMOTE_CONTROL="true")
    stack.wait_until_ready()
    with stack.client() as http:
        for queue in Lane.INTERACTIVE.queues:
            assert "ok" in answered(control, "cancel_consumer", queue=queue)
        answer = eventually(lambda: (ready := http.get("/ready")).status_code == 503 and ready)
        assert "leave out" in answer.json()["reason"]
        for queue in Lane.INTERACTIVE.queues:
            assert "ok" in answered(control, "add_consumer", queue=queue)
        eventually(lambda: http.get("/ready").status_code == 200)
        assert embedded(stack)
    control.broadcast("shutdown")
    assert worker.wait() == 0
