import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parents[2]
MODEL_STACK = {"torch", "torchvision", "transformers", "colpali_engine", "peft"}
SHARED = [f"shared.{path.stem}" for path in (ROOT / "shared").glob("[a-z]*.py")]


def imported_by(module):
    """The top-level packages that a fresh interpreter holds once it has imported `module`."""
    code = f"import sys, {module}; print(*{{name.partition('.')[0] for name in sys.modules}})"
    ran = subprocess.run(
        [sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True, timeout=120
    )
    return set(ran.stdout.split())


def test_nothing_but_the_model_imports_torch():
    assert (
        imported_by("api.app, colqueue_client.cli, worker.batcher, worker.consumer, worker.shard") & MODEL_STACK
        == set()
    )


def test_the_client_imports_neither_the_queue_nor_the_server():
    assert imported_by("colqueue_client.cli") & {"celery", "kombu", "redis", "fastapi", "starlette", "uvicorn"} == set()


def test_importing_the_client_costs_no_more_than_it_needs():
    """Rendering, Parquet and the stores come with their extras, and only when they are used."""
    needed = imported_by("httpx2, msgpack, numpy")
    brought = imported_by("colqueue_client") - needed - set(sys.stdlib_module_names)

    assert {name for name in brought if not name.startswith("_")} == {"colqueue_client"}


def test_no_command_needs_an_extra_before_it_is_used():
    extras = {"PIL", "pypdfium2", "pyarrow", "rich", "lancedb", "qdrant_client", "pydantic", "dotenv"}
    assert imported_by("colqueue_client.cli") & extras == set()


def test_celery_comes_into_shared_by_the_queue_only_and_the_batcher_knows_none():
    others = ["worker.batcher"] + [module for module in SHARED if module not in {"shared.queue", "shared.celery_entry"}]
    assert len(others) >= 9
    assert imported_by(", ".join(others)) & {"celery", "kombu", "fastapi", "torch"} == set()


def test_the_module_docstrings_say_what_they_hold():
    modules = [path for part in ("api", "client", "shared", "worker") for path in (ROOT / part).rglob("*.py")]
    assert len(modules) > 40
    assert [str(path.relative_to(ROOT)) for path in modules if not path.read_text().startswith('"""')] == []


def test_every_module_says_what_is_public():
    parts = [path for part in ("api", "client", "shared", "worker") for path in (ROOT / part).rglob("[a-z]*.py")]
    assert [str(path.relative_to(ROOT)) for path in parts if "\n__all__ = " not in path.read_text()] == []
