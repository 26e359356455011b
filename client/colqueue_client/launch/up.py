"""The whole stack on one machine: what `make run` starts. Knows the parts by their commands, not by their code."""

import contextlib
import fcntl
import importlib.util
import ipaddress
import os
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Final, TypeVar
from urllib.parse import urlsplit

import numpy as np
from numpy.typing import NDArray

from colqueue_client.client import Client
from colqueue_client.errors import LaunchError, UnreachableError
from colqueue_client.launch.console import Console
from colqueue_client.launch.local_redis import redis_answers, redis_command
from colqueue_client.launch.ports import free_port, require_free
from colqueue_client.launch.processes import Children
from colqueue_client.launch.report import Embedded, FirstEmbed, addresses
from colqueue_client.launch.settings import UpSettings, api_key, child_environment, flower_login
from colqueue_client.pages import render_pages
from colqueue_client.sample import SAMPLE_PDF, SAMPLE_QUERY

__all__ = ["up"]

T = TypeVar("T")

_POLL_S: Final = 0.2
_REDIS_START_S: Final = 30
_FLOWER_HOST: Final = "127.0.0.1"


def up(settings: UpSettings, console: Console, *, check: bool, ready_timeout_s: float) -> None:
    """Start Redis, worker, api and Flower, embed the sample, and serve until asked to stop; with `check`, stop then.

    Reads `.env` and keeps its state in `var`, both in the current folder. From the main thread only.

    Raises:
        LaunchError: something is missing, taken, too slow or dead.
        ServiceError: the service would not embed the sample.
        UnreachableError: the service gave no answer to it.
        KeyboardInterrupt: asked to stop before it was serving.
    """
    _require_parts()
    _require_ports(settings)
    if not _is_loopback(settings.host):
        console.say(f"Warning: on {settings.host} other machines can reach the api. Flower stays on {_FLOWER_HOST}.")
    dotenv, var = Path(".env"), Path("var").absolute()
    with _only_one(var), Children(console, var / "log") as children:
        key, login = api_key(settings, dotenv), flower_login(settings, dotenv)
        if settings.redis_url is None:
            redis_url = redis_shown = _start_redis(children, console, var / "redis")
        else:
            redis_url = settings.redis_url.get_secret_value()
            redis_shown = f"{urlsplit(redis_url).hostname} (COLQUEUE_REDIS_URL)"  # the URL may hold a password
        console.say("Starting worker, api and Flower ...")
        environment = child_environment(dotenv) | {
            "COLQUEUE_REDIS_URL": redis_url,
            "COLQUEUE_MODEL": settings.model,
            "COLQUEUE_HOST": settings.host,
            "COLQUEUE_PORT": str(settings.port),
            "SERVICE_API_KEY": key.configured,
        }
        if environment.get("COLQUEUE_LOG_FORMAT", "") in {"", "auto"}:
            environment["COLQUEUE_LOG_FORMAT"] = "text"  # it goes to a person, through a pipe
        _start_parts(children, settings.flower_port, environment, login.configured)
        url = _url(settings.host, settings.port)
        # No proxy and no .netrc of this machine's between the launcher and its own children.
        with Client(url, key.first, trust_env=False) as service:
            _wait_until_ready(children, console, service, ready_timeout_s)
            # Until now the death of one had a reason that a new start would meet again. Redis holds everything: when
            # that dies, the person should know.
            children.keep("worker", "api", "flower")
            console.say(f"Embedding the pages of {SAMPLE_PDF.name} and a query ...")
            first = children.during(lambda: _first_embed(service, settings.model))
        console.show(str(first))
        if check:
            console.say("Checked. Stopping ...")
            return
        flower_url = _url(_FLOWER_HOST, settings.flower_port)
        console.show(addresses(url=url, flower_url=flower_url, redis=redis_shown, key=key, login=login))
        with contextlib.suppress(KeyboardInterrupt):  # asked to stop: this is the ordinary end
            while True:
                children.wait(_POLL_S)
        console.say("Stopping ...")
    console.say("Stopped.")


def _require_parts() -> None:
    needed = ("shared.celery_entry", "celery", "fastapi", "flower", "torch")
    missing = [name for name in needed if not _is_installed(name)]
    if missing:
        raise LaunchError(f"not installed: {', '.join(missing)}. Install colqueue[local].")


def _is_installed(name: str) -> bool:
    try:
        return importlib.util.find_spec(name) is not None
    except ModuleNotFoundError:  # of the package it is in
        return False


def _root() -> Path:
    """Return where our parts lie, whatever the current folder is."""
    shared = importlib.util.find_spec("shared")
    assert shared is not None  # noqa: S101  # for mypy: required before
    assert shared.origin is not None  # noqa: S101  # likewise
    return Path(shared.origin).parents[1]


def _require_ports(settings: UpSettings) -> None:
    if settings.port == settings.flower_port:
        raise LaunchError(f"the api and Flower cannot share port {settings.port}. Set COLQUEUE_FLOWER_PORT.")
    require_free(settings.host, settings.port, variable="COLQUEUE_PORT")
    require_free(_FLOWER_HOST, settings.flower_port, variable="COLQUEUE_FLOWER_PORT")


@contextlib.contextmanager
def _only_one(var: Path) -> Iterator[None]:
    """Hold `var` for this process: two servers must never write one append-only file."""
    try:
        var.mkdir(parents=True, exist_ok=True)
        lock = (var / "up.lock").open("w")
    except OSError as error:
        raise LaunchError(f"cannot write to {var}: {error.strerror}.") from error
    with lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            raise LaunchError(
                f"another `colqueue up` is using {var}: stop it, or start from another folder."
            ) from error
        yield


def _start_redis(children: Children, console: Console, directory: Path) -> str:
    directory.mkdir(parents=True, exist_ok=True)
    port = free_port()
    command = redis_command(directory, port)
    console.say(f"Starting Redis on port {port}: {command[0]}")
    pid = children.start("redis", command, os.environ)
    deadline = time.monotonic() + _REDIS_START_S
    while not redis_answers(port, pid):
        if time.monotonic() > deadline:
            raise LaunchError(f"Redis did not answer within {_REDIS_START_S} s.")
        children.wait(_POLL_S)
    return f"redis://127.0.0.1:{port}/0"


def _start_parts(children: Children, flower_port: int, environment: dict[str, str], login: str) -> None:
    # Our packages by path and never by the current folder, which may well hold an `api` or a `worker` of its own.
    root = str(_root())
    path = [root, *filter(None, [environment.get("PYTHONPATH")])]
    environment |= {"PYTHONPATH": ":".join(path), "PYTHONSAFEPATH": "1", "PYTHONUNBUFFERED": "1"}
    environment.pop("FLOWER_BASIC_AUTH", None)  # for Flower alone
    children.start("worker", [sys.executable, "-m", "worker"], environment)
    children.start("api", [sys.executable, "-m", "api"], environment)
    celery = [sys.executable, "-m", "celery", f"--workdir={root}", "-A", "shared.celery_entry"]
    flower = ["flower", f"--address={_FLOWER_HOST}", f"--port={flower_port}", "--purge_offline_workers=60"]
    flower.append("--tasks_columns=name,state,args,result,received,runtime,worker")
    # With a password Flower refuses other sites' pages; without one any page that the person opens could use its API.
    flower_environment = environment | {"FLOWER_BASIC_AUTH": login, "FLOWER_UNAUTHENTICATED_API": "false"}
    children.start("flower", [*celery, *flower], flower_environment)


def _wait_until_ready(children: Children, console: Console, service: Client, timeout_s: float) -> None:
    console.say("Waiting until the service is ready; a model that is not here yet is made or fetched first ...")
    started, told = time.monotonic(), ""
    while True:
        try:
            readiness = service.readiness()
        except UnreachableError:
            reason = "the api does not answer yet"
        else:
            if readiness.ready:
                console.say(f"Ready after {time.monotonic() - started:.1f} s.")
                return
            reason = readiness.reason
        if time.monotonic() - started > timeout_s:
            raise LaunchError(f"not ready after {timeout_s:g} s (--ready-timeout): {reason}")
        if reason != told:
            console.say(f"Not ready yet: {reason}")
            told = reason
        children.wait(_POLL_S)


def _first_embed(service: Client, model: str) -> FirstEmbed:
    pages = [_measure(service.embed_images, image) for image in render_pages(SAMPLE_PDF)]
    return FirstEmbed(SAMPLE_QUERY, pages, _measure(service.embed_queries, SAMPLE_QUERY), model)


def _measure(embed: Callable[[list[T]], list[NDArray[np.float32]]], one: T) -> Embedded:
    start = time.perf_counter()
    (rows,) = embed([one])
    return Embedded(rows, (time.perf_counter() - start) * 1000)


def _is_loopback(host: str) -> bool:
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"


def _url(host: str, port: int) -> str:
    """Return where a client on this machine reaches a server that listens on `host`."""
    reachable = {"0.0.0.0": "127.0.0.1", "::": "::1"}.get(host, host)
    return f"http://[{reachable}]:{port}" if ":" in reachable else f"http://{reachable}:{port}"
