"""The client in processes that were forked, over real connections, and what a type checker says of it."""

import json
import os
import socketserver
import subprocess
import sys
import threading
import traceback
from asyncio import run
from collections import defaultdict
from http.server import BaseHTTPRequestHandler
from pathlib import Path

import msgpack
import numpy as np
import pytest

from colqueue_client import AsyncClient, Client, Retry

ROOT = Path(__file__).parents[2]


class Service(socketserver.ThreadingTCPServer):
    """Answers each text with one row of its length, and notes which connection brought which texts."""

    daemon_threads = True
    allow_reuse_address = True

    def __init__(self):
        super().__init__(("127.0.0.1", 0), Handler)
        self.texts = defaultdict(list)
        threading.Thread(target=self.serve_forever, daemon=True).start()

    @property
    def url(self):
        return f"http://127.0.0.1:{self.server_address[1]}"


class Handler(BaseHTTPRequestHandler):
    """One connection."""

    protocol_version = "HTTP/1.1"

    def do_POST(self):
        (text,) = msgpack.unpackb(self.rfile.read(int(self.headers["Content-Length"])))["inputs"]
        self.server.texts[self.client_address].append(text)
        data = np.full((1, 128), len(text), np.float32).tobytes()
        body = msgpack.packb({"embeddings": [{"dtype": "float32", "shape": [1, 128], "data": data}]})
        self.send_response(200)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *_):
        pass


@pytest.fixture
def service():
    with Service() as service:
        yield service
        service.shutdown()


def in_a_fork(call):
    """Run `call` in a forked process; return whether it ended well."""
    pid = os.fork()
    if pid == 0:
        status = 1
        try:
            call()
            status = 0
        except BaseException:  # noqa: BLE001 - a child must end here whatever happens
            traceback.print_exc()
        finally:
            os._exit(status)
    return os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == 0


def test_a_forked_process_opens_connections_of_its_own(service):
    client = Client(service.url, "key", retry=Retry(for_s=0), trust_env=False)

    def ask(text):
        (rows,) = client.embed_queries([text])
        assert rows[0, 0] == len(text)

    ask("parent")
    for name in ("child 1", "child two"):
        assert in_a_fork(lambda name=name: [ask(name), ask(name), client.close()])
    ask("parent")
    client.close()

    assert sorted(service.texts.values()) == [["child 1"] * 2, ["child two"] * 2, ["parent"] * 2]


def test_a_forked_process_opens_connections_of_its_own_on_its_own_event_loop(service):
    async def ask(client, text):
        (rows,) = await client.embed_queries([text])
        assert rows[0, 0] == len(text)

    async def in_child(client):
        await ask(client, "child")
        await ask(client, "child")
        await client.close()

    async def in_parent():
        async with AsyncClient(service.url, "key", retry=Retry(for_s=0), trust_env=False) as client:
            await ask(client, "parent")
            assert in_a_fork(lambda: run(in_child(client)))
            await ask(client, "parent")

    run(in_parent())

    assert sorted(service.texts.values()) == [["child"] * 2, ["parent"] * 2]


CALLS = """
from pathlib import Path
from PIL import Image
from colqueue_client import AsyncClient, Client

client = Client()
client.embed_queries(["one", "two"])
client.submit(texts=("one", "two"))
client.iter_results(texts=(text for text in ["one"]))
client.embed_images([b"image", Path("page.png"), Image.new("L", (1, 1))])
awaited = AsyncClient().embed_images([Image.new("L", (1, 1))])
"""
REFUSED = [
    'client.embed_queries("hello")',
    'client.submit(texts="hello")',
    'client.iter_results(texts="hello")',
    'refused = AsyncClient().embed_queries("hello")',
    'client.embed_images(b"image")',
    "client.embed_images([7])",
]


def test_a_type_checker_accepts_lists_and_refuses_one_bare_text_or_image(tmp_path):
    (tmp_path / "calls.py").write_text(CALLS + "\n".join(REFUSED) + "\n")
    command = [
        sys.executable,
        "-m",
        "mypy",
        "--strict",
        "--cache-dir",
        str(tmp_path / "cache"),
        "-O",
        "json",
        "calls.py",
    ]

    checked = subprocess.run(
        command,
        cwd=tmp_path,
        env=os.environ | {"MYPYPATH": str(ROOT / "client")},
        capture_output=True,
        text=True,
        check=False,
        timeout=240,
    )

    found = [json.loads(line) for line in checked.stdout.splitlines() if line.startswith("{")]
    first = CALLS.count("\n") + 1
    lines = {one["line"] for one in found if one["file"] == "calls.py" and one["severity"] == "error"}
    assert lines == set(range(first, first + len(REFUSED))), checked.stdout + checked.stderr
