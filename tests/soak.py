"""Random faults over the whole stack for a while, then an account of every input: `make soak`.

Callers send texts and pages, good and bad, in both lanes, to two models and from several keys. They wait, cancel, set
deadlines, hang up, repeat themselves and read large results. Meanwhile workers, apis and Redis are killed, stopped,
paused and started again, also with clocks that are an hour off; the disk of Redis's append-only file fills up, the
connections of one api and one worker go silent, and messages that are not ours are put into the queues. Every outcome
is compared with what was known beforehand: rows that the same model computed here, or the code of a failure. At the
end all that was kept must have left Redis.

`SOAK_S` is how long the faults last (600), `SOAK_SEED` repeats their order, `SOAK_DIR` keeps the logs. The last line is
one JSON object:

jobs, inputs            submissions whose outcome was checked, and what they held
large_results           of these, jobs whose result is sent in many pieces; each was read slowly, at once and in part
queries                 of these, the short queries of the healthy caller, one about every second
longest_query_outage_s  the longest time from a failed attempt at such a query until its answer, while the caller went
                        on trying at both apis; it must not be longer than 60 s
kills                   SIGKILLs of workers and apis
restarts                SIGTERMs of workers, and kills of Redis, which is then started again
full_disks              periods in which Redis could not write its append-only file
freezes                 periods in which connections to Redis went silent; those that were open stay so
skews                   processes that were stopped, and started with a clock that is an hour off
foreign_messages        messages that are not ours, put into queues and among the taken tasks
lost                    inputs without their outcome when all was over, or with a wrong one
duplicated              inputs that are counted or answered twice, and idempotency keys that made two jobs
mixed                   inputs with rows of another model than the one that the answer names or the request named
leaked_keys             keys left in Redis after every time to live, beside the few that there always are
redis_bytes_before      memory that Redis used when the stack was ready, and after all; it must not have grown by more
redis_bytes_after       than 4 MiB, of which the stream of announcements may be 2

The exit status is 0 where nothing was lost, doubled, mixed or leaked, no outage was too long, memory came back, and no
process ended by itself.
"""

import json
import os
import random
import sys
import threading
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Final

import redis
from proxy import SilentProxy
from soaking.account import Account, Material, say
from soaking.callers import PATIENCE_S, Caller, HealthyCaller, LargeResultReader, SomeCaller
from soaking.faults import APIS, WORKERS, Faults, is_ready
from stack import KEY, OTHER_KEY, THIRD_KEY, Stack, eventually

from shared import keys
from shared.jobs import Lane

JOB_TTL_S: Final = 90
# Longer than any outage may last, so that callers find their results afterwards.
RESULT_TTL_S: Final = 70
RECORD_TTL_S: Final = 10
GROWTH_BYTES: Final = 4 * 2**20
LONGEST_OUTAGE_S: Final = 60
CALLERS: Final = 6
PROGRESS_S: Final = 10
HEALTHY_KEY: Final = "key-of-the-healthy-caller"

SETTINGS: Final = {
    "SERVICE_API_KEY": f"{KEY},{OTHER_KEY},{THIRD_KEY},{HEALTHY_KEY}",
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


def keys_left(connection: redis.Redis) -> list[str]:
    """Return the keys that hold something of a job: all but what lives, bounded, beside the jobs."""
    own = (keys.ANNOUNCEMENTS, keys.REAPER, keys.WORKERS, keys.worker(""), keys.MODELS, keys.DEAD_LETTERS, "_kombu.")
    names = (name.decode() for name in connection.scan_iter(count=1000))
    return sorted(name for name in names if not name.startswith(own))


def settled(left: Callable[[], list[str]], within_s: float) -> list[str]:
    """Return what `left` gives once that is nothing, or when the time is up."""
    ends = time.monotonic() + within_s
    while (some := left()) and time.monotonic() < ends:
        threading.Event().wait(0.5)
    return some


def take_a_task(stack: Stack, connection: redis.Redis) -> dict[str, object]:
    """Return a message of ours, which no worker takes, as there is none yet."""
    with stack.client() as http:
        job_id = http.post("/jobs", json={"input_type": "text", "inputs": ["a"], "lane": Lane.BULK.value}).json()["id"]
        message: dict[str, object] = json.loads(connection.rpop(connection.hget(keys.job(job_id), "queue")))
        http.delete(f"/jobs/{job_id}")
    return message


def start_callers(seed: str, urls: Sequence[str], material: Material, account: Account) -> list[SomeCaller]:
    """Return all callers, running."""
    callers: list[SomeCaller] = [
        Caller(f"{seed}/{number}", (KEY, OTHER_KEY, THIRD_KEY)[number % 3], urls, material, account)
        for number in range(CALLERS)
    ]
    callers.append(LargeResultReader(f"{seed}/large", KEY, urls, material, account))
    callers.append(HealthyCaller(f"{seed}/healthy", HEALTHY_KEY, urls, material, account))
    for caller in callers:
        caller.start()
    return callers


def cause_faults(faults: Faults, account: Account, soak_s: float) -> None:
    """Return after `soak_s`; say every few seconds how it goes."""
    began, told = time.monotonic(), 0.0
    while (lasted := time.monotonic() - began) < soak_s:
        if lasted - told >= PROGRESS_S:
            told = lasted
            did = f"{account.jobs} jobs, {account.inputs} inputs, {faults.kills} kills, {faults.restarts} restarts"
            wrong = f"{len(account.found.lost)} lost, {len(account.found.duplicated)} duplicated"
            say(f"{lasted:5.0f} s: {did}, {wrong}, longest outage {account.longest_query_outage_s:.1f} s")
        threading.Event().wait(min(faults.pause_s(), soak_s - lasted))
        faults.cause_one()


def soak(directory: Path, soak_s: float, seed: str) -> int:
    """Return the exit status."""
    say(f"Faults for {soak_s:g} s, SOAK_SEED={seed}; then up to {JOB_TTL_S + RESULT_TTL_S + RECORD_TTL_S} s of expiry.")
    material, account = Material(directory / "models"), Account()
    settings = SETTINGS | {"COLQUEUE_CACHE_DIR": str(directory / "models")}
    with Stack(directory, **settings) as stack, SilentProxy(stack.redis.port) as proxy:
        connection = redis.Redis.from_url(stack.redis.url)
        faults = Faults(stack, proxy, connection, material.models, seed)
        for name in APIS:
            faults.start(name)
        faults.task = take_a_task(stack, connection)
        for name in WORKERS:
            faults.start(name)
        eventually(lambda: all(is_ready(connection, stack.processes[name]) for name in WORKERS), 240)
        before = connection.info("memory")["used_memory"]

        urls = [f"http://127.0.0.1:{stack.ports[name]}" for name in APIS]
        callers = start_callers(seed, urls, material, account)
        cause_faults(faults, account, soak_s)
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

    for name, left in (("unfinished", unfinished), ("left in Redis", leaked)):
        if left:
            say(f"WRONG: {name}: {left[:20]}")
    hanging = sum(caller.is_alive() for caller in callers)
    facts = {
        "jobs": account.jobs,
        "inputs": account.inputs,
        "large_results": account.large_results,
        "queries": account.queries,
        "longest_query_outage_s": round(account.longest_query_outage_s, 1),
        **faults.counts(),
        "lost": len(account.found.lost) + len(unfinished) + hanging,
        "duplicated": len(account.found.duplicated),
        "mixed": len(account.found.mixed),
        "leaked_keys": len(leaked),
        "redis_bytes_before": before,
        "redis_bytes_after": after,
    }
    say(json.dumps(facts))
    bad = any(facts[name] for name in ("lost", "duplicated", "mixed", "leaked_keys")) or faults.ended
    return 1 if bad or facts["longest_query_outage_s"] > LONGEST_OUTAGE_S or after > before + GROWTH_BYTES else 0


if __name__ == "__main__":
    with TemporaryDirectory(prefix="soak-", ignore_cleanup_errors=True) as folder:
        status = soak(
            Path(os.environ.get("SOAK_DIR") or folder),
            float(os.environ.get("SOAK_S") or 600),
            os.environ.get("SOAK_SEED") or str(random.randrange(10**6)),  # noqa: S311  # a schedule, not a secret
        )
    sys.exit(status)
