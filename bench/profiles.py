"""What one forward pass does on its device: operators, time, waits, floating-point operations. Knows torch only."""

import time
from collections import Counter
from collections.abc import Callable
from typing import Any, Final

import torch
from torch.profiler import ProfilerActivity, profile
from torch.utils.flop_counter import FlopCounterMode

__all__ = ["flops", "host_waits", "leaf_operators", "matmul_flops_per_s", "where_time_goes"]

# The first that an operator's name holds says its kind.
_KINDS: Final = {
    "attention": ("scaled_dot_product", "flash", "varlen", "efficient_attention"),
    "matmul": ("mm", "linear", "conv", "matmul"),
    "copies": ("copy", "cat", "index", "clone", "contiguous", "to_", "Memcpy"),
}
_WAITS: Final = ("cudaStreamSynchronize", "cudaDeviceSynchronize", "cudaEventSynchronize", "aten::_local_scalar_dense")
# Not rounding errors of the clock, and soon done.
_MATMUL: Final = {"cuda": 8192, "cpu": 512}


def leaf_operators(work: Callable[[], Any]) -> Counter[str]:
    """Return how often each operator that called no other ran during `work`."""
    with profile(activities=[ProfilerActivity.CPU], acc_events=True) as profiler:
        work()
    events = profiler.events() or ()
    return Counter(event.name for event in events if not event.cpu_children and event.name.startswith("aten::"))


def where_time_goes(work: Callable[[], Any], device: torch.device) -> dict[str, Any]:
    """Return the share of each kind of operator in the device's time, and the largest operators."""
    key = "self_device_time_total" if device.type == "cuda" else "self_cpu_time_total"
    with profile(activities=_activities(device), acc_events=True) as profiler:
        work()
    # Operators only: on a GPU their kernels are listed again under names of their own.
    operators = [one for one in profiler.key_averages() if "::" in one.key and getattr(one, key) > 0]
    total = sum(getattr(one, key) for one in operators) or 1
    shares: Counter[str] = Counter()
    for one in operators:
        shares[_kind(one.key)] += getattr(one, key) / total
    largest = sorted(operators, key=lambda one: getattr(one, key), reverse=True)[:12]
    return {
        "shares": dict(shares.most_common()),
        "largest": [{"operator": one.key, "calls": one.count, "share": getattr(one, key) / total} for one in largest],
        "milliseconds": total / 1000,
    }


def host_waits(work: Callable[[], Any], device: torch.device) -> dict[str, int]:
    """Return how often `work` made the host wait for the device, or would on a GPU, by what made it."""
    with profile(activities=_activities(device), acc_events=True) as profiler:
        work()
    return dict(Counter(event.name for event in profiler.events() or () if event.name in _WAITS))


def flops(work: Callable[[], Any]) -> int:
    """Return the floating-point operations of matmuls, convolutions and attention in `work`."""
    with FlopCounterMode(display=False) as counter:
        work()
    return int(counter.get_total_flops())


def matmul_flops_per_s(device: torch.device, dtype: torch.dtype) -> float:
    """Return the best rate of one large square matmul: what the device can do at all."""
    side = _MATMUL[device.type]
    left, right = (torch.randn(side, side, device=device).to(dtype) for _ in range(2))
    seconds = []
    for _ in range(8):
        _wait(device)
        started = time.perf_counter()
        torch.mm(left, right)
        _wait(device)
        seconds.append(time.perf_counter() - started)
    return 2 * side**3 / min(seconds)


def _activities(device: torch.device) -> list[ProfilerActivity]:
    return [ProfilerActivity.CPU, *([ProfilerActivity.CUDA] if device.type == "cuda" else [])]


def _kind(operator: str) -> str:
    return next((kind for kind, parts in _KINDS.items() if any(part in operator for part in parts)), "elementwise")


def _wait(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)
