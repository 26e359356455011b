"""The client's logic, played with scripted answers: no socket, no thread, no clock."""

import json
from datetime import UTC, datetime
from email.utils import format_datetime

import msgpack
import numpy as np
import pytest

from colqueue_client import calls
from colqueue_client.calls import NoReply, Pause, Retry
from colqueue_client.errors import InputFailedError, NotColqueueError, ServiceError, UnfinishedError, UnreachableError
from colqueue_client.streams import Outcome, stream
from colqueue_client.wire import Job, Options, Reply, Request

RETRY = Retry(for_s=10, first_s=1, longest_s=4)
NO_RETRY = Retry(for_s=0)
SHOWN = {
    "id": "j1",
    "status": "queued",
    "input_type": "image",
    "lane": "bulk",
    "total": 2,
    "completed": 0,
    "failed": 0,
    "created_at": "2026-01-02T03:04:05Z",
    "started_at": None,
    "finished_at": None,
    "expires_at": "2026-01-03T03:04:05Z",
}
FULL = Reply(429, {"retry-after": "2"}, b'{"error": "The queue is full.", "code": "queue_full"}')


def play(call, answer, steps=None):
    """Drive `call`; `answer(request)` replies. Return what it returns and all its steps."""
    steps, reply = [] if steps is None else steps, None
    while True:
        try:
            step = call.send(reply)
        except StopIteration as done:
            return done.value, steps
        steps.append(step)
        reply = answer(step) if isinstance(step, Request) else None


def in_turn(*replies):
    left = list(replies)
    return lambda _: left.pop(0)


def rows_of(*values, dtype=np.float32):
    return [np.full((2, 128), value, dtype) for value in values]


def embedded(*embeddings, errors=None):
    packed = [
        None if rows is None else {"dtype": rows.dtype.name, "shape": list(rows.shape), "data": rows.tobytes()}
        for rows in embeddings
    ]
    body = {"input_type": "image", "embeddings": packed} | ({} if errors is None else {"errors": errors})
    return Reply(200, {}, msgpack.packb(body))


def job(http=200, **changes):
    return Reply(http, {}, json.dumps(SHOWN | changes).encode())


def refused(status, code, **more):
    return Reply(status, {}, json.dumps({"error": "No.", "code": code} | more).encode())


def sent(request):
    return msgpack.unpackb(request.content)


def echo_at_most(most):
    """A service that takes `most` inputs at once and answers each input's first byte as its rows."""

    def answer(request):
        inputs = sent(request)["inputs"]
        if len(inputs) > most:
            return refused(413, "too_large")
        return embedded(*rows_of(*(data[0] for data in inputs)))

    return answer


def test_images_travel_as_they_are_and_come_back_in_order():
    found, (request,) = play(calls.embed("image", [b"\x01one", b"\x02two"], RETRY), echo_at_most(16))

    assert (request.method, request.path) == ("POST", "/embeddings")
    assert (request.headers["Content-Type"], request.headers["Accept"]) == ("application/msgpack",) * 2
    assert sent(request) == {"input_type": "image", "inputs": [b"\x01one", b"\x02two"]}
    assert [rows[0, 0] for rows in found] == [1, 2]
    assert {rows.dtype for rows in found} == {np.dtype(np.float32)}


def test_what_is_too_large_is_halved_until_it_is_taken_and_stays_small():
    images = [bytes([value]) for value in range(1, 41)]

    found, requests = play(calls.embed("image", images, RETRY), echo_at_most(5))

    assert [rows[0, 0] for rows in found] == list(range(1, 41))
    assert [len(sent(request)["inputs"]) for request in requests] == [16, 8, *[4] * 10]


def test_a_single_image_that_is_too_large_is_named_by_its_own_index():
    def answer(request):
        inputs = sent(request)["inputs"]
        return refused(413, "too_large") if b"large" in inputs else echo_at_most(2)(request)

    with pytest.raises(ServiceError) as caught:
        play(calls.embed("image", [b"a", b"b", b"c", b"large", b"d"], RETRY), answer)

    assert (caught.value.status, caught.value.code, caught.value.index) == (413, "too_large", 3)


def test_the_index_of_a_bad_image_counts_from_the_first_of_all():
    def answer(request):
        inputs = sent(request)["inputs"]
        if b"bad" in inputs:
            return refused(400, "image_invalid", index=inputs.index(b"bad"))
        return echo_at_most(16)(request)

    with pytest.raises(ServiceError) as caught:
        play(calls.embed("image", [b"x"] * 20 + [b"bad"], RETRY), answer)

    assert (caught.value.code, caught.value.index) == ("image_invalid", 20)


def named(inputs, bad, status=400, code="image_invalid"):
    """The service's refusal of a request that holds `bad`, which names it as the service does."""
    place = inputs.index(bad)
    return Reply(status, {}, json.dumps({"error": f"Input {place} is bad.", "code": code, "index": place}).encode())


def test_the_message_of_a_bad_input_counts_from_the_first_of_all_too():
    def answer(request):
        inputs = sent(request)["inputs"]
        return named(inputs, b"bad") if b"bad" in inputs else echo_at_most(16)(request)

    with pytest.raises(ServiceError) as caught:
        play(calls.embed("image", [b"x"] * 20 + [b"bad"], RETRY), answer)

    assert str(caught.value) == "Input 20 is bad. (400 image_invalid)"


@pytest.mark.parametrize("status", [400, 413])
def test_the_parts_of_a_split_submission_name_the_input_among_all(status):
    def answer(request):
        inputs = sent(request)["inputs"]
        if len(inputs) > 2:
            return refused(413, "too_large")
        if b"bad" in inputs:
            return named(inputs, b"bad", status, "too_large" if status == 413 else "image_invalid")
        return job(202, total=len(inputs))

    call = calls.submit_split("image", [b"a", b"b", b"c", b"bad", b"d"], Options(), RETRY, "key")
    if status == 413:
        (failure,) = play(call, answer)[0].failures
    else:
        with pytest.raises(ServiceError) as caught:
            play(call, answer)
        failure = caught.value

    assert (failure.index, failure.message) == (3, "Input 3 is bad.")


@pytest.mark.parametrize("lost_first", [False, True])
def test_an_error_that_ends_a_stream_names_the_input_among_all(lost_first):
    """The service refuses the input when it is submitted, or when its job was lost and is submitted again."""
    jobs, left_to_lose = Jobs(), [True] * lost_first

    def answer(request):
        if request.method == "POST" and b"bad" in (inputs := sent(request)["inputs"]) and not left_to_lose:
            return named(inputs, b"bad")
        if request.path.partition("?")[0].endswith("/result") and b"bad" in jobs.jobs[request.path.split("/")[2]]:
            left_to_lose.clear()
            return refused(410, "result_expired")
        return jobs(request)

    with pytest.raises(ServiceError) as caught:
        streamed(answer, [b"x"] * 6 + [b"bad"])

    assert (caught.value.index, caught.value.message) == (6, "Input 6 is bad.")


def test_a_full_service_is_asked_again_when_it_says():
    found, steps = play(calls.embed("text", ["x"], RETRY), in_turn(FULL, FULL, embedded(*rows_of(7))))

    assert found[0][0, 0] == 7
    pauses = [step.seconds for step in steps if isinstance(step, Pause)]
    assert len(pauses) == 2
    assert all(2 <= pause <= 2.5 for pause in pauses)


def test_a_service_that_stays_full_is_given_up_with_its_own_words():
    with pytest.raises(ServiceError) as caught:
        play(calls.embed("text", ["x"], RETRY), lambda _: FULL)

    assert (caught.value.status, caught.value.code, caught.value.message) == (429, "queue_full", "The queue is full.")


def test_pauses_of_our_own_choice_grow_up_to_a_limit_and_end():
    steps = []

    with pytest.raises(UnreachableError, match="refused"):
        play(calls.read("j1", RETRY), lambda _: NoReply("http://service: refused"), steps)

    pauses = [step.seconds for step in steps if isinstance(step, Pause)]
    assert all(full / 2 <= pause <= full for pause, full in zip(pauses, [1, 2, 4, 4, 4, 4], strict=False))
    assert 3 <= len(pauses) <= 6
    assert sum(pauses) <= RETRY.for_s


@pytest.mark.parametrize(("asked", "least", "most"), [("0", 0.1, 0.125), ("86400", 600, 750)])
def test_a_pause_that_nobody_can_mean_is_not_made(asked, least, most):
    reply = Reply(503, {"retry-after": asked})

    _, steps = play(calls.read("j1", Retry(for_s=10_000)), in_turn(reply, job()))

    assert least <= steps[1].seconds <= most


def test_a_date_in_retry_after_is_understood():
    def at(second):
        return format_datetime(datetime(2026, 1, 1, 0, 0, second, tzinfo=UTC), usegmt=True)

    away = Reply(503, {"retry-after": at(7), "date": at(3)})
    _, steps = play(calls.read("j1", RETRY), in_turn(away, job()))

    assert 4 <= steps[1].seconds <= 5


@pytest.mark.parametrize("status", [400, 401, 403, 404, 409, 410, 415, 422, 500])
def test_a_refusal_that_names_an_input_or_the_request_is_final(status):
    with pytest.raises(ServiceError) as caught:
        play(calls.read("j1", RETRY), in_turn(refused(status, "some_code", index=4)))

    assert (caught.value.status, caught.value.code, caught.value.index) == (status, "some_code", 4)


def test_a_result_that_is_to_be_released_says_so_and_a_job_that_is_gone_is_released_already():
    _, (request,) = play(calls.fetch_result("j1", 1, RETRY, release=True), in_turn(embedded(*rows_of(1))))
    assert request.path == "/jobs/j1/result?release=true"
    _, (request,) = play(calls.fetch_result("j1", 1, RETRY), in_turn(embedded(*rows_of(1))))
    assert request.path == "/jobs/j1/result"

    play(calls.release("j1", RETRY), in_turn(refused(404, "job_not_found")))
    with pytest.raises(ServiceError):
        play(calls.release("j1", RETRY), in_turn(refused(403, "forbidden")))


def test_a_job_is_sent_again_under_the_same_key():
    found, steps = play(calls.submit("image", [b"x"], Options(), RETRY), in_turn(NoReply("cut off"), FULL, job(202)))

    keys = [step.headers["Idempotency-Key"] for step in steps if isinstance(step, Request)]
    assert len(keys) == 3
    assert len(set(keys)) == 1
    assert isinstance(found, Job)
    assert (found.id, found.total, found.finished, found.created_at.year) == ("j1", 2, False, 2026)
    _, (other,) = play(calls.submit("image", [b"x"], Options(), RETRY), in_turn(job(202)))
    assert other.headers["Idempotency-Key"] != keys[0]


def test_options_that_are_not_set_are_left_to_the_service():
    _, (request,) = play(calls.submit("text", ["x"], Options(output_dtype="int8"), RETRY, "k"), in_turn(job(202)))

    assert sent(request) == {"input_type": "text", "inputs": ["x"], "output_dtype": "int8"}
    assert request.headers["Idempotency-Key"] == "k"


def test_a_submission_splits_and_an_input_too_large_fails_alone():
    def answer(request):
        inputs = sent(request)["inputs"]
        if b"large" in inputs:
            return refused(413, "too_large", index=inputs.index(b"large"))
        return job(202, id=inputs[0].decode(), total=len(inputs)) if len(inputs) <= 2 else refused(413, "too_large")

    call = calls.submit_split("image", [b"a", b"b", b"large", b"c", b"d"], Options(), RETRY, "key")
    submitted, requests = play(call, answer)

    assert [(found.id, list(indices)) for found, indices in submitted.jobs] == [("a", [0, 1]), ("c", [3, 4])]
    assert [(failure.index, failure.code) for failure in submitted.failures] == [(2, "too_large")]
    keys = [request.headers["Idempotency-Key"] for request in requests]
    assert len(set(keys)) == len(keys), "different inputs under one key would make one job of them"


def test_an_answer_that_is_late_is_waited_for_at_its_job():
    late = Reply(504, {"location": "/jobs/j1"}, b'{"error": "Not ready.", "code": "wait_timeout"}')
    done = job(total=1, status="completed")
    replies = in_turn(late, job(total=1), done, embedded(*rows_of(3), errors=[]), done)

    found, steps = play(calls.embed("image", [b"x"], RETRY), replies)

    assert found[0][0, 0] == 3
    asked = [f"{step.method} {step.path}" for step in steps]
    assert asked == [
        "POST /embeddings",
        "GET /jobs/j1",
        "GET /jobs/j1?wait=60",
        "GET /jobs/j1/result",
        "DELETE /jobs/j1",
    ]


def test_a_504_that_is_a_proxys_is_tried_again():
    found, _ = play(calls.embed("text", ["x"], RETRY), in_turn(Reply(504), embedded(*rows_of(1))))

    assert found[0][0, 0] == 1


def test_waiting_ends_with_the_job_or_with_the_time():
    found, _ = play(calls.wait("j1", RETRY), in_turn(job(), job(completed=1), job(status="completed")))
    assert found.status == "completed"

    now = iter([0.0, 1.0, 61.0, 121.0])
    with pytest.raises(UnfinishedError, match="100 s"):
        play(calls.wait("j1", RETRY, 100, lambda: next(now)), lambda _: job())


def test_a_result_has_none_where_an_input_failed_and_why():
    error = {"index": 1, "code": "image_invalid", "message": "the image is empty"}
    done = embedded(*rows_of(1, dtype=np.float16), None, errors=[error])

    found, _ = play(calls.result("j1", RETRY), in_turn(job(status="completed"), done))

    assert found.embeddings[0].dtype == np.float16
    assert found.embeddings[1] is None
    with pytest.raises(InputFailedError, match="input 1: the image is empty") as caught:
        found.complete()
    assert (caught.value.index, caught.value.code) == (1, "image_invalid")


def test_a_result_asked_for_too_early_is_unfinished():
    with pytest.raises(UnfinishedError):
        play(calls.result("j1", RETRY), in_turn(job(), job(202)))


@pytest.mark.parametrize(
    "reply",
    [
        Reply(200, {}, b"\xc1"),
        Reply(200, {}, b""),
        Reply(200, {}, msgpack.packb([1])),
        embedded(*rows_of(1, 2)),
        embedded(),
        embedded(None),
        Reply(200, {}, msgpack.packb({"embeddings": [{"dtype": "object", "shape": [1, 1], "data": b"12345678"}]})),
        Reply(200, {}, msgpack.packb({"embeddings": [{"dtype": "float32", "shape": [3, 128], "data": b"1234"}]})),
    ],
)
def test_an_answer_that_is_not_what_was_asked_for_is_asked_for_again_and_then_no_answer(reply):
    with pytest.raises(UnreachableError):
        play(calls.embed("text", ["x"], RETRY), lambda _: reply)

    found, _ = play(calls.embed("text", ["x"], RETRY), in_turn(reply, embedded(*rows_of(1))))
    assert found[0][0, 0] == 1


PAGE = b"<!doctype html><title>Sign in</title>"
URL = "http://proxy/jobs/j1"


def page(status, **headers):
    return Reply(status, {"content-type": "text/html; charset=utf-8"} | headers, PAGE, URL)


PASSING = [
    *(page(status) for status in (200, 204, 408, 425, 429, 500, 502, 503, 504, 520)),
    *(page(status, location="/maintenance") for status in (302, 303, 307)),
    refused(500, "internal"),
    refused(408, "body_too_slow"),
    Reply(200, {"content-type": "application/json"}, b'{"status": "green"}', URL),
    NoReply("http://proxy: connection reset"),
]


@pytest.mark.parametrize("reply", PASSING, ids=lambda reply: str(getattr(reply, "status", "no reply")))
@pytest.mark.parametrize(
    ("call", "good"),
    [
        (lambda: calls.read("j1", RETRY), job()),
        (lambda: calls.submit("image", [b"x"], Options(), RETRY, "key"), job(202)),
        (lambda: calls.fetch_result("j1", 1, RETRY), embedded(*rows_of(1))),
        (lambda: calls.embed("image", [b"x"], RETRY), embedded(*rows_of(1))),
        (lambda: calls.cancel("j1", RETRY), job()),
        (lambda: calls.jobs(1, None, RETRY), Reply(200, {}, b'{"jobs": [], "next": null}')),
        (lambda: calls.metrics(RETRY), Reply(200, {}, b"colqueue_queue_tasks 0\n")),
    ],
    ids=["read", "submit", "fetch_result", "embed", "cancel", "jobs", "metrics"],
)
def test_what_may_pass_is_asked_again_by_every_call(reply, call, good):
    _, steps = play(call(), in_turn(reply, reply, good))

    requests = [step for step in steps if isinstance(step, Request)]
    assert len(requests) == 3
    assert requests[0] == requests[1] == requests[2]


@pytest.mark.parametrize("reply", [page(200), page(500), page(302, location="/login"), refused(500, "internal")])
def test_what_may_pass_or_not_is_given_up_sooner_than_a_service_that_is_away(reply):
    steps = []
    with pytest.raises((UnreachableError, ServiceError)):
        play(calls.read("j1", Retry(for_s=10_000, unsure_for_s=9)), lambda _: reply, steps)
    assert 4 < sum(step.seconds for step in steps if isinstance(step, Pause)) <= 9

    with pytest.raises((UnreachableError, ServiceError)):
        play(calls.read("j1", Retry(for_s=0, unsure_for_s=9)), in_turn(reply))


@pytest.mark.parametrize(
    ("reply", "error", "words"),
    [
        (page(301, location="https://proxy/"), NotColqueueError, "answered 301 .* redirects to https://proxy/"),
        (page(308, location="https://proxy/"), NotColqueueError, "redirects to https://proxy/"),
        (
            page(404),
            NotColqueueError,
            "/jobs/j1 answered 404 Not Found with an HTML page: that is not",
        ),
        (
            Reply(404, {"content-type": "application/json"}, b'{"detail": "Not Found"}'),
            NotColqueueError,
            "not colqueue",
        ),
        (Reply(404, {}, b'{"error": "no route"}', URL), NotColqueueError, "that is not colqueue"),
        (page(405), NotColqueueError, "that is not colqueue"),
        (page(410), NotColqueueError, "that is not colqueue"),
        (page(401), ServiceError, "answered 401 Unauthorized with an HTML page. A proxy .* wants a login of its own"),
        (page(403), ServiceError, "wants a login of its own"),
    ],
)
def test_what_does_not_pass_is_named_at_once(reply, error, words):
    with pytest.raises(error, match=words):
        play(calls.read("j1", RETRY), in_turn(reply))


@pytest.mark.parametrize(
    ("reply", "error", "words"),
    [
        (page(302, location="https://sso/login"), NotColqueueError, "redirects to https://sso/login. Is that a login"),
        (page(200), NotColqueueError, "answered 200 OK with an HTML page: that is not colqueue"),
        (page(502), UnreachableError, "answered 502 Bad Gateway .* the service behind it does not answer"),
        (page(500), UnreachableError, "answered 500 Internal Server Error"),
    ],
)
def test_what_did_not_pass_in_time_is_named(reply, error, words):
    with pytest.raises(error, match=words):
        play(calls.read("j1", RETRY), lambda _: reply)


def test_a_proxy_that_takes_only_small_requests_makes_them_smaller():
    images = [bytes([value]) for value in range(1, 5)]

    def answer(request):
        return page(413) if len(sent(request)["inputs"]) > 2 else echo_at_most(2)(request)

    found, _ = play(calls.embed("image", images, RETRY), answer)

    assert [rows[0, 0] for rows in found] == [1, 2, 3, 4]


def test_metrics_of_another_program_are_not_those_of_colqueue():
    with pytest.raises(NotColqueueError, match="no metrics of colqueue"):
        play(calls.metrics(NO_RETRY), in_turn(Reply(200, {}, b"node_cpu_seconds_total 1\n")))


def test_a_page_in_place_of_the_readiness_is_not_ready():
    with pytest.raises(NotColqueueError):
        play(calls.readiness(), in_turn(page(200)))


def test_readiness_is_asked_once_and_gives_the_reason_when_not():
    loading = Reply(503, {"retry-after": "2"}, b'{"status": "not_ready", "reason": "the model is loading"}')

    found, steps = play(calls.readiness(), in_turn(loading))

    assert (found.ready, found.reason) == (False, "the model is loading")
    assert len(steps) == 1
    assert play(calls.readiness(), in_turn(Reply(200, {}, b'{"status": "ready"}')))[0].ready


class Jobs:
    """A service of jobs: each input's rows are its first byte; of its results, `lose` are gone when they are read."""

    def __init__(self, most=100, lose=0):
        self.most, self.lose, self.jobs, self.most_open = most, lose, {}, 0

    def __call__(self, request):
        if request.method == "POST":
            inputs = sent(request)["inputs"]
            if len(inputs) > self.most:
                return refused(413, "too_large")
            name = f"job{len(self.jobs)}-{request.headers['Idempotency-Key']}"
            self.jobs[name] = inputs
            self.most_open = max(self.most_open, len(self.jobs))
            return job(202, id=name, total=len(inputs))
        name = request.path.split("/")[2].partition("?")[0]
        if self.lose and "result" in request.path:
            self.lose -= 1
            del self.jobs[name]
            return refused(410, "result_expired")
        if not request.path.partition("?")[0].endswith("/result"):
            return job(id=name, status="completed", total=len(self.jobs[name]))
        inputs = self.jobs.pop(name)
        errors = [
            {"index": index, "code": "image_invalid", "message": "bad"}
            for index, data in enumerate(inputs)
            if data == b"bad"
        ]
        return embedded(*(None if data == b"bad" else rows_of(data[0])[0] for data in inputs), errors=errors)


def streamed(service, inputs, **options):
    call = stream("image", inputs, Options(), RETRY, **{"job_size": 4, "in_flight": 2} | options)
    reply, outcomes = None, []
    while True:
        try:
            step = call.send(reply)
        except StopIteration:
            return outcomes
        reply = service(step) if isinstance(step, Request) else None
        if isinstance(step, Outcome):
            outcomes.append(step)


@pytest.mark.parametrize("service", [Jobs(), Jobs(most=3), Jobs(lose=2)], ids=["plain", "splits", "loses jobs"])
def test_a_stream_yields_every_outcome_in_order(service):
    images = [bytes([value]) for value in range(1, 24)]
    images[9] = b"bad"

    outcomes = streamed(service, images)

    assert [outcome.index for outcome in outcomes] == list(range(23))
    assert [outcome.failure and outcome.failure.code for outcome in outcomes if outcome.embedding is None] == [
        "image_invalid"
    ]
    assert (outcomes[9].failure.index, outcomes[9].failure.code) == (9, "image_invalid")
    assert all(outcome.embedding[0, 0] == outcome.index + 1 for outcome in outcomes if outcome.failure is None)


def test_a_stream_has_no_more_jobs_on_their_way_than_asked_for():
    service = Jobs()

    streamed(service, (bytes([1]) for _ in range(40)))

    assert service.most_open == 2


def test_a_service_that_keeps_losing_jobs_is_given_up():
    with pytest.raises(ServiceError) as caught:
        streamed(Jobs(lose=99), [b"x"])

    assert caught.value.code == "result_expired"
