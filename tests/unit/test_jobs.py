import re
from datetime import UTC, datetime
from pathlib import Path

import pytest
from pydantic import ValidationError

from shared import jobs
from shared.jobs import FINISHED, Job, JobStatus, Lane
from shared.registry import job_from_hash

RECORD = {
    b"id": b"abc",
    b"owner": b"someone",
    b"status": b"running",
    b"input_type": b"image",
    b"lane": b"bulk",
    b"queue": b"bulk.3",
    b"request_id": b"request-7",
    b"output_dtype": b"",
    b"pool_factor": b"2",
    b"total": b"3",
    b"completed": b"1",
    b"failed": b"1",
    b"deadline_at": b"1700000100.5",
    b"created_at": b"1700000000.25",
    b"started_at": b"1700000001.5",
    b"expires_at": b"1700086400.25",
}


def test_a_record_is_read_as_the_job_it_describes():
    job = job_from_hash(RECORD)
    assert (job.id, job.status, job.input_type, job.lane) == ("abc", "running", "image", "bulk")
    assert (job.queue, job.request_id) == ("bulk.3", "request-7")
    assert (job.total, job.completed, job.failed) == (3, 1, 1)
    assert (job.output_dtype, job.pool_factor) == (None, 2)
    assert job.created_at == datetime(2023, 11, 14, 22, 13, 20, 250_000, tzinfo=UTC)
    assert job.finished_at is None


def test_a_job_shows_its_caller_neither_owner_nor_deadline_nor_queue():
    assert set(job_from_hash(RECORD).model_dump()) == {
        *("id", "status", "input_type", "lane", "output_dtype", "pool_factor", "total", "completed", "failed"),
        *("created_at", "started_at", "finished_at", "expires_at", "released", "model", "model_id"),
    }


def test_a_job_cannot_be_changed():
    with pytest.raises(ValidationError, match="frozen"):
        job_from_hash(RECORD).status = JobStatus.COMPLETED


@pytest.mark.parametrize("status", JobStatus)
def test_a_job_is_finished_in_the_states_that_never_change(status):
    job = job_from_hash(RECORD | {b"status": status.encode()})
    assert job.finished is (status in {"completed", "failed", "cancelled"})
    assert job.finished is (status in FINISHED)


def test_what_a_job_shows_survives_json():
    job = job_from_hash(RECORD)
    assert Job.model_validate_json(job.model_dump_json()).model_dump() == job.model_dump()


def test_each_queue_belongs_to_one_lane_and_the_first_bears_its_name():
    queues = [queue for lane in Lane for queue in lane.queues]
    assert len(set(queues)) == len(queues)
    assert all(Lane.of(queue) is lane for lane in Lane for queue in lane.queues)
    assert [lane.queues[0] for lane in Lane] == list(Lane)


def test_times_are_aware_and_in_utc():
    assert job_from_hash(RECORD | {b"created_at": b"0"}).created_at.isoformat() == "1970-01-01T00:00:00+00:00"


def test_every_status_is_documented():
    body = Path(jobs.__file__).read_text().partition("class JobStatus")[2].partition("\n\n\n")[0]
    documented = re.findall(r'^    ([A-Z]+) = "\w+"\n    """', body, re.MULTILINE)
    assert documented == [status.name for status in JobStatus]
