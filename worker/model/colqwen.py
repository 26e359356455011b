"""ColQwen2.5 behind the model seam: prepares on any thread, embeds on one. Knows no queue and no job."""

import gc
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from io import BytesIO
from typing import TypeVar

import numpy as np
import structlog
import torch
from PIL import Image
from torch import Tensor

from shared.errors import CheckpointError, DeviceMemoryError, ModelError
from shared.models import ServedModel
from worker.model.blocks import EAGER, compiled
from worker.model.forward import Forward, agree
from worker.model.identity import Identity, identify
from worker.model.libraries import ColQwen2_5, ColQwen2_5_Processor
from worker.model.load import load_checkpoint
from worker.model.options import ModelOptions
from worker.model.packed import PackedForward
from worker.model.pixels import Patchifier
from worker.model.pooling import pool
from worker.model.prepare import Features, Preparer
from worker.model.seam import ModelLostError, Prepared, Rows
from worker.model.stock import StockForward

__all__ = ["ColQwen", "load"]

_T = TypeVar("_T")

_log = structlog.get_logger(__name__)

# In float16 the vision tower's activations can grow too large in its last blocks (reported for Qwen2.5-VL).
_WIDE_TAIL = 4


def load(options: ModelOptions) -> "ColQwen":
    """Load the checkpoint onto its device. Takes seconds to minutes; raises `CheckpointError`."""
    return ColQwen(options, *load_checkpoint(options))


@dataclass(frozen=True, slots=True)
class _Passes:
    """What holds the weights: the passes over one network."""

    network: ColQwen2_5
    stock: StockForward
    fast: PackedForward | None


class ColQwen:
    """A `Model`. Its rows equal colpali-engine's in float32; padding rows are gone and neighbours do not matter."""

    def __init__(self, options: ModelOptions, network: ColQwen2_5, processor: ColQwen2_5_Processor) -> None:
        self._options = options
        self._processor = processor
        self._preparer = Preparer(processor, options)
        self._patchifier = Patchifier(processor.image_processor, network.device)
        self._pad_id: int = processor.tokenizer.pad_token_id
        self.device: torch.device = network.device
        """Where its weights are."""
        self.dtype: torch.dtype = network.dtype
        """What it computes in."""
        self._row_dtype = torch.float32 if self.dtype == torch.float32 else torch.float16
        self._engine = options.engine
        self._passes: _Passes | None = self._over(network)
        self._threads = options.torch_threads or torch.get_num_threads()
        self._identity: Identity | None = None

    def _over(self, network: ColQwen2_5) -> _Passes:
        fast = None
        if self._engine != "stock":
            wide_tail = _WIDE_TAIL if self.dtype == torch.float16 else 0
            steps = compiled() if self._options.compile else EAGER
            fast = PackedForward(network, self._patchifier, wide_tail=wide_tail, steps=steps)
        return _Passes(network, StockForward(network, self._patchifier, self._pad_id), fast)

    @property
    def name(self) -> str:
        """The name it was asked for by."""
        return self._options.name

    @property
    def served(self) -> ServedModel:
        """Its name and the identity of its checkpoint."""
        return ServedModel(name=self.name, model_id=(self._identity or self.identity()).model_id)

    @property
    def engine(self) -> str:
        """Which forward pass it runs: `fast` or `stock`."""
        return "stock" if self._engine == "stock" else "fast"

    @property
    def loaded(self) -> bool:
        """Whether its weights are in memory."""
        return self._passes is not None

    def identity(self) -> Identity:
        """Return what its rows depend on; from now on it refuses to be loaded again as another model.

        Reads every weight, once; call it after `warm_up` and before the model's thread begins.
        """
        self._identity = self._identity_of(self._loaded().network, self._processor)
        return self._identity

    def _identity_of(self, network: ColQwen2_5, processor: ColQwen2_5_Processor) -> Identity:
        return identify(network, processor, f"{self.engine}{' compiled' if self._options.compile else ''}")

    def unload(self) -> None:
        """Let go of the weights and their memory; the next batch loads them again. From the model's thread only."""
        if self._passes is not None:
            self._passes = None
            gc.collect()  # modules and their parents hold each other
            if self.device.type == "cuda":  # never run: no GPU was at hand
                torch.cuda.empty_cache()
            _log.info("model.unloaded", model=self.name)

    def _loaded(self) -> _Passes:
        if self._passes is None:
            started = time.monotonic()
            try:
                network, processor = load_checkpoint(self._options)
            except CheckpointError as error:
                raise ModelLostError(f"it cannot be loaded again: {error.message}") from error
            if self._identity and self._identity != self._identity_of(network, processor):
                raise ModelLostError("its checkpoint is not what it was at the start")
            self._passes = self._over(network)
            _log.info("model.loaded_again", model=self.name, s=round(time.monotonic() - started, 1))
        return self._passes

    def prepare_page(self, data: bytes) -> Prepared:
        """Decode, resize and tokenise one page image. Thread-safe.

        Raises `ImageInvalidError`, `ImageTooLargeError` or `ImageAspectError`.
        """
        return self._preparer.page(data)

    def prepare_query(self, text: str) -> Prepared:
        """Tokenise one query. Thread-safe. Raises `TextInvalidError` or `TextTooLongError`."""
        return self._preparer.query(text)

    def warm_up(self) -> None:
        """Embed two small pages and a query, so that the first caller does not pay for what a device sets up once.

        Where the options leave the choice, the fast forward pass is held against the stock one on them: on a
        mismatch this says so in the log, and the stock one runs from then on.
        """
        inputs = [self.prepare_page(_noise(280, 280)), self.prepare_page(_noise(150, 300)), self.prepare_query("")]
        if self._engine == "auto" and not self._agrees([one.features for one in inputs]):
            self._engine = "stock"
        self.embed(inputs)

    def _agrees(self, inputs: Sequence[Features]) -> bool:
        stock = _translated(lambda: self._loaded().stock(inputs))
        try:
            fast = _translated(lambda: self._forward()(inputs))
            reason = None if agree(fast, stock) else "its rows are not those of the stock pass"
        except ModelError as error:
            reason = f"{error.message}: {error.__cause__}"
        if reason:
            _log.error("engine.refused", model=self.name, reason=reason, runs="stock")
        return reason is None

    def _forward(self) -> Forward:
        passes = self._loaded()
        return passes.stock if self._engine == "stock" or passes.fast is None else passes.fast

    def embed(self, batch: Sequence[Prepared]) -> list[Rows]:
        """Run pages and queries in one forward pass: `start`, and wait for its rows."""
        return self.start(batch)()

    def pool(self, rows: Rows, factor: int) -> Rows:
        """Merge a page's rows as colpali-engine does, down to one `factor`-th. Thread-safe."""
        return pool(rows, factor)

    def start(self, batch: Sequence[Prepared]) -> Callable[[], list[Rows]]:
        """As in `Model`; rows are float32 from a float32 model, else float16."""
        if not batch:
            return list
        # Preparing threads lower the setting; parts of torch share it between threads.
        torch.set_num_threads(self._threads)
        inputs = [prepared.features for prepared in batch]
        forward = self._forward()
        fetch = _translated(lambda: _fetched(forward(inputs), self._row_dtype))

        def finish() -> list[Rows]:
            rows = _translated(fetch)
            doubtful = _doubtful(rows)
            if doubtful and isinstance(forward, PackedForward) and self.dtype == torch.float16:
                for i in doubtful:
                    rows[i] = _wide_rows(forward, inputs[i])
                doubtful = _doubtful(rows)
            if doubtful:
                raise ModelError("the model's rows are not finite numbers")
            return rows

        return finish


def _translated(step: Callable[[], _T]) -> _T:
    """Return what `step` returns, and turn what torch raises in a forward pass into our errors."""
    try:
        return step()
    except torch.OutOfMemoryError:
        pass
    except torch.AcceleratorError as error:
        raise ModelLostError(str(error)) from error
    except RuntimeError as error:
        # Without its traceback, which would keep the pass's activations alive on the device.
        raise ModelError("the model's forward pass failed") from error.with_traceback(None)
    # Not in the except block: until it ends, the exception keeps the activations alive.
    torch.cuda.empty_cache()
    raise DeviceMemoryError("the input does not fit the device's memory")


def _wide_rows(forward: PackedForward, one: Features) -> Rows:
    """Compute in float32 what grew too large for float16, at a multiple of the cost."""
    _log.info("engine.widened", tokens=len(one.ids))
    fetch = _translated(lambda: _fetched(forward([one], torch.float32), torch.float16))
    return _translated(fetch)[0]


def _doubtful(rows: Sequence[Rows]) -> list[int]:
    return [i for i, one in enumerate(rows) if not np.isfinite(one).all()]


@torch.inference_mode()
def _fetched(parts: list[Tensor], dtype: torch.dtype) -> Callable[[], list[Rows]]:
    """Start to copy the rows to the host in `dtype`, and return a function that waits for them."""
    rows = torch.cat(parts).to(dtype)
    ends = np.cumsum([len(part) for part in parts[:-1]])
    if rows.device.type != "cuda":
        array = rows.cpu().numpy()
        return lambda: list(np.split(array, ends))
    # never run: no GPU was at hand
    landed = torch.empty(rows.shape, dtype=rows.dtype, pin_memory=True).copy_(rows, non_blocking=True)
    done = torch.cuda.Event()  # type: ignore[no-untyped-call]  # torch.cuda is half typed
    done.record()

    def fetch() -> list[Rows]:
        done.synchronize()
        return list(np.split(landed.numpy(), ends))

    return fetch


def _noise(width: int, height: int) -> bytes:
    page = BytesIO()
    Image.effect_noise((width, height), 100).save(page, "PNG")
    return page.getvalue()
