"""What `colqueue up` is told by the environment and `.env`. Knows the two; knows no process."""

import os
import secrets
from dataclasses import dataclass, field
from pathlib import Path

from dotenv import dotenv_values, set_key
from pydantic import Field, SecretStr, ValidationError
from pydantic_settings import BaseSettings, SettingsConfigDict

from colqueue_client.errors import LaunchError

__all__ = ["ApiKey", "UpSettings", "api_key", "child_environment", "keep_new_key", "up_settings"]


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
    # Flower's port, always on loopback: it has no password here.
    flower_port: int = Field(5555, ge=1, le=65535)
    # A hub id, a folder, or `tiny`: random weights, built on first use, which prove the plumbing only.
    model: str = "tiny"
    # A Redis to use; unset: start one of our own.
    redis_url: SecretStr | None = None
    # One key, or several separated by commas; unset: make one.
    api_key: SecretStr | None = Field(None, validation_alias="SERVICE_API_KEY")


def up_settings() -> UpSettings:
    """Read them; LaunchError names the variable that cannot be read, never its value."""
    try:
        return UpSettings()
    except ValidationError as error:
        wrong = "; ".join(
            f"COLQUEUE_{'_'.join(map(str, problem['loc'])).upper()}: {problem['msg']}" for problem in error.errors()
        )
        raise LaunchError(wrong) from error


def child_environment(dotenv: Path) -> dict[str, str]:
    """Return this process's environment, completed from `dotenv` where a variable is unset or empty."""
    environment = dict(os.environ)
    for name, value in dotenv_values(dotenv).items():
        if value and not environment.get(name):
            environment[name] = value
    return environment


@dataclass(frozen=True, slots=True)
class ApiKey:
    """What the api is configured with, and how to show it: one that the environment holds as its variable only."""

    configured: str = field(repr=False)
    source: str
    from_environment: bool = False

    @property
    def first(self) -> str:
        """The key to call with."""
        return self.configured.split(",")[0].strip()

    @property
    def shown(self) -> str:
        """The key as a shell command on the person's screen may have it."""
        return "$SERVICE_API_KEY" if self.from_environment else self.first


def api_key(settings: UpSettings, dotenv: Path) -> ApiKey:
    """Return the configured key, or one made now and kept in `dotenv`."""
    if settings.api_key is None:
        return ApiKey(keep_new_key(dotenv), f"made now, kept in {dotenv}")
    configured = settings.api_key.get_secret_value()
    if os.environ.get("SERVICE_API_KEY"):
        return ApiKey(configured, "from your environment", from_environment=True)
    return ApiKey(configured, f"from {dotenv}")


def keep_new_key(dotenv: Path) -> str:
    """Make an API key and keep it in `dotenv`, whose other lines stay and which only its owner can read from now on.

    Raises:
        LaunchError: `dotenv` cannot be written.
    """
    key = secrets.token_urlsafe(32)
    try:
        if dotenv.exists():
            dotenv.chmod(0o600)  # before the key is in it; a new file is made that way
        set_key(dotenv, "SERVICE_API_KEY", key, quote_mode="never", follow_symlinks=True)
    except OSError as error:
        raise LaunchError(f"cannot keep a new key in {dotenv}: {error.strerror}. Set SERVICE_API_KEY.") from error
    return key
