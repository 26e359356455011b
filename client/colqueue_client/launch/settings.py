"""Reads the settings of `colqueue up` from the environment and `.env`, and makes the secrets that are missing."""

import os
import secrets
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final

from dotenv import dotenv_values, set_key
from pydantic import Field, SecretStr, ValidationError, field_validator
from pydantic_settings import BaseSettings, SettingsConfigDict

from colqueue_client.errors import LaunchError

__all__ = ["Secret", "UpSettings", "api_key", "child_environment", "flower_login", "up_settings"]

_API_KEY: Final = "SERVICE_API_KEY"
_FLOWER_LOGIN: Final = "FLOWER_BASIC_AUTH"


class UpSettings(BaseSettings):
    """Where the local stack listens and what it serves."""

    model_config = SettingsConfigDict(
        frozen=True,
        env_prefix="COLQUEUE_",
        env_file=".env",
        env_ignore_empty=True,
        extra="ignore",
        populate_by_name=True,
        hide_input_in_errors=True,  # the key and Redis's password are among them
    )

    # The address the api listens on. Other than loopback: other machines can reach it.
    host: str = "127.0.0.1"
    # The api's port.
    port: int = Field(8000, ge=1, le=65535)
    # Flower's port, always on loopback.
    flower_port: int = Field(5555, ge=1, le=65535)
    # A hub id, a folder, or `tiny`: random weights, built on first use, which prove the plumbing only.
    model: str = "tiny"
    # A Redis to use; unset: start one of our own.
    redis_url: SecretStr | None = None
    # One key, or several separated by commas; unset: make one.
    api_key: SecretStr | None = Field(None, validation_alias=_API_KEY)
    # Flower's user and password, `user:password`, or several separated by commas; unset: make one.
    flower_login: SecretStr | None = Field(None, validation_alias=_FLOWER_LOGIN)

    @field_validator("flower_login")
    @classmethod
    def _names_user_and_password(cls, login: SecretStr | None) -> SecretStr | None:
        # Flower compares what a browser sends with the whole value, so without the colon nobody could log in.
        if login is not None and not all(":" in one for one in login.get_secret_value().split(",")):
            raise ValueError("must read user:password")
        return login


def up_settings() -> UpSettings:
    """Read them; LaunchError names the variable that cannot be read, never its value."""
    try:
        return UpSettings()
    except ValidationError as error:
        raise LaunchError("; ".join(f"{_variable(one['loc'])}: {one['msg']}" for one in error.errors())) from error


def _variable(location: tuple[int | str, ...]) -> str:
    name = "_".join(map(str, location)).upper()
    return name if name in {_API_KEY, _FLOWER_LOGIN} else f"COLQUEUE_{name}"


def child_environment(dotenv: Path) -> dict[str, str]:
    """Return this process's environment, completed from `dotenv` where a variable is unset or empty."""
    environment = dict(os.environ)
    for name, value in dotenv_values(dotenv).items():
        if value and not environment.get(name):
            environment[name] = value
    return environment


@dataclass(frozen=True, slots=True)
class Secret:
    """A setting's secret value, and how to show it: one that the environment holds is shown as its variable."""

    variable: str
    configured: str = field(repr=False)
    source: str
    from_environment: bool = False

    @property
    def first(self) -> str:
        """The first of several."""
        return self.configured.split(",")[0].strip()

    @property
    def shown(self) -> str:
        """The secret as a shell command on the person's screen may have it."""
        return f"${self.variable}" if self.from_environment else self.first


def api_key(settings: UpSettings, dotenv: Path) -> Secret:
    """Return the configured API key, or one made now and kept in `dotenv`; LaunchError where it cannot be kept."""
    return _existing_or_new(_API_KEY, settings.api_key, secrets.token_urlsafe(32), dotenv)


def flower_login(settings: UpSettings, dotenv: Path) -> Secret:
    """Return Flower's user and password, `user:password`, likewise."""
    return _existing_or_new(_FLOWER_LOGIN, settings.flower_login, f"colqueue:{secrets.token_urlsafe(24)}", dotenv)


def _existing_or_new(variable: str, configured: SecretStr | None, new: str, dotenv: Path) -> Secret:
    if configured is None:
        _keep(variable, new, dotenv)
        return Secret(variable, new, f"made now, kept in {dotenv}")
    if os.environ.get(variable):
        return Secret(variable, configured.get_secret_value(), "from your environment", from_environment=True)
    return Secret(variable, configured.get_secret_value(), f"from {dotenv}")


def _keep(variable: str, value: str, dotenv: Path) -> None:
    """Write a secret to `dotenv`, whose other lines stay and which only its owner can read from now on."""
    try:
        if dotenv.exists():
            dotenv.chmod(0o600)  # before the secret is in it; a new file is made that way
        set_key(dotenv, variable, value, quote_mode="never", follow_symlinks=True)
    except OSError as error:
        raise LaunchError(f"cannot keep a new secret in {dotenv}: {error.strerror}. Set {variable}.") from error
