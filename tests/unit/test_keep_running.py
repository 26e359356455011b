"""Helper threads and tasks go on after any error, and say what it was."""

import asyncio
import threading

from structlog.testing import capture_logs

from shared import keep_running as module
from shared.keep_running import Periodic, keep_running


def test_a_step_that_fails_is_logged_and_the_next_one_comes():
    steps, third = [], threading.Event()

    def step():
        steps.append(len(steps))
        if len(steps) == 3:
            third.set()
        raise KeyError(len(steps))

    thread = Periodic("odd", step, 0.001)
    with capture_logs() as logs:
        thread.start()
        assert third.wait(10)
        thread.stop()
    assert {(line["event"], line["thread"], line["log_level"]) for line in logs} == {
        ("thread.step_failed", "odd", "error")
    }
    assert all(line["exc_info"] for line in logs)


def test_stopping_waits_for_the_step_under_way_and_may_come_before_the_start():
    inside, go_on = threading.Event(), threading.Event()

    def step():
        inside.set()
        assert go_on.wait(10)

    Periodic("never started", step, 10).stop()
    thread = Periodic("slow", step, 0.001)
    thread.start()
    assert inside.wait(10)
    stopping = threading.Thread(target=thread.stop)
    stopping.start()
    assert stopping.is_alive()
    go_on.set()
    stopping.join(10)
    assert not stopping.is_alive()


def test_a_task_that_fails_or_ends_is_begun_anew_until_it_is_cancelled(monkeypatch):
    monkeypatch.setattr(module, "_PAUSE_S", 0)
    begun = []

    async def watch():
        third = asyncio.Event()

        async def run():
            begun.append(len(begun))
            if len(begun) == 1:
                raise OSError("gone")
            if len(begun) == 3:
                third.set()
                await asyncio.Event().wait()

        task = asyncio.create_task(keep_running("odd", run))
        async with asyncio.timeout(10):
            await third.wait()
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)
        return task.cancelled()

    with capture_logs() as logs:
        assert asyncio.run(watch())
    assert [line["event"] for line in logs] == ["task.failed", "task.ended"]
