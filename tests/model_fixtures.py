"""Fixtures of the model's tests: our tiny checkpoint in its forms, built and loaded once a session."""

from collections.abc import Callable
from io import BytesIO
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import pytest
from PIL import Image

import worker.model  # noqa: F401 - before anything imports torch: it tells torch's threads how to wait

if TYPE_CHECKING:  # the worker's libraries take seconds to import, and most sessions have tests without them
    from worker.model.colqwen import ColQwen

__all__ = ["model_cache", "page_bytes", "tiny_adapter", "tiny_checkpoint", "tiny_model"]


@pytest.fixture(scope="session")
def model_cache(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return the folder in which this session's tiny checkpoints are built."""
    return tmp_path_factory.mktemp("model-cache")


@pytest.fixture(scope="session")
def tiny_checkpoint(model_cache: Path) -> Path:
    """Return the folder of the whole tiny checkpoint."""
    from worker.model import tiny  # noqa: PLC0415 - see TYPE_CHECKING above

    return tiny.tiny_checkpoint(model_cache)


@pytest.fixture(scope="session")
def tiny_adapter(model_cache: Path) -> Path:
    """Return the folder of a LoRA adapter on `tiny_checkpoint`, its tensors named as peft names them today."""
    from worker.model import tiny  # noqa: PLC0415 - see TYPE_CHECKING above

    return tiny.tiny_adapter(model_cache)


@pytest.fixture(scope="session")
def tiny_model(tiny_checkpoint: Path) -> "ColQwen":
    """Return the tiny checkpoint, loaded in float32 on the CPU."""
    from worker.model.colqwen import load  # noqa: PLC0415 - see TYPE_CHECKING above
    from worker.model.options import ModelOptions  # noqa: PLC0415 - see TYPE_CHECKING above

    return load(ModelOptions(name=str(tiny_checkpoint), device="cpu"))


@pytest.fixture(scope="session")
def page_bytes() -> Callable[..., bytes]:
    """Return a maker of page images: dark words on white, the same ones for the same arguments."""

    def make(width: int, height: int, *, seed: int = 0, image_format: str = "PNG") -> bytes:
        draw = np.random.default_rng((width, height, seed))
        page = np.full((height, width, 3), 255, np.uint8)
        for _ in range(80):
            top, left = draw.integers(0, height), draw.integers(0, width)
            page[top : top + draw.integers(3, 30), left : left + draw.integers(5, 200)] = draw.integers(0, 200, 3)
        data = BytesIO()
        Image.fromarray(page).save(data, image_format)
        return data.getvalue()

    return make
