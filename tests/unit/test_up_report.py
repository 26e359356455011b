import numpy as np

from colqueue_client.launch.report import Embedded, FirstEmbed, addresses, table
from colqueue_client.launch.settings import Secret


def first_embed(model):
    query = Embedded(np.array([[1, 0]], np.float32), 7.6)
    pages = [
        Embedded(np.array([[0.25, 0]], np.float32), 1234.4),
        Embedded(np.array([[0, 1], [0.75, 0]], np.float32), 99.6),
    ]
    return FirstEmbed("Which?", pages, query, model)


def test_a_table_aligns_names_left_and_numbers_right():
    assert table(["input", "rows"], [["page 1", "7"], ["query", "123"]]).split("\n") == [
        "input   rows",
        "------  ----",
        "page 1     7",
        "query    123",
    ]


def test_the_report_tells_rows_dims_scores_and_times():
    lines = str(first_embed("some/model")).split("\n")

    assert lines[0] == 'Query: "Which?"'
    assert [line.split() for line in lines[4:7]] == [
        ["page", "1", "1", "2", "1,234", "0.250"],
        ["page", "2", "2", "2", "100", "0.750"],
        ["query", "1", "2", "8"],
    ]
    assert lines[8] == "Best match: page 2."


def test_the_report_claims_nothing_for_random_weights():
    report = str(first_embed("tiny"))

    assert "random weights" in report
    assert "Best match" not in report


def test_the_curl_example_is_one_command_that_shows_the_key_as_given():
    text = addresses(
        url="http://127.0.0.1:8000",
        flower_url="http://127.0.0.1:5555",
        redis="redis://127.0.0.1:6379/0",
        key=Secret("SERVICE_API_KEY", "the-key", "from your environment", from_environment=True),
        login=Secret("FLOWER_BASIC_AUTH", "colqueue:the-password", "from .env"),
    )

    command = text.partition("Try it:\n")[2].partition("\n\n")[0]
    assert command.replace("\\\n", " ").split()[:3] == ["curl", "-s", "http://127.0.0.1:8000/embeddings"]
    assert '"Authorization: Bearer $SERVICE_API_KEY"' in command
    assert "the-key" not in text
    assert "http://127.0.0.1:5555   (user and password: colqueue:the-password, from .env)" in text
