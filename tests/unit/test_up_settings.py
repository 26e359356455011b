import stat

import pytest
from dotenv import dotenv_values

from colqueue_client.errors import LaunchError
from colqueue_client.launch.settings import api_key, child_environment, flower_login, up_settings


@pytest.fixture(autouse=True)
def folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for name in ("HOST", "PORT", "FLOWER_PORT", "MODEL", "REDIS_URL"):
        monkeypatch.delenv(f"COLQUEUE_{name}", raising=False)
    monkeypatch.delenv("SERVICE_API_KEY", raising=False)
    monkeypatch.delenv("FLOWER_BASIC_AUTH", raising=False)
    return tmp_path


def new_key(dotenv):
    return api_key(up_settings(), dotenv).configured


def mode(path):
    return stat.S_IMODE(path.stat().st_mode)


def test_a_new_key_is_kept_in_a_file_of_its_owner_alone(folder):
    key = new_key(folder / ".env")

    assert len(key) >= 32
    assert dotenv_values(folder / ".env") == {"SERVICE_API_KEY": key}
    assert mode(folder / ".env") == 0o600


@pytest.mark.parametrize("ending", ["", "\n"])
def test_a_new_key_leaves_the_other_lines_as_they_are(folder, ending):
    dotenv = folder / ".env"
    dotenv.write_text(f"# ours\nCOLQUEUE_PORT=9000\n\nexport NAME='a b' # why{ending}")
    dotenv.chmod(0o644)

    key = new_key(dotenv)

    assert dotenv.read_text() == f"# ours\nCOLQUEUE_PORT=9000\n\nexport NAME='a b' # why\nSERVICE_API_KEY={key}\n"
    assert mode(dotenv) == 0o600


def test_a_new_key_fills_the_empty_line_that_waits_for_it(folder):
    dotenv = folder / ".env"
    dotenv.write_text("SERVICE_API_KEY=\nCOLQUEUE_PORT=9000\n")

    key = new_key(dotenv)

    assert dotenv.read_text() == f"SERVICE_API_KEY={key}\nCOLQUEUE_PORT=9000\n"


def test_the_kept_key_is_used_again(folder):
    made = api_key(up_settings(), folder / ".env")
    kept = api_key(up_settings(), folder / ".env")

    assert made.first == kept.first == made.shown == kept.shown
    assert made.first not in repr(made)


def test_a_key_from_the_environment_is_never_shown(folder, monkeypatch):
    monkeypatch.setenv("SERVICE_API_KEY", "first, second")

    key = api_key(up_settings(), folder / ".env")

    assert (key.first, key.configured, key.shown) == ("first", "first, second", "$SERVICE_API_KEY")
    assert not (folder / ".env").exists()


def test_flowers_login_is_made_once_and_kept_beside_the_key(folder):
    made = flower_login(up_settings(), folder / ".env")
    key = new_key(folder / ".env")

    assert made.first.startswith("colqueue:")
    assert len(made.first) >= 40
    assert flower_login(up_settings(), folder / ".env").first == made.first == made.shown
    assert dotenv_values(folder / ".env") == {"FLOWER_BASIC_AUTH": made.first, "SERVICE_API_KEY": key}
    assert mode(folder / ".env") == 0o600
    assert made.first not in repr(made)


def test_a_login_without_a_password_is_refused_as_nobody_could_use_it(monkeypatch):
    monkeypatch.setenv("FLOWER_BASIC_AUTH", "s3cret")

    with pytest.raises(LaunchError, match=r"^FLOWER_BASIC_AUTH: .*user:password") as caught:
        up_settings()
    assert "s3cret" not in str(caught.value)


def test_a_folder_that_cannot_be_written_is_named(folder):
    with pytest.raises(LaunchError, match=r"missing.*Set SERVICE_API_KEY"):
        new_key(folder / "missing" / ".env")


def test_without_settings_everything_stays_on_loopback_with_the_tiny_model():
    settings = up_settings()

    assert (settings.host, settings.port, settings.flower_port) == ("127.0.0.1", 8000, 5555)
    assert settings.model == "tiny"
    assert settings.redis_url is None


def test_the_environment_goes_before_the_file_and_empty_means_unset(folder, monkeypatch):
    (folder / ".env").write_text("COLQUEUE_PORT=9000\nCOLQUEUE_FLOWER_PORT=9001\nCOLQUEUE_MODEL=from-file\nOTHER=1\n")
    monkeypatch.setenv("COLQUEUE_PORT", "9100")
    monkeypatch.setenv("COLQUEUE_MODEL", "")

    settings = up_settings()
    children = child_environment(folder / ".env")

    assert (settings.port, settings.flower_port, settings.model) == (9100, 9001, "from-file")
    assert (children["COLQUEUE_PORT"], children["COLQUEUE_FLOWER_PORT"]) == ("9100", "9001")
    assert (children["COLQUEUE_MODEL"], children["OTHER"]) == ("from-file", "1")


def test_a_setting_that_cannot_be_read_is_named_and_not_echoed(monkeypatch):
    monkeypatch.setenv("COLQUEUE_PORT", "s3cret")

    with pytest.raises(LaunchError, match="COLQUEUE_PORT") as caught:
        up_settings()
    assert "s3cret" not in str(caught.value)
