"""Finds how many tokens a batch should have on this machine, by trying. Knows a model's seam and its device's memory.

Bigger is not always faster: on a GPU a batch hides what each launch costs, on a CPU it pushes the cache out.
"""

import json
import os
import platform
import time
from collections.abc import Sequence
from dataclasses import dataclass
from io import BytesIO
from pathlib import Path
from tempfile import NamedTemporaryFile

import structlog
import torch
from PIL import Image

from shared.errors import DeviceMemoryError
from worker.model.colqwen import ColQwen
from worker.model.seam import Prepared

__all__ = ["Measurement", "calibrated_batch_tokens", "chosen", "measured"]

_log = structlog.get_logger(__name__)

# 768 visual tokens, as many as a page has by default.
_PAGE = (896, 672)

# Pages in a batch. A CPU is at its best with one or two; a GPU has most of its rate with a dozen (engine-notes).
_SIZES = (1, 2, 4, 8)
_GPU_SIZES = (*_SIZES, 12, 16)

# No further size is tried after so long.
_MOST_S = 10.0
_ROUNDS = 3

# The smallest batch of nearly the best rate: a query waits for at most one batch.
_NEARLY = 0.95
# Far enough below the best that larger batches will not catch up.
_FALLING = 0.85

# Of what is free, for pages' sizes mix otherwise and memory is cut to pieces.
_MEMORY_SHARE = 0.8


@dataclass(frozen=True, slots=True)
class Measurement:
    """One size of batch, tried."""

    tokens: int
    pages_per_s: float


def chosen(measurements: Sequence[Measurement]) -> int:
    """Return the fewest tokens whose rate is within 5 % of the best."""
    enough = _NEARLY * max(one.pages_per_s for one in measurements)
    return min(one.tokens for one in measurements if one.pages_per_s >= enough)


def calibrated_batch_tokens(model: ColQwen, cache_dir: Path) -> int:
    """Return the budget found for this model, device, number type and torch; measured once, then read from a file.

    Takes ten seconds, or a few batches of one page where these take longer. From the model's thread only.
    """
    file = cache_dir.expanduser() / "batch-tokens.json"
    key = " | ".join(
        (_device_name(model.device), model.name, str(model.dtype), model.engine, f"torch {torch.__version__}")
    )
    if (known := _read(file).get(key)) is not None:
        return known
    measurements = measured(model)
    tokens = chosen(measurements)
    rates = {one.tokens: round(one.pages_per_s, 2) for one in measurements}
    _log.info("batch.calibrated", tokens=tokens, pages_per_s=rates)
    _write(file, _read(file) | {key: tokens})
    return tokens


def measured(model: ColQwen) -> list[Measurement]:
    """Try batches of more and more pages until the rate falls, the memory would not do, or the time is up."""
    page = _page(model)
    on_gpu = model.device.type == "cuda"
    deadline = time.monotonic() + _MOST_S
    measurements: list[Measurement] = []
    for pages in _GPU_SIZES if on_gpu else _SIZES:
        if measurements and time.monotonic() + pages / measurements[-1].pages_per_s > deadline:
            break
        if on_gpu and measurements and not _another_fits(model.device):
            break
        try:
            seconds = _fastest(model, [page] * pages, deadline)
        except DeviceMemoryError:
            if not measurements:
                raise
            break
        measurements.append(Measurement(pages * page.tokens, pages / seconds))
        if measurements[-1].pages_per_s < _FALLING * max(one.pages_per_s for one in measurements):
            break
    return measurements


def _fastest(model: ColQwen, batch: list[Prepared], deadline: float) -> float:
    """Return the seconds of the fastest of a few runs: other programs only ever slow one down."""
    seconds = []
    for _ in range(_ROUNDS):
        started = time.monotonic()
        model.embed(batch)
        seconds.append(time.monotonic() - started)
        if time.monotonic() + seconds[-1] > deadline:
            break
    return min(seconds)


def _page(model: ColQwen) -> Prepared:
    data = BytesIO()
    Image.effect_noise(_PAGE, 100).save(data, "PNG")
    return model.prepare_page(data.getvalue())


def _another_fits(device: torch.device) -> bool:  # never run: no GPU was at hand
    """Whether twice the pages of the largest batch so far fit the memory: no size is more than twice the one before."""
    free, _ = torch.cuda.mem_get_info(device)
    weights = torch.cuda.memory_allocated(device)
    spare = free + torch.cuda.memory_reserved(device) - weights
    return 2 * (torch.cuda.max_memory_allocated(device) - weights) <= _MEMORY_SHARE * spare


def _device_name(device: torch.device) -> str:
    if device.type == "cuda":  # never run: no GPU was at hand
        return torch.cuda.get_device_name(device)
    return f"{device.type} {platform.machine()}, {os.cpu_count()} cores, {torch.get_num_threads()} threads"


def _read(file: Path) -> dict[str, int]:
    try:
        known = json.loads(file.read_text(encoding="utf-8"))
    except (FileNotFoundError, ValueError):
        return {}
    return known if isinstance(known, dict) else {}


def _write(file: Path, known: dict[str, int]) -> None:
    try:
        file.parent.mkdir(parents=True, exist_ok=True)
        with NamedTemporaryFile("w", dir=file.parent, delete=False, encoding="utf-8") as scratch:
            json.dump(known, scratch, indent=1)
        Path(scratch.name).replace(file)  # whole or not at all, whoever else reads
    except OSError as error:
        _log.warning("batch.not_remembered", file=str(file), reason=error.strerror)
