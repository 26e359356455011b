"""Random faults over the whole stack for a while, then an account of every input: `make soak`.

Callers send texts and pages, good and bad, in both lanes and from several keys; they wait, cancel, set deadlines, hang
up and repeat themselves. Meanwhile workers, apis and Redis are killed, stopped, paused and started again. Every outcome
is compared with what was known beforehand: rows that the same model computed here, or the code of a failure. At last
all that was kept must have left Redis.

`SOAK_S` is how long the faults last (600), `SOAK_SEED` repeats their order, `SOAK_DIR` keeps the logs. The last line is
one JSON object:

jobs, inputs        submissions whose outcome was checked, and what they held
kills, restarts     SIGKILLs of workers and apis; SIGTERMs of workers, and Redis killed and started again
lost                inputs without their outcome when all was over, or with a wrong one
duplicated          inputs that are counted or answered twice, and idempotency keys that made two jobs
leaked_keys         keys left in Redis after every time to live, beside the few that there always are
redis_bytes_before  memory that Redis used when the stack was ready, and after all; it must not have grown by more
redis_bytes_after   than 4 MiB, of which the stream of announcements may be 2

The exit status is 0 where nothing was lost, doubled or leaked, memory came back, and no process ended by itself.
"""

import json
import os
import random
import sys
import threading
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from signal import SIGCONT, SIGKILL, SIGSTOP
from tempfile import TemporaryDirectory
from typing import Any, Final

import httpx2
import numpy as np
import redis
from acceptance.pictures import as_base64, png
from stack import KEY, OTHER_KEY, THIRD_KEY, Process, Stack, eventually

from shared import keys
from shared.jobs import Lane
from worker.model.colqwen import load
from worker.model.options import ModelOptions

JOB_TTL_S: Final = 90
RESULT_TTL_S: Final = 20
RECORD_TTL_S: Final = 10
# Longer than any job may take, so that what is not finished by then is lost.
PATIENCE_S: Final = JOB_TTL_S + 30
GROWTH_BYTES: Final = 4 * 2**20
CALLERS: Final = 6
PROGRESS_S: Final = 10

SETTINGS: Final = {
    "COLQUEUE_VISIBILITY_TIMEOUT_S": "5",
    "COLQUEUE_REAP_AFTER_S": "2",
    "COLQUEUE_JOB_TTL_S": str(JOB_TTL_S),
    "COLQUEUE_RESULT_TTL_S": str(RESULT_TTL_S),
    "COLQUEUE_RECORD_TTL_S": str(RECORD_TTL_S),
    "COLQUEUE_TASK_TOKENS": "220",
    "COLQUEUE_BATCH_TOKENS": "1024",
    # Here it is never the input's fault.
    "COLQUEUE_MAX_ATTEMPTS": "1000",
    "COLQUEUE_LOG_LEVEL": "INFO",
    "OMP_NUM_THREADS": "1",
}
APIS: Final = ("api", "other api")
WORKERS: Final = ("worker", "other worker")
BAD_PAGE: Final = as_base64(b"no image at all")


class Material:
    """What is sent, and the rows that the model makes of it: all of them computed before anything fails."""

    def __init__(self, cache_dir: Path) -> None:
        model = load(ModelOptions("tiny", cache_dir=cache_dir, device="cpu"))
        texts = [f"what does page {number} say of {'very ' * (number % 7)}old maps?" for number in range(24)]
        pages = [png(84 + 28 * (seed % 3), 112, seed) for seed in range(12)]
        self.rows = {text: model.embed([model.prepare_query(text)])[0] for text in texts}
        self.rows |= {as_base64(page): model.embed([model.prepare_page(page)])[0] for page in pages}
        self._good = {"text": texts, "image": [as_base64(page) for page in pages]}

    def draw(self, draw: random.Random, *, bad: bool) -> tuple[str, list[str]]:
        """Return the type of some inputs and them; with `bad`, pages that are none may be among the pages."""
        input_type = draw.choice(["text", "text", "image"])
        inputs = draw.choices(self._good[input_type], k=draw.randint(1, 12 if input_type == "text" else 5))
        if bad and input_type == "image" and draw.random() < 0.5:
            inputs.insert(draw.randrange(len(inputs) + 1), BAD_PAGE)
        return input_type, inputs


@dataclass
class Account:
    """What was found, by all callers together."""

    jobs: int = 0
    inputs: int = 0
    lost: list[str] = field(default_factory=list)
    duplicated: list[str] = field(default_factory=list)
    lock: threading.Lock = field(default_factory=threading.Lock)

    def checked(self, inputs: int, lost: Sequence[str] = (), duplicated: Sequence[str] = ()) -> None:
        with self.lock:
            self.jobs += 1
            self.inputs += inputs
            self.lost += lost
            self.duplicated += duplicated
        for found in (*lost, *duplicated):
            say(f"WRONG: {found}")


class Caller(threading.Thread):
    """Sends one job after the other, and checks what becomes of each, until told to stop."""

    def __init__(self, seed: str, key: str, urls: Sequence[str], material: Material, account: Account) -> None:
        super().__init__(name=f"caller-{seed}", daemon=True)
        self.stopping = threading.Event()
        self._draw = random.Random(seed)  # noqa: S311  # a schedule, not a secret
        self._seed = seed
        self._sent = 0
        self._material = material
        self._account = account
        self._clients = [
            httpx2.Client(base_url=url, headers={"Authorization": f"Bearer {key}"}, timeout=90, trust_env=False)
            for url in urls
        ]

    def run(self) -> None:
        acts = [self._wait_for_a_job] * 4 + [self._cancel, self._set_a_deadline, self._wait_in_one_call, self._hang_up]
        while not self.stopping.is_set():
            self._draw.choice(acts)()
        for client in self._clients:
            client.close()

    def _wait_for_a_job(self) -> None:
        input_type, inputs = self._material.draw(self._draw, bad=True)
        self._sent += 1
        key = f"{self._seed}/{self._sent}" if self._draw.random() < 0.5 else None
        job_id = self._submit(input_type, inputs, key)
        if key is not None and (again := self._submit(input_type, inputs, key)) != job_id:
            self._account.checked(0, duplicated=[f"key {key} made jobs {job_id} and {again}"])
        self._check(job_id, inputs)

    def _cancel(self) -> None:
        input_type, inputs = self._material.draw(self._draw, bad=False)
        job_id = self._submit(input_type, inputs)
        self.stopping.wait(self._draw.uniform(0, 0.5))
        job = self._ask("DELETE", f"/jobs/{job_id}").json()
        if job.get("status") != "cancelled":
            self._check(job_id, inputs)
            return
        answer = self._ask("GET", f"/jobs/{job_id}/result")
        wrong = answer.status_code != httpx2.codes.CONFLICT
        self._account.checked(len(inputs), lost=[f"cancelled {job_id}: {answer.text[:200]}"] if wrong else [])

    def _set_a_deadline(self) -> None:
        input_type, inputs = self._material.draw(self._draw, bad=False)
        job_id = self._submit(input_type, inputs, deadline_s=self._draw.uniform(0.01, 2))
        self._check(job_id, inputs, may_be_late=True)

    def _wait_in_one_call(self) -> None:
        input_type, inputs = self._material.draw(self._draw, bad=False)
        answer = self._ask("POST", "/embeddings", json={"input_type": input_type, "inputs": inputs})
        embeddings = answer.json().get("embeddings", [])
        wrong = self._wrong(embeddings, {}, inputs, may_be_late=False) if answer.is_success else [answer.text[:200]]
        self._account.checked(len(inputs), lost=[f"in one call: {each}" for each in wrong])

    def _hang_up(self) -> None:
        """What became of it is seen at the end: nothing may be left of it."""
        input_type, inputs = self._material.draw(self._draw, bad=False)
        client = self._draw.choice(self._clients)
        try:
            timeout = self._draw.uniform(0.01, 0.3)
            client.post("/embeddings", json={"input_type": input_type, "inputs": inputs}, timeout=timeout)
        except httpx2.TransportError:
            return

    def _submit(self, input_type: str, inputs: list[str], key: str | None = None, **options: float) -> str:
        body = {"input_type": input_type, "inputs": inputs, "lane": self._draw.choice(list(Lane)).value} | options
        answer = self._ask("POST", "/jobs", json=body, headers={} if key is None else {"Idempotency-Key": key})
        return str(answer.json().get("id", answer.text[:200]))

    def _check(self, job_id: str, inputs: list[str], *, may_be_late: bool = False) -> None:
        ends, job = time.monotonic() + PATIENCE_S, {"finished_at": None}
        while not job.get("finished_at") and time.monotonic() < ends:
            job = self._ask("GET", f"/jobs/{job_id}", params={"wait": 10}).json()
        answer = self._ask("GET", f"/jobs/{job_id}/result")
        result = answer.json()
        if "embeddings" not in result:
            self._account.checked(len(inputs), lost=[f"{job_id}: {job} {answer.text[:200]}"] * len(inputs))
            return
        failed = {error["index"]: error["code"] for error in result["errors"]}
        wrong = self._wrong(result["embeddings"], failed, inputs, may_be_late=may_be_late)
        counted = job["completed"] + job["failed"]
        twice = [f"{job_id} counts {counted} of {len(inputs)}"] * max(0, counted - len(inputs))
        twice += [f"{job_id} {index}: both" for index in failed if result["embeddings"][index] is not None]
        self._account.checked(len(inputs), [f"{job_id} {each}" for each in wrong], twice)

    def _wrong(self, answered: list[Any], failed: dict[int, str], inputs: list[str], *, may_be_late: bool) -> list[str]:
        """Return what is said of each input that did not come out as it must."""
        if len(answered) != len(inputs):
            return [f"{len(answered)} answers for {len(inputs)} inputs"] * len(inputs)
        wrong = []
        for index, (rows, sent) in enumerate(zip(answered, inputs, strict=True)):
            expected, code = self._material.rows.get(sent), failed.get(index)
            if may_be_late and code == "deadline_exceeded":
                continue
            if expected is None:
                right = code == "image_invalid"
            else:
                right = rows is not None and np.shape(rows) == expected.shape and np.allclose(rows, expected, atol=1e-4)
            if not right:
                wrong.append(f"input {index}: {code or 'other rows'}")
        return wrong

    def _ask(self, method: str, path: str, **request: Any) -> httpx2.Response:
        """Return the answer of either api, asked until one gives more than "come back later"."""
        ends = time.monotonic() + PATIENCE_S
        while True:
            try:
                answer = self._draw.choice(self._clients).request(method, path, **request)
            except httpx2.TransportError:
                answer = httpx2.Response(httpx2.codes.BAD_GATEWAY, json={"error": "no answer"})
            again = answer.status_code in (429, 502, 503) and time.monotonic() < ends
            if not again:
                return answer
            threading.Event().wait(0.2)


class Faults:
    """Causes one fault after the other in a stack, from the main thread."""

    def __init__(self, stack: Stack, seed: str) -> None:
        self.kills = self.restarts = 0
        self.ended: list[str] = []
        self._stack = stack
        self._draw = random.Random(seed)  # noqa: S311  # a schedule, not a secret

    def cause_one(self) -> None:
        """Notice who ended by itself and start it again, then do some harm."""
        self.notice()
        faults: dict[Callable[[], None], float] = {
            self._kill_a_worker: 4,
            self._kill_all_workers: 1,
            self._stop_a_worker: 2,
            self._kill_an_api: 3,
            self._restart_redis: 2,
            self._pause: 4,
        }
        self._draw.choices(list(faults), list(faults.values()))[0]()

    def pause_s(self) -> float:
        """Return how long to leave the stack alone."""
        return self._draw.uniform(0.2, 3)

    def notice(self) -> None:
        """Start again who ended by itself, and keep it in mind."""
        for name, process in list(self._stack.processes.items()):
            if not process.running():
                self.ended.append(f"{name} ended by itself with status {process.wait()}")
                say(f"WRONG: {self.ended[-1]}")
                self._start(name)

    def _kill_a_worker(self) -> None:
        self._kill(self._draw.choice(WORKERS))

    def _kill_all_workers(self) -> None:
        for name in WORKERS:
            self._kill(name)

    def _kill_an_api(self) -> None:
        self._kill(self._draw.choice(APIS))

    def _kill(self, name: str) -> None:
        process: Process = self._stack.processes[name]
        process.signal(SIGKILL)
        process.wait()
        self.kills += 1
        self._start(name)

    def _stop_a_worker(self) -> None:
        name = self._draw.choice(WORKERS)
        self._stack.stop(name)
        self.restarts += 1
        self._start(name)

    def _restart_redis(self) -> None:
        self._stack.redis.kill()
        threading.Event().wait(self._draw.uniform(0, 3))
        self._stack.redis.start()
        self.restarts += 1

    def _pause(self) -> None:
        pid = self._draw.choice([*(process.pid for process in self._stack.processes.values()), self._stack.redis.pid])
        os.kill(pid, SIGSTOP)
        try:
            threading.Event().wait(self._draw.uniform(0.2, 3))
        finally:
            os.kill(pid, SIGCONT)

    def _start(self, name: str) -> None:
        if name in WORKERS:
            self._stack.start_worker(name)
        else:
            self._stack.start_api(name)


def ready_workers(connection: redis.Redis) -> int:
    """Return how many workers say that they are ready."""
    names = connection.zrange(keys.WORKERS, 0, -1)
    return sum(connection.hget(keys.worker(name.decode()), "state") == b"ready" for name in names)


def keys_left(connection: redis.Redis) -> list[str]:
    """Return the keys that hold something of a job: all but what lives, bounded, beside the jobs."""
    own = (keys.ANNOUNCEMENTS, keys.REAPER, keys.WORKERS, keys.worker(""), "_kombu.")
    names = (name.decode() for name in connection.scan_iter(count=1000))
    return sorted(name for name in names if not name.startswith(own))


def settled(left: Callable[[], list[str]], within_s: float) -> list[str]:
    """Return what `left` gives once that is nothing, or when the time is up."""
    ends = time.monotonic() + within_s
    while (some := left()) and time.monotonic() < ends:
        threading.Event().wait(0.5)
    return some


def say(line: str) -> None:
    sys.stdout.write(f"{line}\n")
    sys.stdout.flush()


def soak(directory: Path, soak_s: float, seed: str) -> int:
    """Return the exit status."""
    say(f"Faults for {soak_s:g} s, SOAK_SEED={seed}; then up to {JOB_TTL_S + RESULT_TTL_S + RECORD_TTL_S} s of expiry.")
    material, account = Material(directory / "models"), Account()
    with Stack(directory, COLQUEUE_CACHE_DIR=str(directory / "models"), **SETTINGS) as stack:
        urls = [stack.start_api(name) for name in APIS]
        for name in WORKERS:
            stack.start_worker(name)
        connection = redis.Redis.from_url(stack.redis.url)
        eventually(lambda: ready_workers(connection) == len(WORKERS), 150)
        before = connection.info("memory")["used_memory"]

        faults = Faults(stack, seed)
        callers = [
            Caller(f"{seed}/{number}", (KEY, OTHER_KEY, THIRD_KEY)[number % 3], urls, material, account)
            for number in range(CALLERS)
        ]
        for caller in callers:
            caller.start()
        began, told = time.monotonic(), 0.0
        while (lasted := time.monotonic() - began) < soak_s:
            if lasted - told >= PROGRESS_S:
                told = lasted
                did = f"{account.jobs} jobs, {account.inputs} inputs, {faults.kills} kills, {faults.restarts} restarts"
                say(f"{lasted:5.0f} s: {did}, {len(account.lost)} lost, {len(account.duplicated)} duplicated")
            threading.Event().wait(min(faults.pause_s(), soak_s - lasted))
            faults.cause_one()
        for caller in callers:
            caller.stopping.set()
        say("No more faults. Waiting for the callers ...")
        for caller in callers:
            caller.join(2 * PATIENCE_S)
        faults.notice()
        say("Waiting until all that was kept has expired ...")
        unfinished = settled(lambda: connection.zrange(keys.UNFINISHED, 0, -1), JOB_TTL_S)
        leaked = settled(lambda: keys_left(connection), JOB_TTL_S + RESULT_TTL_S + RECORD_TTL_S + 15)
        after = connection.info("memory")["used_memory"]
        connection.close()

    lost = len(account.lost) + len(unfinished) + sum(caller.is_alive() for caller in callers)
    facts = {"jobs": account.jobs, "inputs": account.inputs, "kills": faults.kills, "restarts": faults.restarts}
    facts |= {"lost": lost, "duplicated": len(account.duplicated), "leaked_keys": len(leaked)}
    facts |= {"redis_bytes_before": before, "redis_bytes_after": after}
    for name, left in (("unfinished", unfinished), ("left in Redis", leaked)):
        if left:
            say(f"WRONG: {name}: {left[:20]}")
    say(json.dumps(facts))
    bad = lost or account.duplicated or leaked or faults.ended or after > before + GROWTH_BYTES
    return 1 if bad else 0


if __name__ == "__main__":
    with TemporaryDirectory(prefix="soak-", ignore_cleanup_errors=True) as folder:
        status = soak(
            Path(os.environ.get("SOAK_DIR") or folder),
            float(os.environ.get("SOAK_S") or 600),
            os.environ.get("SOAK_SEED") or str(random.randrange(10**6)),  # noqa: S311  # a schedule, not a secret
        )
    sys.exit(status)
