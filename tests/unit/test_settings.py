import re
from pathlib import Path

import pytest
from pydantic import SecretStr

from api.settings import ApiSettings
from colqueue_client.launch.settings import UpSettings
from shared.settings import LogSettings, StoreSettings, TokenSettings
from worker.settings import WorkerSettings

ROOT = Path(__file__).parents[2]
CLASSES = [LogSettings, StoreSettings, TokenSettings, ApiSettings, WorkerSettings, UpSettings]
# Read by others than our settings classes: the hub's own library.
ALSO_READ = {"HF_HOME"}


def variable(name, field):
    return field.validation_alias or f"COLQUEUE_{name.upper()}"


VARIABLES = {(cls, name): variable(name, field) for cls in CLASSES for name, field in cls.model_fields.items()}


def secret_text(value):
    return value.get_secret_value() if isinstance(value, SecretStr) else value


def as_written(value):
    """How a default stands in `.env.example`."""
    value = secret_text(value)
    return str(value).lower() if isinstance(value, bool) else "" if value is None else str(value)


@pytest.fixture(autouse=True)
def no_environment(monkeypatch, tmp_path):
    """Neither the developer's variables nor their `.env`."""
    for name in {*VARIABLES.values(), *ALSO_READ}:
        monkeypatch.delenv(name, raising=False)
    monkeypatch.chdir(tmp_path)


def example():
    """Each variable of `.env.example`, set or commented out, with its values in the order of the file."""
    values = {}
    for line in (ROOT / ".env.example").read_text().splitlines():
        if found := re.fullmatch(r"#? ?([A-Z][A-Z0-9_]*)=(.*)", line):
            values.setdefault(found[1], []).append(found[2].partition(" #")[0].strip())
    return values


def test_the_example_lists_every_variable_once_and_no_other():
    listed = example()
    assert set(listed) == {*VARIABLES.values(), *ALSO_READ}
    assert {name for name, values in listed.items() if len(values) > 1} == set()


def test_the_example_shows_the_defaults():
    """Where parts differ, as with the model that `make run` serves, the part's own default is the truth."""
    listed = example()
    for cls in CLASSES:
        for name, field in cls.model_fields.items():
            if VARIABLES[cls, name] in listed and not (cls is UpSettings and name in {"model", "redis_url"}):
                shown, default = listed[VARIABLES[cls, name]][0], field.get_default()
                assert shown == as_written(default) or float(shown) == float(default), name


@pytest.mark.parametrize("cls", CLASSES)
def test_without_any_variable_the_defaults_hold(cls):
    assert cls().model_dump() == {name: field.get_default() for name, field in cls.model_fields.items()}


@pytest.mark.parametrize("cls", CLASSES)
def test_an_empty_variable_counts_as_unset(cls, monkeypatch):
    for (owner, _), name in VARIABLES.items():
        if owner is cls:
            monkeypatch.setenv(name, "")
    assert cls() == cls.model_construct()


@pytest.mark.parametrize(
    ("cls", "name", "value", "expected"),
    [
        (ApiSettings, "port", "6001", 6001),
        (ApiSettings, "service_api_key", "a,b", "a,b"),
        (WorkerSettings, "huggingface_token", "hf_x", "hf_x"),
        (WorkerSettings, "model", "tiny", "tiny"),
        (StoreSettings, "redis_url", "redis://other:1/2", "redis://other:1/2"),
        (StoreSettings, "result_ttl_s", "60", 60),
        (UpSettings, "api_key", "a", "a"),
    ],
)
def test_a_variable_is_read_from_the_environment_and_before_it_from_nothing_but_env(
    cls, name, value, expected, monkeypatch
):
    Path(".env").write_text(f"{VARIABLES[cls, name]}={value}\nSOMEBODY_ELSES=1\n")
    assert secret_text(getattr(cls(), name)) == expected
    Path(".env").write_text(f"{VARIABLES[cls, name]}=7\n")
    monkeypatch.setenv(VARIABLES[cls, name], value)
    assert secret_text(getattr(cls(), name)) == expected


@pytest.mark.parametrize(
    ("cls", "name"),
    [
        (StoreSettings, "redis_url"),
        (UpSettings, "redis_url"),
        (ApiSettings, "service_api_key"),
        (UpSettings, "api_key"),
        (WorkerSettings, "huggingface_token"),
    ],
)
def test_secrets_are_shown_nowhere(cls, name):
    settings = cls(**{name: "redis://user:SECRET@host:1/0"})
    assert secret_text(getattr(settings, name)).count("SECRET") == 1
    for shown in (repr(settings), str(settings), f"{settings.model_dump()}", settings.model_dump_json()):
        assert "SECRET" not in shown


def test_a_redis_url_that_is_none_is_refused_without_showing_it():
    with pytest.raises(ValueError, match="redis") as caught:
        _ = StoreSettings(redis_url="http://user:SECRET@host/").redis_dsn
    assert "SECRET" not in str(caught.value)


def test_the_address_of_redis_reaches_the_drivers_whole():
    url = "rediss://user:p%40ss@host:6380/3?ssl_cert_reqs=none"
    assert StoreSettings(redis_url=url).redis_dsn == url


@pytest.mark.parametrize("cls", CLASSES)
def test_settings_cannot_be_changed(cls):
    with pytest.raises(ValueError, match="frozen"):
        setattr(cls(), next(iter(cls.model_fields)), None)


def test_bulk_work_may_not_take_every_thread():
    with pytest.raises(ValueError, match="bulk_tasks"):
        WorkerSettings(threads=8, bulk_tasks=8)


@pytest.mark.parametrize(
    "file", ["shared/settings.py", "api/settings.py", "worker/settings.py", "client/colqueue_client/launch/settings.py"]
)
def test_every_field_has_a_comment_that_says_what_it_does(file):
    lines = (ROOT / file).read_text().partition("@dataclass")[0].splitlines()
    fields = [number for number, line in enumerate(lines) if re.match(r"    [a-z_]+: .+ = ", line)]
    assert fields
    assert [lines[number] for number in fields if not lines[number - 1].startswith("    # ")] == []
