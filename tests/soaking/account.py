"""Says what the soak sends, which rows two models make of it, and what was found wrong."""

import random
import sys
import threading
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

import httpx2
import numpy as np
from acceptance.pictures import as_base64, png

from worker.model.colqwen import load
from worker.model.options import ModelOptions
from worker.model.tiny import tiny_checkpoint

if TYPE_CHECKING:
    from shared.codecs import Rows
    from shared.models import ServedModel

__all__ = ["Account", "Findings", "Material", "say"]

_BAD_PAGE: Final = as_base64(b"no image at all")
_LARGE_PAGES: Final = 6
"""Together they make about 4,100 rows: 11 MB of JSON, which an api sends in more than 20 pieces."""
_TOLERANCE: Final = 1e-4


def say(line: str) -> None:
    """Print a line at once."""
    sys.stdout.write(f"{line}\n")
    sys.stdout.flush()


@dataclass
class Findings:
    """What is wrong with the outcome of some inputs: a sentence for each of them."""

    lost: list[str] = field(default_factory=list)
    duplicated: list[str] = field(default_factory=list)
    mixed: list[str] = field(default_factory=list)


@dataclass
class Account:
    """What all callers did and found."""

    jobs: int = 0
    inputs: int = 0
    large_results: int = 0
    queries: int = 0
    longest_query_outage_s: float = 0
    found: Findings = field(default_factory=Findings)
    _lock: threading.Lock = field(default_factory=threading.Lock)

    def add(self, inputs: int, found: Findings) -> None:
        """Count one submission whose outcome was checked."""
        with self._lock:
            self.jobs += 1
            self.inputs += inputs
            self.found.lost += found.lost
            self.found.duplicated += found.duplicated
            self.found.mixed += found.mixed
        for sentence in (*found.lost, *found.duplicated, *found.mixed):
            say(f"WRONG: {sentence}")


class Material:
    """The inputs, and the rows that each of two models makes of them, all computed before anything fails.

    The models are two checkpoints of the same shape with different weights: no row of one is a row of the other.
    """

    def __init__(self, cache_dir: Path) -> None:
        self._texts = [f"what does page {number} say of {'very ' * (number % 7)}old maps?" for number in range(24)]
        pages = [png(84 + 28 * (seed % 3), 112, seed) for seed in range(12)]
        large_pages = [png(728, 728, seed) for seed in range(_LARGE_PAGES)]
        self._pages = [as_base64(page) for page in pages]
        self.large_pages = [as_base64(page) for page in large_pages]
        self.models: list[ServedModel] = []
        """The model that the service prefers, then the other."""
        self._rows: dict[str, dict[str, Rows]] = {}
        for name in ("tiny", str(tiny_checkpoint(cache_dir, seed=1))):
            model = load(ModelOptions(name, cache_dir=cache_dir, device="cpu"))
            rows = {text: model.embed([model.prepare_query(text)])[0] for text in self._texts}
            rows |= {as_base64(page): model.embed([model.prepare_page(page)])[0] for page in (*pages, *large_pages)}
            self.models.append(model.served)
            self._rows[model.served.model_id] = rows

    def draw(self, draw: random.Random, *, bad: bool) -> dict[str, Any]:
        """Return the body of a request; with `bad`, one of its pages may be none. Half of all requests name a model."""
        input_type = draw.choice(["text", "text", "image"])
        good, most = (self._texts, 12) if input_type == "text" else (self._pages, 5)
        inputs = draw.choices(good, k=draw.randint(1, most))
        if bad and input_type == "image" and draw.random() < 0.5:
            inputs.insert(draw.randrange(len(inputs) + 1), _BAD_PAGE)
        return {"input_type": input_type, "inputs": inputs} | self.draw_model(draw)

    def draw_query(self, draw: random.Random) -> dict[str, Any]:
        """Return the body of a request of one short text, for any model."""
        return {"input_type": "text", "inputs": [draw.choice(self._texts)]}

    def draw_model(self, draw: random.Random) -> dict[str, str]:
        """Return what a body says of the model: nothing, a name or a model id."""
        names = [name for model in self.models for name in (model.name, model.model_id)]
        return draw.choice([{}, {"model": draw.choice(names)}])

    def check(
        self,
        body: Mapping[str, Any],
        headers: httpx2.Headers,
        embeddings: Sequence[Any],
        failed: Mapping[int, str],
        *,
        may_be_late: bool = False,
    ) -> Findings:
        """Return what is wrong with the answer to `body`: with its headers, and with each input's rows or failure."""
        inputs, found = body["inputs"], Findings()
        if len(embeddings) != len(inputs):
            return Findings(lost=[f"{len(embeddings)} answers for {len(inputs)} inputs"] * len(inputs))
        model_id = headers.get("X-Colqueue-Model-Id", "none")
        if body.get("model", model_id) not in (model_id, headers.get("X-Colqueue-Model")):
            found.mixed += [f"model {model_id} answered a request for {body['model']}"] * len(inputs)
        for index, (rows, sent) in enumerate(zip(embeddings, inputs, strict=True)):
            code = failed.get(index)
            if may_be_late and code == "deadline_exceeded":
                continue
            if sent == _BAD_PAGE:
                if code != "image_invalid":
                    found.lost.append(f"input {index} is no image: {code or 'rows'}")
            elif (made_by := self._models_of(sent, rows)) != {model_id}:
                if made_by:
                    found.mixed.append(f"input {index}: model {model_id} was named, the rows are of {made_by}")
                else:
                    found.lost.append(f"input {index}: {code or 'other rows'}")
        return found

    def _models_of(self, sent: str, rows: Any) -> set[str]:
        """Return the models that make these rows of an input."""
        if rows is None:
            return set()
        return {
            model_id
            for model_id, expected in self._rows.items()
            if np.shape(rows) == expected[sent].shape and np.allclose(rows, expected[sent], atol=_TOLERANCE)
        }
