"""The soak's callers: each sends requests until it is told to stop, and checks every answer."""

import io
import random
import threading
import time
from collections.abc import Sequence
from typing import Any, Final

import httpx2
import msgpack
import numpy as np
from soaking.account import Account, Findings, Material

from shared.jobs import Lane

__all__ = ["PATIENCE_S", "Caller", "HealthyCaller", "LargeResultReader", "SomeCaller"]

# Longer than any job may take (JOB_TTL_S in soak.py), so that what is not finished by then is lost.
PATIENCE_S: Final = 120
_ATTEMPT_S: Final = 15
_SLOW_PART_BYTES: Final = 65_536
_SLOW_PAUSE_S: Final = 0.02


class SomeCaller(threading.Thread):
    """Has one key, may call either api, and does one `act` after the other until `stopping` is set."""

    def __init__(self, seed: str, key: str, urls: Sequence[str], material: Material, account: Account) -> None:
        super().__init__(name=f"caller-{seed}", daemon=True)
        self.stopping = threading.Event()
        self.seed = seed
        self.draw = random.Random(seed)  # noqa: S311  # a schedule, not a secret
        self.material = material
        self.account = account
        self.clients = [
            httpx2.Client(base_url=url, headers={"Authorization": f"Bearer {key}"}, timeout=90, trust_env=False)
            for url in urls
        ]

    def run(self) -> None:
        while not self.stopping.is_set():
            self.act()
        for client in self.clients:
            client.close()

    def act(self) -> None:
        """Send something and check what becomes of it."""
        raise NotImplementedError

    def ask(self, method: str, path: str, *, slowly: bool = False, **request: Any) -> httpx2.Response:
        """Return the answer of either api, asked until one gives more than "come back later"."""
        ends = time.monotonic() + PATIENCE_S
        while True:
            try:
                answer = self._send(self.draw.choice(self.clients), method, path, slowly=slowly, **request)
            except httpx2.TransportError as error:
                answer = httpx2.Response(httpx2.codes.BAD_GATEWAY, json={"error": f"no answer: {error!r}"})
            again = answer.status_code in (429, 502, 503) and time.monotonic() < ends
            if not again:
                return answer
            threading.Event().wait(0.2)

    def submit(self, body: dict[str, Any], key: str | None = None) -> str | None:
        """Return the id of the job that was made; what was not taken is lost."""
        answer = self.ask("POST", "/jobs", json=body, headers={} if key is None else {"Idempotency-Key": key})
        if answer.is_success:
            return str(answer.json()["id"])
        sentence = f"not taken: {answer.status_code} {answer.text[:200]}"
        self.account.add(len(body["inputs"]), Findings(lost=[sentence] * len(body["inputs"])))
        return None

    def finished(self, job_id: str) -> dict[str, Any]:
        """Return the job as it is once it is finished or patience has ended."""
        ends, job = time.monotonic() + PATIENCE_S, dict[str, Any]()
        while not job.get("finished_at") and time.monotonic() < ends:
            job = self.ask("GET", f"/jobs/{job_id}", params={"wait": 10}).json()
        return job

    @staticmethod
    def _send(client: httpx2.Client, method: str, path: str, *, slowly: bool, **request: Any) -> httpx2.Response:
        if not slowly:
            return client.request(method, path, **request)
        with client.stream(method, path, **request) as answer:
            parts = []
            for part in answer.iter_bytes(_SLOW_PART_BYTES):
                parts.append(part)
                threading.Event().wait(_SLOW_PAUSE_S)
        return httpx2.Response(answer.status_code, headers=answer.headers, content=b"".join(parts))


class Caller(SomeCaller):
    """Sends one job after the other, good and bad, in every way."""

    _sent = 0

    def act(self) -> None:
        acts = [self._wait_for_a_job] * 4 + [self._cancel, self._set_a_deadline, self._wait_in_one_call, self._hang_up]
        self.draw.choice(acts)()

    def _body(self, *, bad: bool = False, **options: float) -> dict[str, Any]:
        return self.material.draw(self.draw, bad=bad) | {"lane": self.draw.choice(list(Lane)).value} | options

    def _wait_for_a_job(self) -> None:
        body = self._body(bad=True)
        self._sent += 1
        key = f"{self.seed}/{self._sent}" if self.draw.random() < 0.5 else None
        job_id = self.submit(body, key)
        if key is not None and (again := self.submit(body, key)) != job_id:
            self.account.add(0, Findings(duplicated=[f"key {key} made jobs {job_id} and {again}"]))
        self._check(job_id, body)

    def _cancel(self) -> None:
        body = self._body()
        job_id = self.submit(body)
        self.stopping.wait(self.draw.uniform(0, 0.5))
        if job_id is None:
            return
        job = self.ask("DELETE", f"/jobs/{job_id}").json()
        answer = self.ask("GET", f"/jobs/{job_id}/result")
        # It may have been finished before it could be cancelled, and then its result is dropped.
        wrong = answer.status_code != (httpx2.codes.GONE if job.get("released") else httpx2.codes.CONFLICT)
        lost = [f"cancelled {job_id}: {answer.text[:200]}"] if wrong else []
        self.account.add(len(body["inputs"]), Findings(lost=lost))

    def _set_a_deadline(self) -> None:
        body = self._body(deadline_s=self.draw.uniform(0.01, 2))
        self._check(self.submit(body), body, may_be_late=True)

    def _wait_in_one_call(self) -> None:
        body = self.material.draw(self.draw, bad=False)
        answer = self.ask("POST", "/embeddings", json=body)
        if answer.is_success:
            found = self.material.check(body, answer.headers, answer.json()["embeddings"], {})
        else:
            found = Findings(lost=[f"in one call: {answer.text[:200]}"] * len(body["inputs"]))
        self.account.add(len(body["inputs"]), found)

    def _hang_up(self) -> None:
        """Leave before the answer comes. What became of it is seen at the end: nothing may be left of it."""
        client, timeout = self.draw.choice(self.clients), self.draw.uniform(0.01, 0.3)
        try:
            client.post("/embeddings", json=self.material.draw(self.draw, bad=False), timeout=timeout)
        except httpx2.TransportError:
            return

    def _check(self, job_id: str | None, body: dict[str, Any], *, may_be_late: bool = False) -> None:
        if job_id is None:
            return
        inputs, job = body["inputs"], self.finished(job_id)
        answer = self.ask("GET", f"/jobs/{job_id}/result")
        result = answer.json()
        if "embeddings" not in result:
            lost = [f"{job_id}: {job} {answer.status_code} {answer.text[:200]}"] * len(inputs)
            self.account.add(len(inputs), Findings(lost=lost))
            return
        failed = {error["index"]: error["code"] for error in result["errors"]}
        found = self.material.check(body, answer.headers, result["embeddings"], failed, may_be_late=may_be_late)
        counted = job["completed"] + job["failed"]
        found.duplicated += [f"{job_id} counts {counted} of {len(inputs)}"] * max(0, counted - len(inputs))
        found.duplicated += [f"{job_id} {index}: both" for index in failed if result["embeddings"][index] is not None]
        self.account.add(len(inputs), found)


class LargeResultReader(SomeCaller):
    """Makes results of many pieces, and reads each in part, then at once, then slowly with its release."""

    def act(self) -> None:
        body = {"input_type": "image", "inputs": self.material.large_pages, "lane": "bulk"}
        body |= self.material.draw_model(self.draw)
        job_id = self.submit(body)
        if job_id is None:
            return
        self.finished(job_id)
        path = f"/jobs/{job_id}/result"
        self._hang_up_half_way(path)
        found = Findings()
        for form, slowly in (("json", False), (self.draw.choice(["msgpack", "x-npz"]), True)):
            options = {"headers": {"Accept": f"application/{form}"}, "params": {"release": slowly}}
            answer = self.ask("GET", path, slowly=slowly, **options)
            if answer.is_success:
                read = self.material.check(body, answer.headers, _read(form, answer), {})
            else:
                read = Findings(lost=[f"large {job_id}: {answer.status_code} {answer.text[:200]}"])
            found.lost += read.lost
            found.mixed += read.mixed
        self.account.large_results += 1
        self.account.add(len(body["inputs"]), found)

    def _hang_up_half_way(self, path: str) -> None:
        try:
            with self.draw.choice(self.clients).stream("GET", path) as answer:
                next(answer.iter_bytes(_SLOW_PART_BYTES), None)
        except httpx2.TransportError:
            return


def _read(form: str, answer: httpx2.Response) -> list[Any]:
    """Return the rows of each input, None for those that failed."""
    if form == "json":
        return list(answer.json()["embeddings"])
    if form == "msgpack":
        packed = msgpack.unpackb(answer.content)["embeddings"]
        return [rows and np.frombuffer(rows["data"], rows["dtype"]).reshape(rows["shape"]) for rows in packed]
    with np.load(io.BytesIO(answer.content)) as archive:
        return [archive.get(f"emb_{index}") for index in range(int(archive["count"]))]


class HealthyCaller(SomeCaller):
    """Sends a short query about every second; when an attempt fails it tries the other api at once.

    An attempt fails that gives anything but the right rows within 15 s.
    """

    def act(self) -> None:
        body = self.material.draw_query(self.draw)
        began, failures, reason = time.monotonic(), 0, ""
        while reason := self._try(self.clients[failures % len(self.clients)], body):
            failures += 1
            if time.monotonic() - began > PATIENCE_S:
                self.account.add(1, Findings(lost=[f"query: {reason}"]))
                break
            threading.Event().wait(0.1)
        if failures:
            outage_s = time.monotonic() - began
            self.account.longest_query_outage_s = max(self.account.longest_query_outage_s, outage_s)
        self.account.queries += 1
        self.stopping.wait(1)

    def _try(self, client: httpx2.Client, body: dict[str, Any]) -> str:
        """Return why the query failed; empty where its rows came, which are then in the account."""
        try:
            answer = client.post("/embeddings", json=body, timeout=_ATTEMPT_S)
        except httpx2.TransportError as error:
            return repr(error)
        if not answer.is_success:
            return f"{answer.status_code} {answer.text[:200]}"
        self.account.add(1, self.material.check(body, answer.headers, answer.json()["embeddings"], {}))
        return ""
