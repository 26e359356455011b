import socket
from pathlib import Path

import pytest

from colqueue_client.errors import LaunchError
from colqueue_client.launch.ports import free_port, require_free

PORTS_OF_CLIENTS = Path("/proc/sys/net/ipv4/ip_local_port_range")


def test_a_free_port_passes_and_is_free_afterwards():
    port = free_port()

    require_free("127.0.0.1", port, variable="COLQUEUE_PORT")
    with socket.create_server(("127.0.0.1", port)):
        pass


@pytest.mark.skipif(not PORTS_OF_CLIENTS.exists(), reason="only Linux tells which ports it gives to clients")
def test_a_free_port_is_none_that_an_outgoing_connection_is_given():
    """A client that retries a port of its own range can be connected to itself, and then nobody can listen there."""
    first, last = map(int, PORTS_OF_CLIENTS.read_text().split())
    assert not [port for port in (free_port() for _ in range(200)) if first <= port <= last]


@pytest.mark.parametrize("listening_on", ["127.0.0.1", "0.0.0.0"])
def test_a_taken_port_is_refused_with_the_variable_that_moves_it(listening_on):
    with socket.create_server((listening_on, 0)) as server:
        port = server.getsockname()[1]

        with pytest.raises(LaunchError, match=rf"port {port}: .*in use.*COLQUEUE_FLOWER_PORT"):
            require_free("127.0.0.1", port, variable="COLQUEUE_FLOWER_PORT")


def test_an_address_of_another_machine_is_refused():
    with pytest.raises(LaunchError, match=r"192\.0\.2\.1"):
        require_free("192.0.2.1", 8000, variable="COLQUEUE_PORT")
