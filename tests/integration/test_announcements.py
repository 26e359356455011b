import asyncio
import contextlib
import time
from functools import partial

import pytest
import redis
from doubles import OWNER, ROOM, rows_of
from proxy import SilentProxy

from api.announcements import Announcements
from api.store import Store
from api.submission import JobOptions, Submission
from colqueue_client.launch.local_redis import LocalRedis
from shared import keys
from shared.errors import JobNotFoundError, StoreUnavailableError
from shared.jobs import InputType, JobStatus, Lane
from shared.settings import StoreSettings, TokenSettings
from worker.store import Store as WorkerStore

# So far off that whoever returns was woken by an announcement: at the end of its time a wait reads the job once more.
NEVER_S = 1000
# Long enough for the slowest machine; no test waits for it unless it fails.
SOON_S = 120


class Stage:
    """An api process's store and announcements, and a worker's store, on one server."""

    def __init__(self, url, reread_s):
        settings = StoreSettings(_env_file=None, redis_url=url)
        self.store, self.worker = Store(settings, ROOM, TokenSettings(_env_file=None)), WorkerStore(settings)
        self.announcements = Announcements(settings.redis_dsn, reread_s=reread_s)

    async def create(self, number=1):
        submission = Submission(InputType.TEXT, [b"x"] * number, JobOptions())
        return (await self.store.create(submission, Lane.BULK, OWNER)).id

    async def job(self, job_id):
        return await self.store.job(job_id, OWNER)

    async def wait(self, job_id, until=lambda job: job.finished, timeout_s=NEVER_S):
        return await self.announcements.wait(await self.job(job_id), lambda: self.job(job_id), until, timeout_s)

    async def save(self, job_id, index=0):
        await asyncio.to_thread(self.worker.save, job_id, {index: rows_of(b"x")})

    @property
    def waiting(self):
        return dict(self.announcements._waiting)  # noqa: SLF001  # a leak shows nowhere else


def on_stage(url, play, *, reread_s=NEVER_S, reading=True):
    """Run `play(stage)` while the announcements are read; nobody may be registered at the end."""

    async def run():
        stage = Stage(url, reread_s)
        playing = asyncio.create_task(play(stage))
        reader = asyncio.create_task(stage.announcements.run() if reading else asyncio.sleep(NEVER_S))
        try:
            ended, _ = await asyncio.wait({playing, reader}, timeout=SOON_S, return_when=asyncio.FIRST_COMPLETED)
            assert reader not in ended, f"the reader ended: {reader!r}"
            assert playing in ended, "somebody still waits"
            playing.result()
            assert stage.waiting == {}
        finally:
            playing.cancel()
            reader.cancel()
            await asyncio.gather(playing, reader, return_exceptions=True)
            await stage.announcements.close()
            await stage.store.close()
            for client in (stage.worker._redis, stage.worker._impatient):  # noqa: SLF001  # it lives as long as a worker
                client.close()

    asyncio.run(run())


async def registered(stage, number=1):
    """Return once so many wait and have read their job."""
    ends = time.monotonic() + SOON_S
    while sum(map(len, stage.waiting.values())) < number:
        assert time.monotonic() < ends
        await asyncio.sleep(0.001)


def test_whoever_waits_is_woken_by_the_change(redis_url):
    async def play(stage):
        job_id = await stage.create()
        waiting = asyncio.create_task(stage.wait(job_id))
        await registered(stage)
        await stage.save(job_id)
        assert (await waiting).status is JobStatus.COMPLETED

    on_stage(redis_url, play)


def test_every_change_wakes_and_who_waits_for_more_waits_on(redis_url):
    async def play(stage):
        job_id = await stage.create(3)
        waiting = asyncio.create_task(stage.wait(job_id))
        for index in range(3):
            one_more = asyncio.create_task(stage.wait(job_id, lambda job, index=index: job.completed > index))
            await registered(stage, 2)
            assert not waiting.done()
            await stage.save(job_id, index)
            assert (await one_more).completed >= index + 1
        assert (await waiting).completed == 3

    on_stage(redis_url, play)


def test_a_cancellation_wakes(redis_url):
    async def play(stage):
        job_id = await stage.create()
        waiting = asyncio.create_task(stage.wait(job_id))
        await registered(stage)
        await stage.store.cancel(job_id)
        assert (await waiting).status is JobStatus.CANCELLED

    on_stage(redis_url, play)


def test_what_is_so_already_is_not_waited_for(redis_url):
    async def play(stage):
        job_id = await stage.create()
        await stage.save(job_id)
        assert (await stage.wait(job_id)).finished

    on_stage(redis_url, play, reading=False)


def test_no_wake_up_falls_between_registering_reading_and_waiting(redis_url):
    """Hundreds of jobs finish while hundreds begin to wait for them; one missed would wait for its re-read."""

    async def play(stage):
        ids = [await stage.create() for _ in range(500)]

        async def finish_all():
            for job_id in ids:
                await stage.save(job_id)

        async def wait_for_all():
            waits = []
            for job_id in ids:
                waits.append(asyncio.create_task(stage.wait(job_id)))
                await asyncio.sleep(0)  # so that those before it read while others register
            return await asyncio.gather(*waits)

        _, jobs = await asyncio.gather(finish_all(), wait_for_all())
        assert {job.id for job in jobs} == set(ids)
        assert {job.status for job in jobs} == {JobStatus.COMPLETED}

    on_stage(redis_url, play)


def test_a_change_between_the_read_and_the_wait_is_not_missed(redis_url):
    """The job finishes, and its announcement arrives, while `read` still holds what was before."""

    async def play(stage):
        job_id, reads = await stage.create(), []

        async def read():
            job = await stage.job(job_id)
            reads.append(job.status)
            if len(reads) == 1:
                woken = stage.announcements._waiting[job_id]  # noqa: SLF001  # the moment cannot be seen from outside
                await stage.save(job_id)
                ends = time.monotonic() + SOON_S
                while not any(changed.is_set() for changed in woken):
                    assert time.monotonic() < ends, "nobody was registered while the job was read"
                    await asyncio.sleep(0.001)
            return job

        job = await stage.announcements.wait(await stage.job(job_id), read, lambda job: job.finished, NEVER_S)
        assert job.finished
        assert reads == ["queued", "completed"]

    on_stage(redis_url, play)


def test_who_registers_before_the_reader_has_begun_is_woken_when_it_does(redis_url):
    async def play(stage):
        job_id = await stage.create()
        waiting = asyncio.create_task(stage.wait(job_id))
        await registered(stage)
        await asyncio.sleep(0.05)  # it has read its job and waits; nothing shows that from outside
        await stage.save(job_id)
        assert not waiting.done()
        reader = asyncio.create_task(stage.announcements.run())
        assert (await waiting).finished
        reader.cancel()
        with contextlib.suppress(asyncio.CancelledError):
            await reader

    on_stage(redis_url, play, reading=False)


def test_all_who_wait_share_one_connection(redis_url):
    async def play(stage):
        ids = [await stage.create() for _ in range(50)]
        waits = [asyncio.create_task(stage.wait(job_id)) for job_id in ids for _ in range(2)]
        await registered(stage, 100)
        with redis.Redis.from_url(redis_url) as connection:

            def readers():
                return [client for client in connection.client_list() if client["cmd"] == "xread"]

            ends = time.monotonic() + SOON_S
            while not (reading := readers()):
                assert time.monotonic() < ends
                await asyncio.sleep(0.01)
            assert len(reading) == 1
            for job_id in ids:
                await stage.save(job_id)
            await asyncio.gather(*waits)
            assert len(readers()) <= 1

    on_stage(redis_url, play)


def test_when_the_time_is_up_the_job_is_returned_as_it_is(redis_url):
    async def play(stage):
        job_id = await stage.create()
        started = time.monotonic()
        for timeout_s in (0, 0.05):
            assert (await stage.wait(job_id, timeout_s=timeout_s)).status is JobStatus.QUEUED
        assert 0.05 <= time.monotonic() - started < 60

    on_stage(redis_url, play)


def test_without_any_announcement_the_job_is_read_again_in_time(redis_url):
    async def play(stage):
        job_id = await stage.create()
        waiting = asyncio.create_task(stage.wait(job_id))
        await registered(stage)
        await stage.save(job_id)
        assert (await waiting).finished

    on_stage(redis_url, play, reread_s=0.05, reading=False)


def test_whoever_gives_up_is_registered_no_more(redis_url):
    async def play(stage):
        job_id = await stage.create()
        waits = [asyncio.create_task(stage.wait(job_id)) for _ in range(5)]
        await registered(stage, 5)
        for waiting in waits[1:]:
            waiting.cancel()
        await asyncio.gather(*waits[1:], return_exceptions=True)
        assert [len(events) for events in stage.waiting.values()] == [1]
        await stage.save(job_id)
        assert (await waits[0]).finished

    on_stage(redis_url, play)


def test_a_job_that_does_not_exist_is_not_waited_for(redis_url):
    async def play(stage):
        with pytest.raises(JobNotFoundError):
            await stage.wait("unknown")

    on_stage(redis_url, play)


def test_announcements_of_jobs_that_nobody_waits_for_leave_nothing(redis_url):
    async def play(stage):
        for _ in range(20):
            await stage.save(await stage.create())
        last = await stage.create()
        waiting = asyncio.create_task(stage.wait(last))
        await registered(stage)
        await stage.save(last)
        await waiting

    on_stage(redis_url, play)


def test_who_waits_is_woken_through_a_restart_of_redis(tmp_path):
    with LocalRedis(tmp_path) as server:

        async def play(stage):
            ids = [await stage.create() for _ in range(30)]
            waits = [asyncio.create_task(stage.wait(job_id)) for job_id in ids]
            await registered(stage, 30)
            for job_id in ids[:10]:
                await stage.save(job_id)
            server.stop()
            server.start()
            for job_id in ids[10:]:
                await stage.save(job_id)
            jobs = await asyncio.gather(*waits)
            assert {job.status for job in jobs} == {JobStatus.COMPLETED}

        on_stage(server.url, play)


def test_a_job_that_finished_while_the_reader_was_cut_off_is_noticed_by_announcement(redis_url):
    async def play(stage):
        job_id = await stage.create()
        waiting = asyncio.create_task(stage.wait(job_id))
        await registered(stage)
        with redis.Redis.from_url(redis_url) as connection:
            ends = time.monotonic() + SOON_S
            while not (cut := [client for client in connection.client_list() if client["cmd"] == "xread"]):
                assert time.monotonic() < ends
                await asyncio.sleep(0.01)
            connection.client_kill_filter(_id=cut[0]["id"])
        await stage.save(job_id)
        assert (await waiting).finished

    on_stage(redis_url, play)


def test_who_waits_outlives_an_absence_of_redis_and_who_asks_anew_is_told(tmp_path):
    with LocalRedis(tmp_path) as server:

        async def play(stage):
            job_id = await stage.create()
            waiting = asyncio.create_task(stage.wait(job_id))
            await registered(stage)
            server.stop()
            with pytest.raises(StoreUnavailableError):
                await stage.wait(job_id)
            for event in stage.announcements._waiting[job_id]:  # noqa: SLF001  # as if it were time to read again
                event.set()
            await asyncio.sleep(0.1)
            assert not waiting.done()
            server.start()
            await stage.save(job_id)
            assert (await waiting).finished

        on_stage(server.url, play)


@pytest.mark.parametrize("protocol", [2, 3])
def test_either_protocol_of_redis_will_do(redis_url, protocol):
    async def play(stage):
        job_id = await stage.create()
        waiting = asyncio.create_task(stage.wait(job_id))
        await registered(stage)
        await stage.save(job_id)
        assert (await waiting).finished

    on_stage(f"{redis_url}?protocol={protocol}", play)


def test_a_stream_that_was_emptied_does_not_end_the_reader(redis_url):
    async def play(stage):
        with redis.Redis.from_url(redis_url) as connection:
            for _ in range(3):
                job_id = await stage.create()
                waiting = asyncio.create_task(stage.wait(job_id))
                await registered(stage)
                await stage.save(job_id)
                assert (await waiting).finished
                connection.delete(keys.ANNOUNCEMENTS)

    on_stage(redis_url, play)


def test_a_connection_that_died_in_silence_is_replaced_and_who_waits_is_woken(redis_url, redis_server, monkeypatch):
    monkeypatch.setattr("api.announcements._BLOCK_MS", 300)
    monkeypatch.setattr("api.announcements._SOCKET_TIMEOUT_S", 1)

    with SilentProxy(redis_server.port) as proxy:

        async def play(stage):
            announcements = Announcements(f"redis://127.0.0.1:{proxy.port}/0", reread_s=NEVER_S)
            reader = asyncio.create_task(announcements.run())
            try:
                first, second = await stage.create(), await stage.create()
                waiting = [
                    asyncio.create_task(
                        announcements.wait(
                            await stage.job(job_id), partial(stage.job, job_id), lambda job: job.finished, NEVER_S
                        )
                    )
                    for job_id in (first, second)
                ]
                await stage.save(first)
                assert (await waiting[0]).finished  # so the reader reads
                proxy.freeze()
                await stage.save(second)
                proxy.thaw()
                assert (await waiting[1]).finished
            finally:
                reader.cancel()
                await asyncio.gather(reader, return_exceptions=True)
                await announcements.close()

        on_stage(redis_url, play)
