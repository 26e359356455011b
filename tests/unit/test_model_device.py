import pytest
import torch

from worker.model import device as device_module
from worker.model.device import choose_attention, choose_device, choose_dtype

CPU, CUDA = torch.device("cpu"), torch.device("cuda")


@pytest.fixture
def gpu(monkeypatch):
    """Pretend to a GPU of a compute capability, with or without the flash attention package."""

    def pretend(capability, *, flash=False):
        monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
        monkeypatch.setattr(torch.cuda, "get_device_capability", lambda _: capability)
        monkeypatch.setattr(device_module, "find_spec", lambda _: object() if flash else None)

    return pretend


def test_auto_takes_the_gpu_where_there_is_one(gpu):
    gpu((8, 0))
    assert choose_device("auto") == CUDA


@pytest.mark.parametrize(("apple", "device"), [(True, "mps"), (False, "cpu")])
def test_auto_takes_apples_gpu_or_the_cpu_where_there_is_no_other(monkeypatch, apple, device):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    monkeypatch.setattr(torch.backends.mps, "is_available", lambda: apple)
    assert choose_device("auto") == torch.device(device)


@pytest.mark.parametrize(
    ("capability", "dtype"), [((7, 5), torch.float16), ((8, 0), torch.bfloat16), ((9, 0), torch.bfloat16)]
)
def test_a_gpu_computes_in_bfloat16_only_where_it_does_so_natively(gpu, capability, dtype):
    gpu(capability)
    assert choose_dtype("auto", CUDA) == dtype


def test_a_cpu_computes_in_float32():
    assert choose_dtype("auto", CPU) == torch.float32


def test_a_named_type_is_taken_at_its_word():
    assert choose_dtype("float16", CPU) == torch.float16


@pytest.mark.parametrize(
    ("capability", "flash", "dtype", "attention"),
    [
        ((8, 0), True, torch.bfloat16, "flash_attention_2"),
        ((8, 0), False, torch.bfloat16, "sdpa"),
        ((8, 0), True, torch.float32, "sdpa"),
        ((7, 5), True, torch.float16, "sdpa"),
    ],
)
def test_flash_attention_is_used_where_it_is_installed_and_runs(gpu, capability, flash, dtype, attention):
    gpu(capability, flash=flash)
    assert choose_attention(CUDA, dtype) == attention


def test_a_cpu_never_uses_flash_attention(gpu):
    gpu((8, 0), flash=True)
    assert choose_attention(CPU, torch.bfloat16) == "sdpa"
