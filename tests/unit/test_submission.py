import base64
import tracemalloc

import pytest
from hypothesis import given
from hypothesis import strategies as st

from api.submission import JobOptions, Limits, read_submission
from shared.errors import (
    ColqueueError,
    ImageInvalidError,
    InvalidBodyError,
    InvalidInputTypeError,
    InvalidJobError,
    InvalidTextInputsError,
    TooLargeError,
)
from shared.jobs import Lane, OutputDtype

LIMITS = Limits(max_inputs=3, max_input_bytes=1000)
# Holds bytes whose base64 has both characters that the urlsafe alphabet replaces.
PICTURE = b"\xfb\xff\xfe" + bytes(range(256))
BASE64 = base64.b64encode(PICTURE).decode()


def read(limits=LIMITS, **fields):
    return read_submission(fields, limits, with_options=True)


def read_image(value, limits=LIMITS):
    return read(limits, input_type="image", inputs=[value]).payloads[0]


@pytest.mark.parametrize("fields", [{}, {"inputs": []}, {"inputs": None}])
@pytest.mark.parametrize("input_type", [{}, {"input_type": "image"}, {"input_type": "neither"}, {"input_type": None}])
def test_without_inputs_there_is_nothing_to_do_whatever_the_input_type_says(fields, input_type):
    assert read_submission(fields | input_type, LIMITS, with_options=True) is None


@pytest.mark.parametrize("inputs", ["a query", {"0": "a query"}, 1, True])
def test_inputs_that_are_no_list_are_an_invalid_body(inputs):
    with pytest.raises(InvalidBodyError, match="list"):
        read(input_type="text", inputs=inputs)


@pytest.mark.parametrize("input_type", ["neither", "", "Image", "IMAGE", None, 1, ["image"], {"image": 1}, b"image"])
def test_an_input_type_that_is_neither_is_refused_in_the_contracts_words(input_type):
    with pytest.raises(InvalidInputTypeError, match=r"^Invalid input_type$"):
        read(input_type=input_type, inputs=["a"])


def test_a_missing_input_type_is_refused_likewise():
    with pytest.raises(InvalidInputTypeError, match=r"^Invalid input_type$"):
        read(inputs=["a"])


def test_the_input_type_is_checked_before_the_inputs_and_their_number():
    with pytest.raises(InvalidInputTypeError):
        read(input_type="neither", inputs=[1, "x" * 2000, None, None, None])


def test_the_number_is_checked_before_the_inputs():
    with pytest.raises(TooLargeError) as caught:
        read(input_type="text", inputs=[1, "b", "c", "d"])
    assert caught.value.index is None


def test_as_many_inputs_as_the_limit_are_taken():
    assert len(read(input_type="text", inputs=["a", "b", "c"]).payloads) == 3


def test_texts_become_utf8_in_their_order():
    submission = read(input_type="text", inputs=["wörter", "", "日本"])
    assert submission.input_type == "text"
    assert submission.payloads == ["wörter".encode(), b"", "日本".encode()]


@pytest.mark.parametrize("value", [None, 1, 1.5, True, b"bytes", ["a"], {"a": "b"}, "half \ud800 a pair"])
def test_a_text_that_is_no_text_is_refused_in_the_contracts_words_with_its_index(value):
    with pytest.raises(InvalidTextInputsError, match=r"^Invalid text inputs$") as caught:
        read(input_type="text", inputs=["fine", value])
    assert caught.value.index == 1


@pytest.mark.parametrize(
    "value",
    [
        PICTURE,
        BASE64,
        f"data:image/png;base64,{BASE64}",
        f"data:;base64,{BASE64}",
        f"data:image/svg+xml;charset=utf-8;base64,{BASE64}",
        base64.encodebytes(PICTURE).decode(),
        "\r\n".join(BASE64[start : start + 76] for start in range(0, len(BASE64), 76)),
        f"  {BASE64}\n",
        f"data:image/png;base64,\n{base64.encodebytes(PICTURE).decode()}",
    ],
    ids=["bytes", "plain", "data uri", "no mime", "parameters", "wrapped", "crlf", "spaces around", "wrapped data uri"],
)
def test_an_image_is_read_however_its_base64_is_written(value):
    assert read_image(value) == PICTURE


@pytest.mark.parametrize(
    "value",
    [
        "not base64!",
        "ab=c",
        "a",
        BASE64.replace("+", "-").replace("/", "_"),
        base64.b64encode(b"four").decode().rstrip("="),
        f"data:image/png,{BASE64}",
        f"data:image/png;base64{BASE64}",
        "data:image/png;base64",
        "data:",
        "data:image/png;base64,%2B%2B%2B%2B",
        f"https://example.org/page.png?{BASE64}",
        "ünïcödé",
        "\ud800",
        "AAAA\0",
        None,
        1,
        ["AAAA"],
        {"data": BASE64},
    ],
)
def test_an_image_that_is_no_base64_is_refused_with_its_index(value):
    with pytest.raises(ImageInvalidError) as caught:
        read(input_type="image", inputs=[BASE64, value])
    assert caught.value.index == 1


def test_a_refusal_says_nothing_of_what_was_sent():
    for value in ("SECRET!", "data:SECRET,SECRET", ["SECRET"]):
        with pytest.raises(ImageInvalidError) as caught:
            read_image(value)
        assert "SECRET" not in caught.value.message
        assert "SECRET" not in str(caught.value)


@pytest.mark.parametrize("word", ["A ", "AB ", "ABCD\n", "AB\t\r\n "])
def test_base64_that_is_full_of_blanks_takes_no_more_memory_than_without(word):
    """Split into words, these took 25 times their size."""
    text = word * (4 * 2**20 // len(word))
    n_bytes = sum(map(str.isalpha, text)) * 3 // 4
    text = text[: len(text) // (4 * len(word)) * 4 * len(word)]  # whole groups of four letters
    tracemalloc.start()
    try:
        decoded = read_image(text, Limits(max_inputs=1, max_input_bytes=len(text)))
        assert tracemalloc.get_traced_memory()[1] < 3 * len(text)
    finally:
        tracemalloc.stop()
    assert abs(len(decoded) - n_bytes) < 100


def test_a_byte_order_mark_before_a_text_or_an_image_is_no_part_of_it():
    assert read(input_type="text", inputs=["\ufeffa query", "a\ufeffb"]).payloads == [b"a query", "a\ufeffb".encode()]
    encoded = base64.b64encode(PICTURE).decode()
    for value in (f"\ufeff{encoded}", f"\ufeffdata:image/png;base64,{encoded}"):
        assert read_image(value) == PICTURE


def test_an_input_of_exactly_the_limit_is_taken_and_one_more_byte_is_too_large():
    exact = b"\xff" * 1000
    for value in (exact, base64.b64encode(exact).decode(), f"data:image/png;base64,{base64.b64encode(exact).decode()}"):
        assert read_image(value) == exact
    for value in (exact + b"\xff", base64.b64encode(exact + b"\xff").decode()):
        with pytest.raises(TooLargeError) as caught:
            read_image(value)
        assert caught.value.index == 0


def test_a_wrapped_image_of_exactly_the_limit_is_taken():
    limits = Limits(max_inputs=1, max_input_bytes=2**20)
    exact = b"\xff" * limits.max_input_bytes
    assert read_image(base64.encodebytes(exact).decode(), limits) == exact


def test_a_text_is_measured_in_bytes():
    assert read(input_type="text", inputs=["ü" * 500]).payloads == [("ü" * 500).encode()]
    with pytest.raises(TooLargeError) as caught:
        read(input_type="text", inputs=["short", "ü" * 501])
    assert caught.value.index == 1


def test_what_is_far_too_large_is_refused_before_it_is_decoded():
    """Decoding would have said that this is no base64."""
    with pytest.raises(TooLargeError):
        read_image("!" * 4000)


def test_options_have_defaults():
    assert read(input_type="text", inputs=["a"]).options == JobOptions(
        lane=Lane.BULK, output_dtype=None, pool_factor=1, deadline_s=None
    )


def test_options_are_read_as_forms_send_them_too():
    told = {"lane": "interactive", "output_dtype": "binary", "pool_factor": "3", "deadline_s": "2.5"}
    options = read(input_type="image", inputs=[PICTURE], **told).options
    assert options == JobOptions(lane=Lane.INTERACTIVE, output_dtype=OutputDtype.BINARY, pool_factor=3, deadline_s=2.5)


def test_a_query_keeps_all_its_rows():
    with pytest.raises(InvalidJobError, match=r"^pool_factor: "):
        read(input_type="text", inputs=["a"], pool_factor=2)
    assert read(input_type="text", inputs=["a"], pool_factor=1).options.pool_factor == 1


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("lane", "fast"),
        ("lane", None),
        ("output_dtype", "float64"),
        ("output_dtype", ["float16"]),
        ("pool_factor", 0),
        ("pool_factor", 1001),
        ("pool_factor", 1.5),
        ("pool_factor", None),
        ("deadline_s", 0),
        ("deadline_s", -1),
        ("deadline_s", "soon"),
        ("deadline_s", float("nan")),
    ],
)
def test_an_option_that_breaks_the_schema_is_named_and_not_echoed(name, value):
    with pytest.raises(InvalidJobError) as caught:
        read(input_type="text", inputs=["a"], **{name: value})
    assert caught.value.message.startswith(f"{name}: ")
    assert "fast" not in caught.value.message


def test_a_bad_input_is_reported_before_a_bad_option():
    with pytest.raises(InvalidTextInputsError):
        read(input_type="text", inputs=[1], lane="fast")


def test_fields_that_nobody_knows_are_ignored():
    assert read(input_type="text", inputs=["a"], model="x", user={"a": 1}).payloads == [b"a"]


scalars = (
    st.none()
    | st.booleans()
    | st.integers()
    | st.floats()
    | st.text(st.characters(exclude_categories=()), max_size=20)
    | st.binary(max_size=20)
    | st.sampled_from(["image", "text", "interactive", "float16", BASE64, "data:;base64,AA", 10**400])
)
anything = st.recursive(
    scalars, lambda inner: st.lists(inner, max_size=4) | st.dictionaries(scalars, inner, max_size=3)
)


@given(
    st.fixed_dictionaries(
        {},
        optional={
            "inputs": st.lists(anything, max_size=4) | anything,
            "input_type": st.sampled_from(["image", "text"]) | anything,
            "lane": st.just("bulk") | anything,
            "output_dtype": st.just("float32") | anything,
            "pool_factor": st.just(2) | anything,
            "deadline_s": st.just(1) | anything,
        },
    )
)
def test_whatever_is_sent_is_read_or_refused_in_our_words(fields):
    try:
        submission = read_submission(fields, LIMITS, with_options=True)
    except ColqueueError:
        return
    if submission is None:
        assert not fields.get("inputs")
    else:
        assert len(submission.payloads) == len(fields["inputs"])
        assert all(type(payload) is bytes for payload in submission.payloads)
