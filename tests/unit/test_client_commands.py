"""The command line before it asks a service: options, versions, messages."""

import re
from importlib.metadata import version

import pytest

from colqueue_client.cli import main
from colqueue_client.commands.service import print_error, print_lines

COMMANDS = ("up", "embed", "backfill", "compact", "search", "status", "jobs", "job", "cancel")


def refused(capsys, *arguments):
    """Return what is said of arguments that argparse refuses."""
    with pytest.raises(SystemExit) as ended:
        main(list(arguments))
    assert ended.value.code == 2
    return capsys.readouterr().err.splitlines()[-1]


def test_the_version_is_that_of_the_distribution(capsys):
    with pytest.raises(SystemExit) as ended:
        main(["--version"])

    assert ended.value.code == 0
    assert capsys.readouterr().out == f"colqueue {version('colqueue-client')}\n"


@pytest.mark.parametrize("command", COMMANDS)
def test_every_command_documents_its_exit_codes(capsys, command):
    with pytest.raises(SystemExit):
        main([command, "--help"])

    assert "exit codes:" in capsys.readouterr().out


def test_a_backfills_codes_each_have_one_meaning(capsys):
    with pytest.raises(SystemExit):
        main(["backfill", "--help"])

    listed = capsys.readouterr().out.partition("exit codes:")[2]
    codes = re.findall(r"^  (\d+) +\S", listed, re.MULTILINE)
    assert codes == ["0", "1", "2", "3", "4", "5", "6", "130"]


@pytest.mark.parametrize("value", ["0", "-1", "many", "", "1.5", "nan", "99999999999"])
@pytest.mark.parametrize("option", ["--dpi", "--pool-factor", "--processes", "--job-pages", "--jobs", "--shard-mb"])
def test_a_number_that_cannot_be_meant_is_refused_with_a_sentence(capsys, option, value):
    said = refused(capsys, "backfill", "documents", "--out", "out", f"{option}={value}")

    assert re.search(rf"argument {option}: {re.escape(repr(value))} is not a whole number from 1 to \d+$", said)


@pytest.mark.parametrize(
    "arguments",
    [
        ["search", "out", "query", "-k", "0"],
        ["compact", "out", "--shard-mb", "0"],
        ["jobs", "--limit", "0"],
        ["jobs", "--limit", "x"],
        ["status", "--over", "-1"],
        ["status", "--over", "nan"],
        ["up", "--ready-timeout", "soon"],
        ["backfill", "a", "--out", "out", "--format", "qdrant", "--store-timeout", "inf"],
    ],
)
def test_every_other_number_likewise(capsys, arguments):
    assert re.search(r"'.*' is not a (whole number from 1 to|number of seconds)", refused(capsys, *arguments))


@pytest.mark.parametrize("value", ["", " "])
@pytest.mark.parametrize("option", ["--out", "--store", "--collection", "--store-key"])
def test_an_empty_value_is_refused(capsys, option, value):
    """It is what a shell makes of a variable that is not set, and the current folder is not what was meant."""
    arguments = ["backfill", "documents", "--out", "out", "--format", "qdrant"]

    assert refused(capsys, *arguments, f"{option}={value}").endswith(f"argument {option}: the value is empty")


def test_embed_refuses_an_empty_value_too(capsys):
    assert refused(capsys, "embed", "page.png", "--out=").endswith("the value is empty")
    assert refused(capsys, "embed", "page.png", "--out", ".").endswith("'.' is a folder, and not a file")
    assert "is not a whole number" in refused(capsys, "embed", "page.png", "--dpi", "0")


@pytest.mark.parametrize("form", ["parquet", "npz"])
@pytest.mark.parametrize(
    "option", ["--store=elsewhere", "--collection=pages", "--store-key=secret", "--store-timeout=5"]
)
def test_options_of_a_store_are_refused_where_there_is_none(capsys, form, option):
    said = refused(capsys, "backfill", "documents", "--out", "out", "--format", form, option)

    name = option.partition("=")[0]
    assert said.endswith(f"{name} is for --format lancedb or qdrant, and not for {form}")


def test_an_address_of_a_store_with_a_password_is_refused(capsys):
    arguments = ["--format", "qdrant", "--store", "https://user:secret@qdrant"]

    said = refused(capsys, "backfill", "documents", "--out", "out", *arguments)

    assert "holds a password" in said
    assert "secret" not in said


def test_arguments_and_messages_reach_no_terminal_as_they_are(capsys):
    assert refused(capsys, "jobs", "-\x1b]0;owned\x07").endswith(r"unrecognized arguments: -\x1b]0;owned\x07")

    print_error("a\x1b[2Jb\udcff")
    print_lines("a\x1b[2Jb\nc\rd")

    printed = capsys.readouterr()
    assert printed.err == "colqueue: a\\x1b[2Jb\\udcff\n"
    assert printed.out == "a\\x1b[2Jb\nc\\rd\n"
