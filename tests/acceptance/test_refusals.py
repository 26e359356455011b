"""What Redis refuses for a while, and why: callers come back, no thread and no process ends, and work goes on after."""

import shutil
import threading
from contextlib import contextmanager

import pytest
import redis
from stack import Stack, eventually

from colqueue_client.launch.ports import free_port
from shared.queue import celery_app
from shared.settings import StoreSettings


@pytest.fixture
def stack(redis_program, tmp_path):
    del redis_program
    settings = {"COLQUEUE_VISIBILITY_TIMEOUT_S": "5", "COLQUEUE_REAP_AFTER_S": "1", "COLQUEUE_SYNC_ROOM_WAIT_S": "1"}
    with Stack(tmp_path, **settings) as stack:
        stack.start_api()
        stack.start_double("worker")
        stack.wait_until_ready()
        yield stack


@pytest.fixture
def connection(stack):
    with redis.Redis.from_url(stack.redis.url, socket_timeout=None) as connection:
        yield connection


@contextmanager
def full_disk(stack, connection):
    """MISCONF: a snapshot fails, as it has no folder to be written to."""
    connection.config_set("save", "100000 1")
    shutil.rmtree(stack.redis.directory)
    connection.bgsave()
    eventually(lambda: connection.info("persistence")["rdb_last_bgsave_status"] == "err")
    yield
    connection.config_set("save", "")


@contextmanager
def read_only(stack, connection):
    """READONLY: it became the replica of another."""
    del stack
    connection.replicaof("127.0.0.1", free_port())
    yield
    connection.replicaof("no", "one")


@contextmanager
def without_its_master(stack, connection):
    """MASTERDOWN: it became a replica that answers nothing while its master is away."""
    del stack
    connection.config_set("replica-serve-stale-data", "no")
    connection.replicaof("127.0.0.1", free_port())
    yield
    connection.replicaof("no", "one")
    connection.config_set("replica-serve-stale-data", "yes")


@contextmanager
def busy(stack, connection):
    """BUSY: somebody's script does not end."""
    connection.config_set("busy-reply-threshold", 50)
    with redis.Redis.from_url(stack.redis.url, socket_timeout=None) as other:

        def loop():
            with pytest.raises(redis.ResponseError):
                other.eval("while true do end", 0)

        thread = threading.Thread(target=loop)
        thread.start()
        yield
        eventually(lambda: killed(connection))
        thread.join()


def killed(connection):
    try:
        return connection.script_kill()
    except redis.ResponseError:  # it has not run for long enough
        return False


@contextmanager
def full(stack, connection):
    """OOM."""
    del stack
    connection.config_set("maxmemory", 1)
    yield
    connection.config_set("maxmemory", 0)


@contextmanager
def forbidding(stack, connection):
    """NOPERM."""
    del stack
    commands = ["+@all", "-@write", "-@scripting"]
    connection.acl_setuser("default", enabled=True, nopass=True, keys=["*"], channels=["*"], commands=commands)
    yield
    connection.acl_setuser("default", enabled=True, nopass=True, keys=["*"], channels=["*"], commands=["+@all"])


REFUSALS = [full_disk, read_only, without_its_master, busy, full, forbidding]


@pytest.mark.parametrize("refusing", REFUSALS, ids=[refusing.__name__ for refusing in REFUSALS])
def test_while_redis_refuses_callers_get_503_and_everything_goes_on_after(stack, connection, refusing):
    worker, api = stack.worker, stack.processes["api"]
    body = {"input_type": "text", "inputs": ["a"]}
    with stack.client() as http:
        before = http.post("/jobs", json=body | {"lane": "bulk"}).json()
        eventually(lambda: http.get(f"/jobs/{before['id']}").json()["finished_at"])
        seen = worker.log.stat().st_size
        with refusing(stack, connection):
            for path in ("/jobs", "/embeddings", "/v1/embeddings"):
                answer = http.post(path, json=body)
                assert answer.status_code in {404, 429, 503}, (path, answer.status_code, answer.text)
            for path in (f"/jobs/{before['id']}", "/jobs", f"/jobs/{before['id']}/result", "/metrics", "/ready"):
                assert http.get(path).status_code in {200, 503}, path
            assert http.delete(f"/jobs/{'0' * 32}").status_code in {404, 503}
            # The worker meets it as well: a beat is missed, or goes through a full Redis.
            eventually(lambda: refusing is full or "heartbeat.missed" in worker.log.read_text()[seen:])
            eventually(lambda: refusing in {full, busy} or http.get("/ready").status_code == 503)
        answer = eventually(lambda: (given := http.post("/embeddings", json=body)).status_code == 200 and given)
        assert len(answer.json()["embeddings"]) == 1
        eventually(lambda: http.get("/ready").status_code == 200)
        after = http.post("/jobs", json=body | {"lane": "bulk"}).json()
        eventually(lambda: http.get(f"/jobs/{after['id']}").json()["status"] == "completed")
    assert worker.running()
    assert api.running()
    assert "request.failed" not in api.log.read_text()


def test_a_worker_that_starts_in_a_full_redis_does_what_waits_there_and_is_ready(stack, connection):
    """Taking, doing, handing back and acknowledging a task needs no memory that a full Redis would refuse."""
    stack.stop("worker")
    connection.rpush("raise", "away", "closed")
    with stack.client() as http:
        body = {"input_type": "text", "inputs": ["a", "b"], "lane": "bulk"}
        jobs = [http.post("/jobs", json=body).json()["id"] for _ in range(20)]
        connection.config_set("maxmemory", 1)
        worker = stack.start_double("worker")
        for job_id in jobs:
            eventually(lambda job_id=job_id: http.get(f"/jobs/{job_id}").json()["status"] == "completed")
        stack.wait_until_ready()
        # Its answer finds no room either, and the worker goes on.
        celery_app(StoreSettings(_env_file=None, redis_url=stack.redis.url)).control.broadcast("ping", reply=False)
        eventually(lambda: not connection.exists("unacked", "unacked_index"))
        assert http.post("/jobs", json=body).status_code in {429, 503}
        assert http.get("/ready").status_code == 200
        assert worker.running()
        assert "Unrecoverable" not in worker.log.read_text()
        connection.config_set("maxmemory", 0)
        assert eventually(lambda: http.post("/embeddings", json=body | {"inputs": ["c"]})).status_code == 200
