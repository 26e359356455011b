"""Causes the soak's faults, one after the other, in a running stack."""

import os
import random
import resource
import threading
from contextlib import suppress
from signal import SIGCONT, SIGKILL, SIGSTOP
from socket import gethostname
from typing import TYPE_CHECKING, Any, Final

import redis
from foreign_messages import foreign
from proxy import SilentProxy
from soaking.account import say
from stack import Process, Stack, eventually, skewed_clock

from shared import keys
from shared.jobs import Lane
from shared.models import ServedModel

if TYPE_CHECKING:
    from collections.abc import Callable

__all__ = ["APIS", "WORKERS", "Faults", "is_ready"]

APIS: Final = ("api", "other api")
FIRST, SECOND = 0, 1
WORKERS: Final = {"worker": FIRST, "other worker": FIRST, "worker of the second model": SECOND}
"""Which of the two models each worker serves."""
BEHIND_THE_PROXY: Final = ("other api", "other worker")
"""These reach Redis by a proxy that goes silent; the healthy caller asks the api that does not first."""
_HOUR_S: Final = 3600
_UNLIMITED: Final = (resource.RLIM_INFINITY, resource.RLIM_INFINITY)


def is_ready(connection: redis.Redis, process: Process) -> bool:
    """Return whether a worker says that it is ready; False while Redis does not answer."""
    try:
        return connection.hget(keys.worker(f"{gethostname()}-{process.pid}"), "state") == b"ready"
    except redis.RedisError:
        return False


class Faults:
    """Causes one fault after the other in a stack, from the main thread: each kind once, then any by its weight."""

    def __init__(
        self, stack: Stack, proxy: SilentProxy, connection: redis.Redis, models: list[ServedModel], seed: str
    ) -> None:
        self.kills = self.restarts = self.full_disks = self.freezes = self.skews = self.foreign_messages = 0
        self.ended: list[str] = []
        self.task: dict[str, Any] = {}
        """A message of ours as it lay in its queue: foreign messages are made of it."""
        self._stack = stack
        self._proxy = proxy
        self._redis = connection
        self._models = models
        self._draw = random.Random(seed)  # noqa: S311  # a schedule, not a secret
        self._faults: dict[Callable[[], None], float] = {
            self._kill_a_worker: 4,
            self._kill_all_workers: 1,
            self._stop_a_worker: 2,
            self._kill_an_api: 3,
            self._restart_redis: 2,
            self._pause: 4,
            self._fill_the_disk: 2,
            self._freeze_connections: 2,
            self._skew_a_clock: 2,
            self._put_in_foreign_messages: 2,
        }
        self._first = self._draw.sample(list(self._faults), k=len(self._faults))

    def start(self, name: str, **settings: str) -> None:
        """Start an api or a worker the way it is always started, with more `settings`."""
        if name in BEHIND_THE_PROXY:
            settings |= {"COLQUEUE_REDIS_URL": f"redis://127.0.0.1:{self._proxy.port}/0"}
        if name in WORKERS:
            model = {"COLQUEUE_MODEL": self._models[WORKERS[name]].name}
            self._stack.start_worker(name, COLQUEUE_ALIVE_FILE=f"{name}.alive", **model, **settings)
        else:
            self._stack.start_api(name, **settings)

    def cause_one(self) -> None:
        """Notice who ended by itself and start it again, then do some harm."""
        self.notice()
        if self._first:
            self._first.pop()()
        else:
            self._draw.choices(list(self._faults), list(self._faults.values()))[0]()

    def counts(self) -> dict[str, int]:
        """Return how often each kind of harm was done, as the soak's last line names them."""
        names = ("kills", "restarts", "full_disks", "freezes", "skews", "foreign_messages")
        return {name: getattr(self, name) for name in names}

    def pause_s(self) -> float:
        """Return how long to leave the stack alone."""
        return self._draw.uniform(0.2, 3)

    def notice(self) -> None:
        """Start again who ended by itself, and keep it in mind."""
        for name, process in list(self._stack.processes.items()):
            if not process.running():
                self.ended.append(f"{name} ended by itself with status {process.wait()}")
                say(f"WRONG: {self.ended[-1]}")
                self.start(name)

    def _kill_a_worker(self) -> None:
        if name := self._a_worker_to_spare():
            self._kill(name)

    def _kill_all_workers(self) -> None:
        """Where all are ready: so the service is without a worker for one start and not for several."""
        if all(self._is_ready(name) for name in WORKERS):
            for name in WORKERS:
                self._kill(name)

    def _kill_an_api(self) -> None:
        self._kill(self._draw.choice(APIS))

    def _kill(self, name: str) -> None:
        process: Process = self._stack.processes[name]
        process.signal(SIGKILL)
        process.wait()
        self.kills += 1
        self.start(name)

    def _stop_a_worker(self) -> None:
        if name := self._a_worker_to_spare():
            self._stack.stop(name)
            self.restarts += 1
            self.start(name)

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

    def _fill_the_disk(self) -> None:
        """Let every write to Redis's append-only file fail for a while, as on a full disk."""
        resource.prlimit(self._stack.redis.pid, resource.RLIMIT_FSIZE, (1, resource.RLIM_INFINITY))
        try:
            eventually(lambda: self._last_write() == "err")
            threading.Event().wait(self._draw.uniform(0.2, 6))
        finally:
            resource.prlimit(self._stack.redis.pid, resource.RLIMIT_FSIZE, _UNLIMITED)
        eventually(lambda: self._last_write() == "ok")
        self.full_disks += 1

    def _last_write(self) -> str:
        with suppress(redis.RedisError):
            return str(self._redis.info("persistence")["aof_last_write_status"])
        return "unknown"

    def _freeze_connections(self) -> None:
        self._proxy.freeze()
        threading.Event().wait(self._draw.uniform(0.2, 6))
        self._proxy.thaw()
        self.freezes += 1

    def _skew_a_clock(self) -> None:
        """Start a process again with a clock that is an hour off, until it is started the next time."""
        api = self._draw.choice(APIS)
        name = self._draw.choice([self._a_worker_to_spare() or api, api])
        self._stack.stop(name)
        self.start(name, **skewed_clock(self._draw.choice([_HOUR_S, -_HOUR_S])))
        self.skews += 1

    def _put_in_foreign_messages(self) -> None:
        """Put some into queues that workers read, and one among the tasks that they have taken."""
        queues = [queue for lane in Lane for model in self._models for queue in lane.queues_of(model.model_id)]
        queues += [queue for lane in Lane for queue in lane.queues]
        *waiting, taken = self._draw.sample(foreign(self.task), k=4)
        with suppress(redis.RedisError):
            for message in waiting:
                self._redis.lpush(self._draw.choice(queues), message)
                self.foreign_messages += 1
            tag = f"foreign-{self.foreign_messages}"
            self._redis.hset("unacked", tag, taken)
            self._redis.zadd("unacked_index", {tag: 1})
            self.foreign_messages += 1

    def _a_worker_to_spare(self) -> str | None:
        """Return a worker beside which another one of the first model is ready."""
        names = [name for name in WORKERS if any(self._is_ready(each) for each in self._others(name))]
        return self._draw.choice(names) if names else None

    @staticmethod
    def _others(name: str) -> list[str]:
        return [other for other, model in WORKERS.items() if other != name and model == FIRST]

    def _is_ready(self, name: str) -> bool:
        return is_ready(self._redis, self._stack.processes[name])
