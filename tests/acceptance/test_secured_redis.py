"""A Redis behind TLS that lets in one user with a password, who may do what colqueue does and no more."""

from urllib.parse import quote

import httpx2
import numpy as np
import pytest
import redis
from doubles import ask_api, rows_of
from kombu.exceptions import OperationalError
from stack import FLOWER_LOGIN, Stack, eventually
from tls import TlsFront

from shared.errors import StoreUnavailableError
from shared.queue import celery_app
from shared.settings import StoreSettings

USER = "colqueue"
PASSWORD = "p@ss/w:rd%?"  # noqa: S105  # of a server that lives as long as a test; each sign needs care in a URL
WRONG = "wr@ng/w:rd%?"
# As docs/deployment.md says.
RULES = ("~*", "&*", "+@all", "-@admin", "-@dangerous", "+info")
TEXTS = ["Who is supplied first?", "In which month?"]


@pytest.fixture(scope="module")
def secured(redis_program, tmp_path_factory):
    """Call with a password to get the URL by which a service would reach this Redis."""
    del redis_program
    with (
        Stack(tmp_path_factory.mktemp("secured"), COLQUEUE_LOG_LEVEL="INFO") as stack,
        TlsFront(stack.redis.port, stack.directory) as front,
    ):
        with redis.Redis.from_url(stack.redis.url) as connection:
            connection.acl_setuser(USER, enabled=True, passwords=[f"+{PASSWORD}"], commands=[], reset=True)
            connection.execute_command("ACL", "SETUSER", USER, *RULES)
            connection.execute_command("ACL", "SETUSER", "default", "off")

        def url(password=PASSWORD):
            return f"rediss://{USER}:{quote(password, safe='')}@127.0.0.1:{front.port}/0?ssl_ca_certs={front.ca}"

        yield stack, url


def assert_in_no_log(stack, password):
    logs = {log.name: log.read_text() for log in stack.directory.glob("*.log")}
    assert len(logs) > 1
    assert [name for name, text in logs.items() if password in text or quote(password, safe="") in text] == []


def test_every_part_reaches_a_redis_behind_tls_with_a_user_and_a_password(secured):
    stack, url = secured
    stack.settings["COLQUEUE_REDIS_URL"] = url()
    stack.start_api()
    worker = stack.start_double("worker")
    stack.start_flower()
    stack.wait_until_ready()
    with stack.client() as http, httpx2.Client(base_url=stack.flower_url, auth=FLOWER_LOGIN, trust_env=False) as flower:

        def seen_by_flower():
            job = http.post("/jobs", json={"input_type": "text", "inputs": TEXTS}).json()
            job = http.get(f"/jobs/{job['id']}", params={"wait": 60}).json()
            return any(task["state"] == "SUCCESS" for task in flower.get("/api/tasks").json().values())

        eventually(seen_by_flower)
        answer = http.post("/embeddings", json={"input_type": "text", "inputs": TEXTS})
    assert answer.status_code == 200
    for rows, text in zip(answer.json()["embeddings"], TEXTS, strict=True):
        np.testing.assert_array_equal(np.asarray(rows, np.float32), rows_of(text.encode()))
    for name in ("api", "worker", "flower"):
        stack.stop(name)
    assert worker.wait() == 0
    assert_in_no_log(stack, PASSWORD)


def test_a_wrong_password_is_told_plainly_and_shown_nowhere(secured):
    stack, url = secured
    stack.settings["COLQUEUE_REDIS_URL"] = url(WRONG)
    api_url = stack.start_api("api refused")
    worker = stack.start_double("worker refused")
    with stack.client(url=api_url) as http:
        ready = http.get("/ready")
        answer = http.post("/jobs", json={"input_type": "text", "inputs": TEXTS})
    assert (ready.status_code, answer.status_code) == (503, 503)
    assert ready.json()["reason"] == "Redis refuses the user or the password in COLQUEUE_REDIS_URL."
    assert answer.json()["code"] == "store_refused"
    eventually(lambda: worker.log.read_text().count("invalid username-password pair") > 1)
    assert worker.running()
    assert_in_no_log(stack, WRONG)
    for name in ("api refused", "worker refused"):
        stack.stop(name)


def test_a_certificate_of_an_unknown_authority_is_refused_by_the_queue_and_the_store(secured):
    _, url = secured
    settings = StoreSettings(_env_file=None, redis_url=url().partition("?")[0])
    with (
        celery_app(settings) as app,
        app.connection_for_write() as connection,
        pytest.raises(OperationalError, match="certificate verify failed"),
    ):
        connection.ensure_connection(max_retries=1)
    with pytest.raises(StoreUnavailableError) as refused:
        ask_api(settings, lambda store: store.ping())
    assert "certificate verify failed" in str(refused.value.__cause__)
