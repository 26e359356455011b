"""The mend, each time in an interpreter of its own: what it mends happens at import."""

import subprocess
import sys

import pytest

MENDED = "from worker.model.torchvision_mend import mend"


def run(program):
    return subprocess.run([sys.executable, "-c", program], check=False, capture_output=True, text=True)


@pytest.fixture(scope="module")
def broken_installation():
    """Skip where torchvision and torch fit each other: there is nothing to mend."""
    plain = run("import torchvision")
    if plain.returncode == 0:
        pytest.skip("torchvision loads by itself here")
    assert "torchvision::nms does not exist" in plain.stderr


@pytest.mark.usefixtures("broken_installation")
def test_torchvision_loads_once_mended():
    program = f"{MENDED}; assert mend() is True; assert mend() is False; import torchvision; assert mend() is False"
    assert run(program).stderr == ""


def test_a_healthy_installation_is_left_alone():
    program = f"""
import torch
torch.ops.load_library = lambda path: None  # as where the compiled part loads
{MENDED}
assert mend() is False
assert not hasattr(torch.ops.torchvision, "nms")
"""
    assert run(program).stderr == ""
