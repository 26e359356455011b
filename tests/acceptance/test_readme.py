"""Every shell block of the README is run against the stack, or says why not."""

import re
import subprocess
import sys
from pathlib import Path

from stack import KEY

ROOT = Path(__file__).parents[2]
README = (ROOT / "README.md").read_text()
BLOCK = re.compile(r"(?:<!-- not run: (?P<reason>[^>]+) -->\n)?```sh\n(?P<code>.*?)```", re.DOTALL)


def test_the_readmes_commands_do_what_it_says(stack, tmp_path):
    (tmp_path / ".env").write_text(f"SERVICE_API_KEY={KEY}\n")
    (tmp_path / ".venv").symlink_to(sys.prefix)
    (tmp_path / "client").symlink_to(ROOT / "client")
    (tmp_path / "README.md").write_text(README)
    code = "\n".join(block["code"] for block in BLOCK.finditer(README) if not block["reason"])
    assert code.count("http://127.0.0.1:8000") == 1

    script = "set -eu\n" + code.replace("http://127.0.0.1:8000", stack.url)
    done = subprocess.run(
        ["bash", "-c", script], cwd=tmp_path, capture_output=True, text=True, timeout=120, check=False
    )

    assert done.returncode == 0, done.stderr
    told = done.stdout
    assert '{"embeddings":[[[' in told
    assert "(747, 128)" in told
    assert "event: completed" in told
    assert '"completed":1,"failed":1' in told
    assert '"code":"image_invalid"' in told
    assert "6 pages found = 5 embedded + 0 failed + 1 skipped" in told
    assert "sample.pdf" in told.partition("MaxSim")[2]


def test_blocks_that_are_not_run_say_why():
    """One block is the transcript; the others that are not run start the stack itself."""
    assert [block["code"].split()[0] for block in BLOCK.finditer(README) if block["reason"]] == ["make", "docker"]
