"""The benchmark itself, at its smallest: real processes, every step but the peers."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
KEYS = {
    "engine_over_stock",
    "service_over_engine",
    "service_over_seed",
    "service_over_bentoml",
    "service_over_litserve",
    "overhead_cpu_ms_per_page",
    "model_idle_fraction",
    "dispatch_ratio",
    "device_bytes_ratio",
    "query_p99_ms",
}


def bench(module: str, *arguments: str) -> None:
    environment = os.environ | {"PYTHONPATH": str(ROOT)}
    done = subprocess.run(
        [sys.executable, "-m", module, *arguments], env=environment, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stdout[-2000:] + done.stderr[-4000:]


def test_a_quick_run_measures_ours_beside_stock_and_the_old_service(redis_program, tmp_path):
    del redis_program

    bench("bench", "--quick", "--json", str(tmp_path / "latest.json"))

    told = json.loads((tmp_path / "latest.json").read_text())
    assert told.keys() >= KEYS
    assert not told["not_run"]
    assert [one["batch"] >= 1 for one in told["alone"] if one["contestant"] == "calibrated"] == [True]
    assert {name for name in KEYS if told[name] is None} == {"service_over_bentoml", "service_over_litserve"}
    assert told["largest_difference"].keys() == {"engine", "seed", "service"}
    assert max(told["largest_difference"].values()) <= 1e-5
    ours = next(one for one in told["services"] if (one["contestant"], one["load"]) == ("service", "2 callers"))
    assert sum(int(size) * count for size, count in ours["batches"].items()) == ours["pages"] == 4
    assert 0 < ours["forward_cpu_s"] < ours["cpu_s"]


def test_every_step_of_the_gpu_script_runs_in_small_on_the_cpu(tmp_path):
    small = ("--device", "cpu", "--size", "tiny", "--pages", "1", "--batches", "1,2", "--threads", "1")

    bench("bench.gpu", *small, "--dtype", "float32", "--json", str(tmp_path / "gpu.json"))

    told = json.loads((tmp_path / "gpu.json").read_text())
    assert told["device"].startswith("cpu")
    assert told["engine"] == "fast"
    assert told["equality"]["fast_to_stock"] == pytest.approx(1, abs=1e-5)
    assert told["profile"]["ours"]["shares"]["matmul"] > 0
    assert told["utilisation"]["flops_per_page"] > 1e9


def test_the_full_size_is_that_of_the_published_model(tiny_checkpoint):
    import torch  # noqa: PLC0415 - takes a second, and other tests here need none

    from bench.full_size import network_of  # noqa: PLC0415 - likewise

    network = network_of("full", tiny_checkpoint, torch.device("meta"), torch.bfloat16)

    # 3.75 billion with the table of words that input and output share, and the projection to 128 dimensions.
    assert sum(weight.numel() for weight in network.parameters()) == pytest.approx(3.755e9, rel=0.001)


def test_a_checkpoint_of_the_full_size_is_saved_whole_and_can_be_loaded(tmp_path, monkeypatch):
    from bench import full_size  # noqa: PLC0415 - likewise
    from worker.model.colqwen import load  # noqa: PLC0415 - likewise
    from worker.model.options import ModelOptions  # noqa: PLC0415 - likewise

    monkeypatch.setitem(full_size.SIZES, "full", full_size.SHAPES["tiny"])  # but for its table of words

    folder = full_size.checkpoint("full", tmp_path, "cpu", "float32")
    model = load(ModelOptions(name=str(folder), device="cpu"))

    assert model.embed([model.prepare_query("the total")])[0].shape[1] == 128
    assert full_size.checkpoint("full", tmp_path, "cpu", "float32") == folder


def test_the_gpu_script_says_so_where_there_is_no_gpu(tmp_path):
    import torch  # noqa: PLC0415 - likewise

    if torch.cuda.is_available():
        pytest.skip("there is one here")
    done = subprocess.run(
        [sys.executable, "-m", "bench.gpu", "--json", str(tmp_path / "gpu.json")],
        env=os.environ | {"PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
        check=False,
    )

    assert done.returncode == 2
    assert "no CUDA device" in done.stderr
    assert not (tmp_path / "gpu.json").exists()


def test_the_workers_memory_is_watched_under_a_backlog(redis_program, tmp_path):
    del redis_program

    bench("bench.memory", "--seconds", "6", "--callers", "2", "--json", str(tmp_path / "memory.json"))

    told = json.loads((tmp_path / "memory.json").read_text())
    assert told["bounded"]
    assert told["pages"] >= 32
    assert all(sample["worker"] > 100 for sample in told["curve"])
