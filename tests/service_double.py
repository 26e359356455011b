"""A colqueue service without a queue, a model or a process of its own, for tests of what its callers do.

It answers jobs of pages with noise. A test can hold its jobs, and put an answer of its own in place of any.
"""

import json
import threading
import uuid
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from types import TracebackType
from typing import Any, Self

import msgpack
import numpy as np

__all__ = ["Answer", "ServiceDouble", "page"]

ROWS = np.random.default_rng(0).normal(size=(747, 128)).astype(np.float16)

METRICS = 'colqueue_queue_tasks{lane="bulk"} 0\ncolqueue_worker_ready{model="double",worker="one"} 1\n'


@dataclass(frozen=True)
class Answer:
    """An HTTP answer."""

    status: int
    body: bytes
    kind: str = "application/json"
    headers: Mapping[str, str] = field(default_factory=dict)


def page(status: int, text: str = "Maintenance", **headers: str) -> Answer:
    """An HTML page, as a proxy or another server would answer."""
    return Answer(status, f"<!doctype html><html><body>{text}</body></html>".encode(), "text/html", headers)


class ServiceDouble:
    """`with ServiceDouble() as service`: listens at `service.url`; clear `service.finishing` and no job finishes."""

    def __init__(self) -> None:
        self.finishing = threading.Event()
        self.finishing.set()
        self.requests: list[tuple[str, str]] = []
        self.instead: Callable[[str, str], Answer | None] = lambda _method, _path: None
        """Called with each request's method and path; what it returns is answered, None leaves it to the double."""
        self.model_ids: set[str] = set()
        """The checkpoints that are served, if any are named; a job that names another is refused."""
        self.answered_by: Callable[[str | None], str | None] = lambda asked: asked
        """Called with the model id that a job names; returns the one that the answer's header names."""
        self._models: dict[str, str | None] = {}
        self._jobs: dict[str, int] = {}
        self._server = ThreadingHTTPServer(("127.0.0.1", 0), self._handler())
        self._server.daemon_threads = True
        self._thread = threading.Thread(target=self._server.serve_forever, daemon=True)
        self.url = f"http://127.0.0.1:{self._server.server_port}"

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._server.shutdown()
        self._server.server_close()

    def submitted(self) -> int:
        """How many jobs were submitted."""
        return len(self._jobs)

    def pages(self) -> int:
        """How many pages were submitted, in all jobs together."""
        return sum(self._jobs.values())

    def answer(self, method: str, path: str, body: bytes) -> Answer:
        self.requests.append((method, path))
        if (instead := self.instead(method, path)) is not None:
            return instead
        path = path.partition("?")[0]
        if path == "/metrics":
            return Answer(200, METRICS.encode(), "text/plain; version=1.0.0; charset=utf-8")
        if path == "/ready":
            return _json(200, {"status": "ready"})
        if path == "/jobs" and method == "POST":
            return self._submit(msgpack.unpackb(body))
        job, _, what = path.removeprefix("/jobs/").partition("/")
        if job not in self._jobs:
            return _json(404, {"error": "There is no such job.", "code": "job_not_found"})
        return self._result(job) if what == "result" else self._shown(200, job)

    def _submit(self, submitted: dict[str, Any]) -> Answer:
        job, asked = uuid.uuid4().hex, submitted.get("model")
        if self.model_ids and asked is not None and asked not in self.model_ids:
            return _json(404, {"error": "No worker serves this model.", "code": "model_not_found"})
        self._models[job] = self.answered_by(asked)
        self._jobs[job] = len(submitted["inputs"])
        return self._shown(202, job)

    def _result(self, job: str) -> Answer:
        packed = {"dtype": "float16", "shape": list(ROWS.shape), "data": ROWS.tobytes()}
        body = {"input_type": "image", "embeddings": [packed] * self._jobs[job], "errors": []}
        model_id = self._models[job]
        headers = {} if model_id is None else {"X-Colqueue-Model": "double", "X-Colqueue-Model-Id": model_id}
        return Answer(200, msgpack.packb(body), "application/msgpack", headers)

    def _shown(self, status: int, job: str) -> Answer:
        finished = self.finishing.is_set()
        shown = {
            "id": job,
            "status": "completed" if finished else "running",
            "input_type": "image",
            "lane": "bulk",
            "total": self._jobs[job],
            "completed": self._jobs[job] if finished else 0,
            "failed": 0,
            "created_at": "2026-01-01T00:00:00Z",
            "started_at": None,
            "finished_at": None,
            "expires_at": "2026-01-02T00:00:00Z",
        }
        return _json(status, shown)

    def _handler(self) -> type[BaseHTTPRequestHandler]:
        double = self

        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def _do(self) -> None:
                body = self.rfile.read(int(self.headers.get("Content-Length", 0)))
                if self.command == "GET" and "wait=" in self.path:
                    double.finishing.wait(0.2)
                answer = double.answer(self.command, self.path, body)
                self.send_response(answer.status)
                headers = {"Content-Type": answer.kind, "Content-Length": str(len(answer.body))}
                for name, value in (headers | dict(answer.headers)).items():
                    self.send_header(name, value)
                self.end_headers()
                self.wfile.write(answer.body)

            do_GET = do_POST = do_DELETE = _do  # noqa: N815 - the names that the base class calls

            def log_message(self, *_: Any) -> None:
                """Say nothing."""

        return Handler


def _json(status: int, value: Any) -> Answer:
    return Answer(status, json.dumps(value).encode())
