"""How a backfill ends before its time: by Ctrl-C, by an error, with a render process in the middle of an answer."""

import asyncio
import sys

import psutil
import pytest
from stack import eventually

from colqueue_client.backfill.renderers import Renderers

# Begins an answer, and writes the rest once its stdin has ended: by then nobody reads, and the pipe is full.
TALKATIVE = """
import sys
from pathlib import Path
from colqueue_client.backfill.renderers import LENGTH

sys.stdout.buffer.write(LENGTH.pack(2**26) + b"x" * 2**20)
sys.stdout.buffer.flush()
Path(__file__).with_suffix(".started").touch()
length, = LENGTH.unpack(sys.stdin.buffer.read(LENGTH.size))
sys.stdin.buffer.read()
sys.stdout.buffer.write(b"x" * 2**25)
"""


@pytest.fixture
def talkative(tmp_path, monkeypatch):
    (tmp_path / "talkative_render.py").write_text(TALKATIVE)
    monkeypatch.setenv("PYTHONPATH", f"{tmp_path}:{':'.join(sys.path)}")
    return tmp_path / "talkative_render.started"


@pytest.mark.timeout(60)
def test_a_render_process_whose_pipe_is_full_is_ended(talkative):
    async def ask_and_cancel():
        async with Renderers(1, module="talkative_render") as renderers:
            asked = asyncio.create_task(renderers.ask({"path": "any"}))
            await asyncio.to_thread(eventually, talkative.exists)
            children = psutil.Process().children(recursive=True)
            asked.cancel()
            with pytest.raises(asyncio.CancelledError):
                await asked
            return children

    children = asyncio.run(ask_and_cancel())

    assert children
    assert not any(child.is_running() for child in children)
