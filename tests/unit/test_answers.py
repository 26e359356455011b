import asyncio
import io
import json

import msgpack
import numpy as np
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from api.answers import JSON, MSGPACK, NPZ, Answers, negotiated
from api.outgoing import AnswerRoom
from api.results import Piece
from shared.codecs import AnswerHead, pack_rows, unpack_rows
from shared.errors import ResultExpiredError

ROWS = np.ones((2, 128), np.float32)
PAGE = np.ones((700, 128), np.float32)
MEGABYTE = 2**20


def chosen(accept, default=JSON):
    return negotiated(accept, default)


class StoredRows:
    """A result of `total` inputs, each `rows`, one a piece, that notes what is read of it."""

    def __init__(self, rows, total, broken_at=None):
        self.packed = pack_rows(rows)
        self.total = total
        self.read_pieces = 0
        self.broken_at = broken_at

    async def pieces(self):
        for index in range(self.total):
            yield Piece(range(index, index + 1), len(self.packed), is_last=index == self.total - 1)

    async def read(self, piece):
        if piece.inputs.start == self.broken_at:
            raise ResultExpiredError("gone")
        self.read_pieces += 1
        return [self.packed]

    def rows(self, packed):
        return unpack_rows(packed)


class Caller:
    """The ASGI side of a caller: takes each part once it is `reading`, and may hang up."""

    def __init__(self):
        self.reading = asyncio.Event()
        self.reading.set()
        self.gone = asyncio.Event()
        self.status = None
        self.headers = {}
        self.body = b""
        self.complete = False

    async def receive(self):
        await self.gone.wait()
        return {"type": "http.disconnect"}

    async def send(self, message):
        await self.reading.wait()
        if self.gone.is_set():
            return  # as uvicorn does
        if message["type"] == "http.response.start":
            self.status = message["status"]
            self.headers = dict(message["headers"])
        else:
            self.body += message["body"]
            self.complete = not message["more_body"]


def response(answers, source, media_type=JSON, owner="owner", after=None):
    return answers.response(media_type, AnswerHead("text", source.total), source, owner, after)


def answered(source, media_type=JSON, after=None):
    """Return the caller that was sent the whole answer."""

    async def ask():
        answers, caller = Answers(MEGABYTE), Caller()
        await response(answers, source, media_type, after=after)({"path": "/"}, caller.receive, caller.send)
        assert answers.room.granted == 0
        answers.close()
        return caller

    return asyncio.run(ask())


async def turns(condition):
    """Let the event loop and the encoding thread go on until the condition holds."""
    async with asyncio.timeout(30):
        while not condition():  # noqa: ASYNC110  # no event tells of what the condition asks
            await asyncio.sleep(0.001)


def body(media_type):
    return answered(StoredRows(ROWS, 1), media_type).body


def test_each_media_type_holds_what_it_says():
    assert np.array(json.loads(body(JSON))["embeddings"]).shape == (1, 2, 128)
    assert msgpack.unpackb(body(MSGPACK))["embeddings"][0]["shape"] == [2, 128]
    with np.load(io.BytesIO(body(NPZ))) as archive:
        assert archive["emb_0"].shape == (2, 128)


@pytest.mark.parametrize("default", [JSON, NPZ])
@pytest.mark.parametrize(
    "accept",
    [None, "", "*/*", "application/*", "text/html,application/xhtml+xml,application/xml;q=0.9,*/*;q=0.8", ",;q=,;;"],
)
def test_a_caller_that_asks_for_nothing_in_particular_gets_the_routes_default(accept, default):
    assert chosen(accept, default) == default


@pytest.mark.parametrize("default", [JSON, NPZ])
@pytest.mark.parametrize(
    ("accept", "media_type"),
    [
        ("application/json", JSON),
        ("application/x-npz", NPZ),
        ("application/npz", NPZ),
        ("application/msgpack", MSGPACK),
        ("application/x-msgpack", MSGPACK),
        ("Application/X-NPZ ; charset=utf-8", NPZ),
        ("application/json, text/plain, */*", JSON),
        ("text/plain, application/x-npz", NPZ),
        ("application/json;q=0.5, application/x-npz", NPZ),
        ("application/json;q=0.5, application/msgpack;q=0.9, application/x-npz;q=0.1", MSGPACK),
        ("application/x-npz;q=0.5,application/json;q=0.50", NPZ),
    ],
)
def test_the_best_known_media_type_wins(accept, media_type, default):
    assert chosen(accept, default) == media_type


@pytest.mark.parametrize(
    "accept", ["application/x-npz;q=0, */*", "application/x-npz;q=0.0", "*/*, application/x-npz;q=0"]
)
def test_a_media_type_of_quality_zero_is_not_answered(accept):
    assert chosen(accept) == JSON


@pytest.mark.parametrize("quality", ["", "high", "1.2.3", "-1", "1e9", "nan", "inf", "\xb2", "\xb9.\xb2", "0x1"])
def test_a_quality_that_is_no_number_harms_nothing(quality):
    assert chosen(f"application/x-npz;q={quality}, application/json;q=0.5") in {JSON, NPZ}


words = st.sampled_from(
    ["application/x-npz", "application/json", "*/*", "a/b", ";q=", ";", ",", "0", "1", ".", "\xb2", " "]
)


@settings(max_examples=40, deadline=None)
@example("application/x-npz;q=\xb2")
@given(st.text(st.characters(max_codepoint=255), max_size=30) | st.lists(words, max_size=12).map("".join))
def test_whatever_a_caller_accepts_it_gets_an_answer(accept):
    assert chosen(accept) in {JSON, NPZ, MSGPACK}


@pytest.mark.parametrize("media_type", [JSON, MSGPACK, NPZ])
def test_a_result_of_many_pieces_is_sent_whole_and_each_piece_is_read_once(media_type):
    source = StoredRows(PAGE, 5)
    caller = answered(source, media_type)
    assert caller.complete
    assert caller.headers == {b"content-type": media_type.encode()}
    assert source.read_pieces == 5
    readers = {
        JSON: lambda: [np.array(rows, np.float32) for rows in json.loads(caller.body)["embeddings"]],
        MSGPACK: lambda: [
            np.frombuffer(each["data"], each["dtype"]) for each in msgpack.unpackb(caller.body)["embeddings"]
        ],
        NPZ: lambda: [np.load(io.BytesIO(caller.body))[f"emb_{index}"] for index in range(5)],
    }
    for rows in readers[media_type]():
        np.testing.assert_array_equal(rows.reshape(PAGE.shape), PAGE)


def test_the_length_of_an_answer_of_one_piece_is_told_before_it():
    for rows in (ROWS, PAGE):
        caller = answered(StoredRows(rows, 1))
        assert int(caller.headers[b"content-length"]) == len(caller.body)


def test_a_slow_reader_holds_one_piece_and_not_the_result():
    source = StoredRows(PAGE, 50)

    async def ask():
        answers, caller = Answers(100 * MEGABYTE), Caller()
        caller.reading.clear()
        sending = asyncio.create_task(response(answers, source)({"path": "/"}, caller.receive, caller.send))
        await turns(lambda: answers.room.granted)
        for _ in range(100):
            await asyncio.sleep(0)
        held = answers.room.granted, source.read_pieces
        caller.reading.set()
        await sending
        answers.close()
        return held, caller

    (granted, read_pieces), caller = asyncio.run(ask())
    assert granted <= 8 * len(source.packed)
    assert read_pieces <= 1
    assert len(json.loads(caller.body)["embeddings"]) == 50


def test_a_caller_that_hangs_up_half_way_is_read_for_no_longer_and_the_answer_does_not_count_as_whole():
    source, told = StoredRows(PAGE, 50), []

    async def after(is_whole):
        told.append(is_whole)

    async def ask():
        answers, caller = Answers(100 * MEGABYTE), Caller()
        sending = asyncio.create_task(
            response(answers, source, after=after)({"path": "/"}, caller.receive, caller.send)
        )
        await turns(lambda: source.read_pieces >= 2)
        caller.gone.set()
        await sending
        assert answers.room.granted == 0
        answers.close()

    asyncio.run(ask())
    assert source.read_pieces < 50
    assert told == [False]


def test_a_caller_that_hangs_up_while_the_last_piece_is_sent_is_noticed():
    source, told = StoredRows(PAGE, 1), []

    async def after(is_whole):
        told.append(is_whole)

    async def ask():
        answers, caller = Answers(100 * MEGABYTE), Caller()
        caller.reading.clear()
        sending = asyncio.create_task(
            response(answers, source, after=after)({"path": "/"}, caller.receive, caller.send)
        )
        await turns(lambda: source.read_pieces)
        caller.gone.set()
        caller.reading.set()
        await sending
        answers.close()

    asyncio.run(ask())
    assert told == [False]


class LeavingCaller(Caller):
    """Hangs up with the first part of the body."""

    async def send(self, message):
        await super().send(message)
        if message["type"] == "http.response.body":
            self.gone.set()


def test_a_caller_that_hangs_up_while_the_last_bytes_are_sent_is_noticed():
    told = []

    async def after(is_whole):
        told.append(is_whole)

    async def ask():
        answers, caller = Answers(MEGABYTE), LeavingCaller()
        await response(answers, StoredRows(ROWS, 1), after=after)({"path": "/"}, caller.receive, caller.send)
        answers.close()

    asyncio.run(ask())
    assert told == [False]


def test_a_whole_answer_counts_as_such():
    told = []

    async def after(is_whole):
        told.append(is_whole)

    answered(StoredRows(PAGE, 3), after=after)
    answered(StoredRows(ROWS, 1), after=after)
    assert told == [True, True]


def test_a_result_that_is_gone_before_the_first_piece_is_an_error_and_later_an_answer_without_an_end():
    with pytest.raises(ResultExpiredError):
        answered(StoredRows(PAGE, 3, broken_at=0))
    caller = answered(StoredRows(PAGE, 3, broken_at=2))
    assert caller.status == 200
    assert not caller.complete


def test_an_owner_with_slow_readers_leaves_room_for_another():
    async def ask():
        room, order = AnswerRoom(100), []
        never = asyncio.Event()

        async def take(owner, n_bytes):
            async with room.take(owner, n_bytes):
                order.append(owner)
                await never.wait()

        waiting = [asyncio.create_task(take("slow", 10)) for _ in range(20)]
        await turns(lambda: len(order) == 5)
        waiting.append(asyncio.create_task(take("other", 10)))
        await turns(lambda: "other" in order)
        slow = order.count("slow")
        for task in waiting:
            task.cancel()
        await asyncio.gather(*waiting, return_exceptions=True)
        return slow, room.granted

    assert asyncio.run(ask()) == (5, 0)


def test_a_piece_larger_than_the_room_is_granted_alone():
    async def ask():
        room = AnswerRoom(100)
        async with room.take("a", 1000):
            waiting = asyncio.create_task(taken(room, "b"))
            for _ in range(10):
                await asyncio.sleep(0)
            assert not waiting.done()
        return await waiting

    async def taken(room, owner):
        async with room.take(owner, 1):
            return room.granted

    assert asyncio.run(ask()) == 1
