import asyncio
import json

import pytest
from starlette.requests import Request
from starlette.responses import Response
from virtual_time import run_in_virtual_time

from api.errors import error_response
from api.limits import BodyLimits
from shared.errors import ColqueueError

NEVER_S = 1000


async def reads_all(scope, receive, send):
    """An app that reads the body and answers its length, or the error of its reading."""
    try:
        n_bytes = sum([len(chunk) async for chunk in Request(scope, receive).stream()])
        response = Response(str(n_bytes))
    except ColqueueError as error:
        response = error_response(error)
    await response(scope, receive, send)


def limited(app=reads_all, **limits):
    return BodyLimits(app, **{"max_body_bytes": 100, "max_bodies_bytes": 150, "grace_s": NEVER_S} | limits)


async def call(limits, parts, *, declared=None, pause=None, owner=""):
    """Send a body in parts, each but the first after `pause()`; return status and body of the answer."""
    headers = [] if declared is None else [(b"content-length", str(declared).encode())]
    left, sent = list(parts), []

    async def receive():
        if pause is not None and len(left) < len(parts):
            await pause()
        part = left.pop(0)
        return {"type": "http.request", "body": part, "more_body": bool(left)}

    async def send(message):
        sent.append(message)

    await limits({"type": "http", "headers": headers, "state": {"owner": owner}}, receive, send)
    body = sent[1]["body"]
    return sent[0]["status"], json.loads(body) if body.startswith(b"{") else int(body), len(left)


def refusal(answer):
    status, body, left = answer
    return status, body["code"], left


def test_a_body_within_the_limits_is_read():
    assert run_in_virtual_time(call(limited(), [b"x" * 60, b"x" * 40])) == (200, 100, 0)


def test_a_body_that_says_it_is_too_large_is_refused_before_a_byte_is_read():
    assert refusal(run_in_virtual_time(call(limited(), [b"x", b"x"], declared=101))) == (413, "too_large", 2)


@pytest.mark.parametrize("declared", [None, 5])
def test_a_body_is_bounded_while_it_is_read_whatever_it_said(declared):
    answer = run_in_virtual_time(call(limited(), [b"x" * 60] * 100, declared=declared))
    assert refusal(answer) == (413, "too_large", 98)


def test_a_caller_that_stops_in_the_middle_of_its_body_is_not_waited_for():
    answer = run_in_virtual_time(call(limited(grace_s=0.05), [b"x", b"x"], pause=asyncio.Event().wait))
    assert refusal(answer) == (408, "body_too_slow", 1)


def test_a_caller_that_trickles_is_not_waited_for_either():
    """Each part comes in time and the whole never would."""
    answer = run_in_virtual_time(call(limited(grace_s=0.1), [b"x"] * 100, pause=lambda: asyncio.sleep(0.01)))
    assert refusal(answer)[:2] == (408, "body_too_slow")


def test_a_caller_that_began_fast_may_not_stop_for_longer_than_another():
    limits = limited(max_body_bytes=10**9, max_bodies_bytes=10**9, grace_s=0.05)
    answer = run_in_virtual_time(call(limits, [bytes(10**8), b"x"], pause=asyncio.Event().wait))
    assert refusal(answer) == (408, "body_too_slow", 1)


def test_a_large_body_may_take_its_time():
    limits = limited(max_body_bytes=10**6, max_bodies_bytes=10**6, grace_s=0.05)
    parts = [bytes(16 * 1024)] * 4
    assert run_in_virtual_time(call(limits, parts, pause=lambda: asyncio.sleep(0.04))) == (200, 65_536, 0)


def test_what_waits_behind_the_body_is_waited_for_without_end():
    """A caller that waits for its answer sends nothing more, and that it hangs up is heard whenever it does."""

    async def waits_on(scope, receive, send):
        await receive()
        assert (await receive())["type"] == "http.disconnect"
        await Response("7")(scope, receive, send)

    async def receive_slowly():
        if first.is_set():
            await asyncio.sleep(0.2)
            return {"type": "http.disconnect"}
        first.set()
        return {"type": "http.request", "body": b"", "more_body": False}

    first, sent = asyncio.Event(), []

    async def send(message):
        sent.append(message)

    run_in_virtual_time(limited(waits_on, grace_s=0.05)({"type": "http", "headers": []}, receive_slowly, send))
    assert sent[1]["body"] == b"7"


def test_the_bodies_of_one_key_leave_room_for_those_of_others():
    """One key alone comes to half of the memory with several bodies; a single body may take all of it."""

    async def play():
        let_go = asyncio.Event()

        async def holds(scope, receive, send):
            try:
                async for _ in Request(scope, receive).stream():
                    pass
                if scope["state"]["owner"] != "passing":
                    await let_go.wait()
                await Response("1")(scope, receive, send)
            except ColqueueError as error:
                await error_response(error)(scope, receive, send)

        limits = limited(holds)
        held = [asyncio.create_task(call(limits, [b"x" * 60], owner="heavy"))]
        await asyncio.sleep(0)
        assert refusal(await call(limits, [b"x" * 40], owner="heavy")) == (503, "busy", 0)
        held.append(asyncio.create_task(call(limits, [b"x" * 40], owner="light")))
        await asyncio.sleep(0)
        assert (await call(limits, [b"x" * 20], owner="passing"))[0] == 200
        let_go.set()
        assert [status for status, *_ in await asyncio.gather(*held)] == [200, 200]
        assert limits.held == 0
        assert not limits.held_by
        assert (await call(limits, [b"x" * 100], owner="heavy"))[0] == 200

    run_in_virtual_time(asyncio.wait_for(play(), 20))


def test_more_than_is_held_at_once_is_refused_until_something_of_it_is_let_go():
    async def play():
        let_go, submitted = asyncio.Event(), asyncio.Event()

        async def holds(scope, receive, send):
            async for _ in Request(scope, receive).stream():
                pass
            if scope.get("first"):
                submitted.set()
                await let_go.wait()
                scope["state"]["body"].let_go()
                await asyncio.Event().wait()  # for the result
            await Response("1")(scope, receive, send)

        async def first(scope, receive, send):
            try:
                await holds(scope | {"first": not submitted.is_set()}, receive, send)
            except ColqueueError as error:
                await error_response(error)(scope, receive, send)

        limits = limited(first)
        waiting = asyncio.create_task(call(limits, [b"x" * 100], owner="a"))
        await submitted.wait()
        assert refusal(await call(limits, [b"x" * 60], owner="b")) == (503, "busy", 0)
        assert (await call(limits, [b"x" * 25], owner="b"))[0] == 200
        let_go.set()
        await asyncio.sleep(0)
        await asyncio.sleep(0)
        assert (await call(limits, [b"x" * 100], owner="b"))[0] == 200
        waiting.cancel()
        await asyncio.gather(waiting, return_exceptions=True)
        assert limits.held == 0

    run_in_virtual_time(asyncio.wait_for(play(), 20))
