"""Start colqueue 0.1.0 beside this release, and load the records that it left in Redis.

`fixtures/records-0.1.0.json` was made by running this file as a program (`python tests/old_release.py`) in a clone with
the whole history: it starts the api and the double worker of 0.1.0, makes one job in each state, and writes down every
key that Redis has then.
"""

import json
import os
import subprocess
import sys
import tarfile
import tempfile
from io import BytesIO
from pathlib import Path
from typing import Any, Final

import redis
from stack import ROOT, Stack, eventually

__all__ = ["COMMIT", "RECORDS", "load_records", "unpack_old_release"]

COMMIT: Final = "6e70b9eb48e67b8b5a4f6c9a9d1a8b4d5c4bb069"
"""The commit that was released as 0.1.0."""

RECORDS: Final = Path(__file__).parent / "fixtures" / "records-0.1.0.json"


def unpack_old_release(directory: Path) -> Path | None:
    """Write the source of 0.1.0 into `directory` and return it; None where this clone has no such commit."""
    packed = subprocess.run(["git", "archive", COMMIT], cwd=ROOT, capture_output=True, check=False)
    if packed.returncode != 0:
        return None
    with tarfile.open(fileobj=BytesIO(packed.stdout)) as archive:
        archive.extractall(directory, filter="data")
    return directory


def load_records(connection: "redis.Redis[bytes]") -> dict[str, str]:
    """Write the records of 0.1.0 into Redis as if they had been made now; return each job's id by its state."""
    made = json.loads(RECORDS.read_text())
    seconds, _ = connection.time()
    later_s = seconds - made["made_at"]
    for name, kept in made["keys"].items():
        match kept["type"]:
            case "hash":
                fields = {
                    field: str(float(value) + later_s) if field.endswith("_at") else value.encode("latin-1")
                    for field, value in kept["value"].items()
                }
                connection.hset(name, mapping=fields)
            case "zset":
                connection.zadd(name, {member: score + later_s for member, score in kept["value"].items()})
            case "list":
                connection.rpush(name, *(value.encode("latin-1") for value in kept["value"]))
            case "string":
                connection.set(name, kept["value"].encode("latin-1"))
        connection.expire(name, 3600)
    jobs: dict[str, str] = made["jobs"]
    return jobs


def _record() -> None:
    """Make `RECORDS` anew."""
    with tempfile.TemporaryDirectory() as folder:
        old = unpack_old_release(Path(folder) / "old")
        assert old is not None, f"this clone does not have the commit {COMMIT}"
        with Stack(Path(folder) / "stack", COLQUEUE_TASK_TEXTS="1") as stack:
            stack.start_api(root=old)
            stack.start_double("worker", root=old)
            stack.wait_until_ready()
            with stack.client() as http, redis.Redis.from_url(stack.redis.url) as connection:
                RECORDS.write_text(json.dumps(_made(stack, http, connection), indent=1, sort_keys=True) + "\n")


def _made(stack: Stack, http: Any, connection: Any) -> dict[str, Any]:
    def submit(*texts: str, **headers: str) -> str:
        body = {"input_type": "text", "inputs": list(texts), "lane": "bulk"}
        job_id: str = http.post("/jobs", json=body, headers=headers).json()["id"]
        return job_id

    def reaches(job_id: str, condition: str, value: object) -> None:
        eventually(lambda: http.get(f"/jobs/{job_id}").json()[condition] == value)

    jobs = {"completed": submit("one", "broken two"), "failed": submit("broken one")}
    for state, job_id in jobs.items():
        reaches(job_id, "status", state)
    connection.set("hold", "1")
    jobs["running"] = submit("one", "two", "three")
    eventually(lambda: connection.llen("runs") >= 4)
    connection.rpush("go", "1")
    reaches(jobs["running"], "completed", 1)
    stack.worker.signal(9)  # as a worker that dies: what it held is left as it is
    stack.worker.wait()
    jobs["queued"] = submit("four", "five", **{"Idempotency-Key": "a-key"})
    jobs["cancelled"] = submit("six")
    http.delete(f"/jobs/{jobs['cancelled']}").raise_for_status()
    names = [name.decode() for name in connection.scan_iter() if name.startswith((b"colqueue:", b"bulk", b"unacked"))]
    kept = {name: _kept(connection, name) for name in sorted(names) if connection.type(name) != b"stream"}
    return {"release": "0.1.0", "commit": COMMIT, "made_at": connection.time()[0], "jobs": jobs, "keys": kept}


def _kept(connection: Any, name: str) -> dict[str, Any]:
    kind = connection.type(name).decode()
    value: Any
    match kind:
        case "hash":
            value = {field.decode(): text.decode("latin-1") for field, text in connection.hgetall(name).items()}
        case "zset":
            value = {member.decode(): score for member, score in connection.zrange(name, 0, -1, withscores=True)}
        case "list":
            value = [text.decode("latin-1") for text in connection.lrange(name, 0, -1)]
        case _:
            value = connection.get(name).decode("latin-1")
    return {"type": kind, "value": value}


if __name__ == "__main__":
    sys.path[:0] = [str(ROOT), str(ROOT / "client")]
    os.environ.pop("CI", None)
    _record()
