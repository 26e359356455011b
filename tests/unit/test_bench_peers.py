"""The peers compute with the versions that we compute with."""

from pathlib import Path

ROOT = Path(__file__).parents[2]
PEERS = {"bentoml", "litserve"}


def pins(file: Path) -> dict[str, str]:
    lines = (line for line in file.read_text().splitlines() if "==" in line and not line.startswith("#"))
    return dict(line.split("==") for line in lines)


def test_all_but_the_peers_themselves_is_held_to_our_versions():
    theirs, ours = pins(ROOT / "bench" / "peers.txt"), pins(ROOT / "constraints.txt")

    assert {"torch", "transformers", "colpali_engine"} <= theirs.keys()
    assert {name: version for name, version in theirs.items() if name not in PEERS} == {
        name: ours[name] for name in theirs if name not in PEERS
    }
