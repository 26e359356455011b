"""`python -m bench.gpu`: stock loop and our engine on one CUDA device at the published model's size. Knows no service.

Needs a CUDA machine and this checkout's dependencies, no download. `--device cpu --size tiny` runs every step in
small, which proves the script and says nothing of a GPU; so does what it writes.
"""

import argparse
import sys
import time
from collections.abc import Callable, Sequence
from copy import deepcopy
from pathlib import Path
from statistics import median
from typing import Any, Final

import orjson
import torch

from bench.engine import embedded
from bench.full_size import SIZES, random_network
from bench.machine import machine_facts
from bench.pages import page, pages, query
from bench.profiles import flops, host_waits, matmul_flops_per_s, where_time_goes
from bench.stock import Stock
from bench.terminal import say
from shared.errors import DeviceMemoryError
from worker.model.calibrate import chosen, measured
from worker.model.colqwen import ColQwen
from worker.model.forward import worst_cosine
from worker.model.options import ModelOptions
from worker.model.seam import Prepared

__all__ = ["main"]

_ROOT: Final = Path(__file__).parents[1]
_DTYPES: Final = {"bfloat16": torch.bfloat16, "float16": torch.float16, "float32": torch.float32}
_ROUNDS: Final = 3


def main(arguments: Sequence[str] | None = None) -> int:
    """Measure, print, write. Returns 2 where there is no CUDA device and none was asked for."""
    options = _options(arguments)
    if options.device.startswith("cuda") and not torch.cuda.is_available():
        sys.stderr.write("no CUDA device here; `--device cpu --size tiny` runs the same steps in small\n")
        return 2
    told = _Bench(options).told()
    options.json.parent.mkdir(parents=True, exist_ok=True)
    options.json.write_bytes(orjson.dumps(told, option=orjson.OPT_INDENT_2, default=str) + b"\n")
    sys.stdout.write(orjson.dumps(told, option=orjson.OPT_INDENT_2, default=str).decode() + f"\n{options.json}\n")
    return 0


def _options(arguments: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m bench.gpu")
    parser.add_argument("--device", default="cuda")
    parser.add_argument("--dtype", choices=_DTYPES, default="bfloat16")
    parser.add_argument("--size", choices=SIZES, default="full")
    parser.add_argument("--pages", type=int, default=64, help="pages a measurement")
    parser.add_argument("--batches", default="1,2,4,8,12,16,32", help="pages a forward pass")
    parser.add_argument("--threads", type=int, default=8, help="that prepare pages")
    parser.add_argument("--json", type=Path, default=_ROOT / "bench" / "results" / "gpu.json")
    return parser.parse_args(arguments)


class _Bench:
    """The network, ours and stock around it, and each measurement."""

    def __init__(self, options: argparse.Namespace) -> None:
        self._options = options
        self._device, self._dtype = torch.device(options.device), _DTYPES[options.dtype]
        self._batches = [int(size) for size in options.batches.split(",")]
        say(f"Drawing {options.size} weights on {options.device} ...")
        self._network, processor, self._folder = random_network(
            options.size, _ROOT / "var" / "bench" / "models", self._device, self._dtype
        )
        self._processor = processor
        self._ours = self._engine(self._network)
        self._ours.warm_up()
        self._prepared = [self._ours.prepare_page(page(number)) for number in range(max(self._batches))]

    def told(self) -> dict[str, Any]:
        """Run every step and return what each found."""
        on_gpu = self._device.type == "cuda"
        told: dict[str, Any] = {
            "device": torch.cuda.get_device_name(self._device) if on_gpu else "cpu: says nothing of a GPU",
            "dtype": self._options.dtype,
            "size": self._options.size,
            "machine": machine_facts(),
            "engine": self._ours.engine,
        }
        for name, step in (
            ("equality", self._equality),
            ("stock_loop", self._stock_loop),
            ("engine_loop", self._engine_loop),
            ("sweep", self._sweep),
            ("calibration", self._calibration),
            ("queries_per_s", self._queries),
            ("profile", self._profile),
            ("utilisation", self._utilisation),
        ):
            say(f"{name} ...")
            told[name] = step()
        stock, engine = (max(told[name].values()) for name in ("stock_loop", "engine_loop"))
        told["engine_over_stock"] = engine / stock
        best = max(told["sweep"].values())
        told["utilisation"]["share_of_matmul"] = best * told["utilisation"]["flops_per_page"]
        told["utilisation"]["share_of_matmul"] /= told["utilisation"]["matmul_flops_per_s"]
        told["calibration"]["over_best_of_sweep"] = told["calibration"]["pages_per_s"] / best
        return told

    def _engine(self, network: Any, engine: str = "auto") -> ColQwen:
        return ColQwen(ModelOptions(name=str(self._folder), engine=engine), network, self._processor)  # type: ignore[arg-type]  # a literal

    def _equality(self) -> dict[str, Any]:
        """Cosines of our rows with stock's, of both with float32, and whether neighbours change a bit."""
        batch = [*self._prepared[:2], self._ours.prepare_query(query(0))]
        rows = {"fast": self._rows(self._engine(self._network, "fast"), batch)}
        rows["stock"] = self._rows(self._engine(self._network, "stock"), batch)
        alone = [self._rows(self._engine(self._network, "fast"), [one])[0] for one in batch]
        told: dict[str, Any] = {
            "fast_to_stock": worst_cosine(rows["fast"], rows["stock"]),
            "batch_invariant_bit_for_bit": all(map(torch.equal, rows["fast"], alone)),
        }
        if self._room_for_float32():
            wide = self._rows(self._engine(deepcopy(self._network).float(), "stock"), batch)
            told |= {f"{name}_to_float32_stock": worst_cosine(some, wide) for name, some in rows.items()}
        else:
            told["float32"] = "not compared: its weights do not fit beside these"
        return told

    def _room_for_float32(self) -> bool:
        if self._device.type != "cuda":
            return True
        wanted = sum(weight.numel() * 4 for weight in self._network.parameters()) * 1.2
        return bool(torch.cuda.mem_get_info(self._device)[0] > wanted)

    @staticmethod
    def _rows(model: ColQwen, batch: Sequence[Prepared]) -> list[torch.Tensor]:
        return [torch.from_numpy(one) for one in model.embed(batch)]

    def _stock_loop(self) -> dict[str, float]:
        """Pages/s of process_images and forward in turn, by batch size."""
        images = pages(self._options.pages)
        told = {}
        for size in self._batches[:5]:
            stock = Stock(str(self._folder), threads=torch.get_num_threads(), page_batch=size, network=self._network)
            stock.pages(images[:size])
            told[str(size)] = len(images) / self._seconds(lambda stock=stock: stock.pages(images), rounds=1)  # type: ignore[misc]  # bound now
        return told

    def _engine_loop(self) -> dict[str, float]:
        """Pages/s of ours from image files to rows, by batch size."""
        images = pages(self._options.pages)

        def run(size: int) -> None:
            embedded(self._ours, images, batch=size, threads=self._options.threads)

        return {str(size): len(images) / self._seconds(lambda size=size: run(size), rounds=1) for size in self._batches}  # type: ignore[misc]  # bound now

    def _sweep(self) -> dict[str, float]:
        """Pages/s of our forward pass alone, by batch size, until memory is out."""
        told = {}
        for size in self._batches:
            try:
                told[str(size)] = size / self._seconds(lambda size=size: self._ours.embed(self._prepared[:size]))  # type: ignore[misc]  # bound now
            except DeviceMemoryError:
                break
        return told

    def _calibration(self) -> dict[str, Any]:
        """What the worker finds at start-up."""
        found = measured(self._ours)
        tokens = chosen(found)
        size = max(1, tokens // self._prepared[0].tokens)
        batch = (self._prepared * size)[:size]
        return {"tokens": tokens, "pages_per_s": size / self._seconds(lambda: self._ours.embed(batch))}

    def _queries(self) -> dict[str, float]:
        """Queries/s of our forward pass, by batch size."""
        told = {}
        for size in (1, 8, 32):
            batch = [self._ours.prepare_query(query(number)) for number in range(size)]
            told[str(size)] = size / self._seconds(lambda batch=batch: self._ours.embed(batch))  # type: ignore[misc]  # bound now
        return told

    def _profile(self) -> dict[str, Any]:
        """Where the time of one forward pass goes, ours and stock's, and how often ours makes the host wait."""
        batch = self._prepared[:1]
        stock = self._engine(self._network, "stock")
        stock.embed(batch)
        return {
            "ours": where_time_goes(lambda: self._ours.embed(batch), self._device),
            "stock": where_time_goes(lambda: stock.embed(batch), self._device),
            "host_waits_inside_forward": host_waits(lambda: self._ours.start(batch), self._device),
        }

    def _utilisation(self) -> dict[str, float]:
        stock = self._engine(self._network, "stock")
        told = {
            "flops_per_page": float(flops(lambda: stock.embed(self._prepared[:1]))),
            "matmul_flops_per_s": matmul_flops_per_s(self._device, self._dtype),
        }
        if self._device.type == "cuda":
            told["peak_memory_gb"] = torch.cuda.max_memory_allocated(self._device) / 2**30
        return told

    def _seconds(self, work: Callable[[], object], rounds: int = _ROUNDS) -> float:
        """Return the median seconds of `work`, once it has run before."""
        if rounds > 1:
            work()
        seconds = []
        for _ in range(rounds):
            self._wait()
            started = time.perf_counter()
            work()
            self._wait()
            seconds.append(time.perf_counter() - started)
        return median(seconds)

    def _wait(self) -> None:
        if self._device.type == "cuda":
            torch.cuda.synchronize(self._device)


if __name__ == "__main__":
    sys.exit(main())
