"""What an api refuses to protect itself, others and Redis, and how keys are replaced: an api without any worker."""

import socket
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager

import pytest
from stack import Stack, eventually

MAX_INPUTS, KEY_INPUTS = 20, 8
NAMED = "alice:alices-key\nbob:bobs-key\ncarol:carols-key\n"


@pytest.fixture(scope="module")
def door(redis_program, tmp_path_factory):
    """A stack without a worker, so that nothing drains."""
    del redis_program
    directory = tmp_path_factory.mktemp("door")
    (directory / "keys").write_text(NAMED)
    settings = {
        "SERVICE_API_KEY": "",
        "COLQUEUE_KEYS_FILE": str(directory / "keys"),
        "COLQUEUE_QUEUE_MAX_INPUTS": str(MAX_INPUTS),
        "COLQUEUE_KEY_MAX_INPUTS": str(KEY_INPUTS),
        "COLQUEUE_SYNC_TIMEOUT_S": "0.2",
    }
    with Stack(directory, **settings) as running:
        running.start_api()
        yield running


@pytest.fixture
def client(door):
    """Call for a client with a key; what it submitted is cancelled at the end."""
    opened = []

    def client(key="alices-key"):
        opened.append(door.client(key))
        return opened[-1]

    yield client
    for http in opened:
        for job in http.get("/jobs", params={"limit": 1000}).json().get("jobs", []):
            http.delete(f"/jobs/{job['id']}")
        http.close()


def submit(http, number, **options):
    return http.post("/jobs", json={"input_type": "text", "inputs": ["x"] * number, **options})


def depth(http):
    lines = [line for line in http.get("/metrics").text.splitlines() if line.startswith("colqueue_queue_")]
    return {line.rpartition(" ")[0].removeprefix("colqueue_queue_"): float(line.rpartition(" ")[2]) for line in lines}


def test_over_its_own_limit_a_key_is_told_when_to_come_back_and_its_queries_and_others_pass(client):
    alice, bob = client(), client("bobs-key")
    assert submit(alice, KEY_INPUTS).status_code == 202

    refused = submit(alice, 1)

    assert (refused.status_code, refused.json()["code"]) == (429, "rate_limited")
    assert 1 <= int(refused.headers["Retry-After"]) <= 60
    query = alice.post("/embeddings", json={"input_type": "text", "inputs": ["query"]})
    assert query.status_code == 504, "it was taken, and nobody was there to embed it"
    assert submit(bob, 3).status_code == 202


def test_a_full_queue_is_429_and_takes_work_again_once_there_is_room(client):
    alice, bob = client(), client("bobs-key")
    first = submit(alice, KEY_INPUTS).json()
    submit(bob, 6)
    measured = depth(alice)

    refused = submit(bob, 1)

    assert (refused.status_code, refused.json()["code"]) == (429, "queue_full")
    assert 1 <= int(refused.headers["Retry-After"]) <= 60
    assert set(refused.json()) == {"error", "code"}
    assert (measured['inputs{lane="bulk"}'], measured['bytes{lane="bulk"}']) == (14, 14)
    assert measured['tasks{lane="bulk"}'] >= 2, "those of jobs cancelled before still lie there"
    assert 0 < measured['oldest_seconds{lane="bulk"}'] < 120
    assert measured['inputs{lane="interactive"}'] == 0
    alice.delete(f"/jobs/{first['id']}")
    assert submit(bob, 1).status_code == 202
    assert depth(alice)['inputs{lane="bulk"}'] == 7


@pytest.fixture(scope="module")
def strict(door):
    """The URL of another api beside the first, which takes one submission a minute and waits briefly for bodies."""
    return door.start_api("strict", COLQUEUE_KEY_SUBMISSIONS_PER_MINUTE="1", COLQUEUE_BODY_GRACE_S="2")


def test_a_key_that_submits_too_often_is_told_when_to_come_back(door, strict, client):
    with door.client("carols-key", strict) as carol:
        taken, refused = submit(carol, 1), submit(carol, 1)
        carol.delete(taken.headers["Location"])

    assert (taken.status_code, refused.status_code) == (202, 429)
    assert refused.json()["code"] == "rate_limited"
    assert 1 <= int(refused.headers["Retry-After"]) <= 60
    assert submit(client(), 1).status_code == 202


def test_a_key_is_replaced_while_the_service_runs_and_its_jobs_stay_its_owners(door, client):
    def replaced(text):
        new = door.directory / "keys.new"
        new.write_text(text)
        new.replace(door.directory / "keys")

    job = submit(client(), 1).json()
    with door.client("alices-second-key") as new, door.client("alices-key") as old, door.client("bobs-key") as bob:
        assert new.get("/jobs").status_code == 403
        replaced(NAMED + "alice:alices-second-key\n")
        eventually(lambda: new.get("/jobs").status_code == 200)
        assert old.get(f"/jobs/{job['id']}").json()["id"] == new.get(f"/jobs/{job['id']}").json()["id"] == job["id"]
        assert bob.get(f"/jobs/{job['id']}").status_code == 404

        replaced(NAMED.replace("alices-key", "alices-second-key"))
        eventually(lambda: old.get("/jobs").status_code == 403)
        assert new.get(f"/jobs/{job['id']}").status_code == 200

        replaced("this is no file of keys: alices-second-key\n")
        log = door.processes["api"].log
        eventually(lambda: new.get("/jobs").status_code == 200 and "keys.not_read" in log.read_text())
        assert [http.get("/jobs").status_code for http in (old, new, bob)] == [403, 200, 200]
        replaced(NAMED)
        eventually(lambda: old.get("/jobs").status_code == 200)

    assert '"owner": "@alice"' in log.read_text()
    assert not any(key in log.read_text() for key in ("alices-key", "alices-second-key", "bobs-key"))


BODIES_BYTES = 1_500_000
PART = b'{"input_type": "text", "inputs": ["' + b"x" * 1_000_000


@pytest.fixture(scope="module")
def narrow(door):
    """The URL of another api beside the first, which waits long for answers and bodies and holds few bodies."""
    settings = {"COLQUEUE_MAX_BODIES_BYTES": str(BODIES_BYTES), "COLQUEUE_BODY_GRACE_S": "300"}
    return door.start_api("narrow", COLQUEUE_SYNC_TIMEOUT_S="300", **settings)


@contextmanager
def half_sent(url):
    """Keep a connection that has sent a megabyte of its body and nothing more."""
    with socket.create_connection(("127.0.0.1", int(url.rpartition(":")[2])), timeout=60) as connection:
        head = [
            "POST /jobs HTTP/1.1",
            "Host: x",
            "Authorization: Bearer alices-key",
            f"Content-Length: {len(PART) + 3}",
        ]
        connection.sendall("\r\n".join([*head, "", ""]).encode() + PART)
        yield connection


def test_a_body_that_stalls_is_given_up_with_an_answer(strict):
    with half_sent(strict) as connection:
        assert connection.recv(65_536).startswith(b"HTTP/1.1 408 ")


def test_more_bodies_than_are_held_at_once_are_refused_and_taken_once_there_is_room(door, narrow, client):
    bob = client("bobs-key")

    def refusal():
        answer = http.post("/jobs", content=PART + b'"]}')
        if answer.status_code == 202:  # the api has not yet received what was half sent
            bob.delete(answer.headers["Location"])
        return answer.status_code == 503 and answer

    with half_sent(narrow), door.client("bobs-key", narrow) as http:
        refused = eventually(refusal)
        assert refused.json()["code"] == "busy"
        assert int(refused.headers["Retry-After"]) >= 1
    with door.client("bobs-key", narrow) as http:
        assert eventually(lambda: http.post("/jobs", content=PART + b'"]}').status_code == 202)
    assert bob.get("/health").status_code == 200


def test_a_caller_that_waits_is_not_held_with_what_it_sent(door, narrow, client):
    bob = client("bobs-key")
    with ThreadPoolExecutor(1) as waiting, door.client("bobs-key", narrow) as http:
        answer = waiting.submit(lambda: http.post("/embeddings", content=PART + b'"]}').status_code)
        (job,) = eventually(lambda: [job for job in bob.get("/jobs").json()["jobs"] if job["status"] == "queued"])
        with door.client("bobs-key", narrow) as other:
            assert other.post("/jobs", content=PART + b'"]}').status_code == 202
        bob.delete(f"/jobs/{job['id']}")
        assert answer.result(240) == 409
