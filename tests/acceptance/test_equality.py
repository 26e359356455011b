"""What comes back over HTTP is what colpali-engine computes from the same checkpoint."""

import io

import numpy as np
import pytest
import torch
from acceptance.pictures import A4, as_base64, jpeg, png
from PIL import Image

from worker.model.libraries import ColQwen2_5, ColQwen2_5_Processor
from worker.model.tiny import tiny_checkpoint

# colpali-engine 0.3.18 calls transformers in a way that warns.
pytestmark = pytest.mark.filterwarnings("ignore:Passing `min_pixels` and `max_pixels`:FutureWarning")

TOLERANCE = 1e-5

PAGES = {
    "A4": png(*A4, seed=1),
    "A4 JPEG": jpeg(*A4, seed=2),
    "A4 on its side": jpeg(A4[1], A4[0], seed=3),
    "one pixel": png(1, 1),
    "a few pixels": png(3, 5),
    "wide": png(1900, 12, seed=4),
    "tall": jpeg(20, 1500, seed=5),
    "less than a token": png(27, 27),
    "square": jpeg(500, 500, seed=6),
    "large": jpeg(2400, 1800, seed=7),
    "odd": png(333, 777, seed=8),
}
QUERIES = [
    "",
    "one",
    "Which table shows the total revenue of the year?",
    "Wie hoch war der Umsatz? 売上高はいくらですか 🙂 " * 10,
    "  spaces and\nnew lines\t",
]


class Reference:
    """colpali-engine, used as its README does: the processor, the model, the mask to tell padding from rows."""

    def __init__(self, checkpoint):
        self.model = ColQwen2_5.from_pretrained(checkpoint, dtype=torch.float32).eval()
        self.processor = ColQwen2_5_Processor.from_pretrained(checkpoint, max_num_visual_tokens=768)

    def pages(self, files):
        return self._embed(
            self.processor.process_images([Image.open(io.BytesIO(file)).convert("RGB") for file in files])
        )

    def queries(self, texts):
        return self._embed(self.processor.process_queries(texts))

    @torch.no_grad()
    def _embed(self, batch):
        rows = self.model(**batch)
        return [one[mask.bool()].numpy() for one, mask in zip(rows, batch["attention_mask"], strict=True)]


@pytest.fixture(scope="module")
def reference(stack, models_dir):
    """colpali-engine on the very folder that the worker serves."""
    del stack
    return Reference(tiny_checkpoint(models_dir))


def embed(http, input_type, inputs):
    answer = http.post(
        "/embeddings", json={"input_type": input_type, "inputs": inputs}, headers={"Accept": "application/x-npz"}
    )
    assert answer.status_code == 200, answer.text
    arrays = np.load(io.BytesIO(answer.content))
    return [arrays[f"emb_{index}"] for index in range(int(arrays["count"]))]


def embed_pages(http, files):
    return embed(http, "image", [as_base64(file) for file in files])


def assert_equal(ours, theirs):
    """Same rows within the tolerance, all of unit length: a padding row would have none."""
    assert [rows.shape for rows in ours] == [rows.shape for rows in theirs]
    for our, their in zip(ours, theirs, strict=True):
        assert our.dtype == np.float32
        np.testing.assert_allclose(our, their, rtol=0, atol=TOLERANCE)
        np.testing.assert_allclose(np.linalg.norm(our, axis=1), 1, atol=1e-4)


def test_pages_of_many_sizes_in_one_request_equal_colpali_engine(http, reference):
    ours = embed_pages(http, PAGES.values())

    assert_equal(ours, [reference.pages([file])[0] for file in PAGES.values()])
    assert len({len(rows) for rows in ours}) > 5, "the sizes must differ for this to mean anything"


def test_pages_equal_colpali_engines_own_batch_without_its_padding(http, reference):
    files = [PAGES[name] for name in ("A4", "one pixel", "wide", "square")]

    assert_equal(embed_pages(http, files), reference.pages(files))


def test_queries_of_many_lengths_in_one_request_equal_colpali_engine(http, reference):
    assert_equal(embed(http, "text", QUERIES), [reference.queries([query])[0] for query in QUERIES])


def test_a_pages_rows_do_not_depend_on_its_neighbours(http):
    names = ["A4 JPEG", "one pixel", "wide", "square", "odd"]
    alone = {name: embed_pages(http, [PAGES[name]])[0] for name in names}

    for together in (names, names[::-1], ["one pixel", "A4 JPEG", "one pixel"]):
        assert_equal(embed_pages(http, [PAGES[name] for name in together]), [alone[name] for name in together])


def test_a_querys_rows_do_not_depend_on_its_neighbours(http):
    alone = [embed(http, "text", [query])[0] for query in QUERIES]

    assert_equal(embed(http, "text", QUERIES[::-1]), alone[::-1])
    assert_equal(embed(http, "text", [QUERIES[1], QUERIES[1]]), [alone[1], alone[1]])


def test_different_pages_and_queries_have_different_rows(http):
    """Else everything above could be true of a model that looks at nothing."""
    first, second = embed_pages(http, [png(140, 140, seed=1), png(140, 140, seed=2)])
    assert first.shape == second.shape
    assert np.abs(first - second).max() > 0.01

    first, second = embed(http, "text", ["one", "two"])
    assert first.shape != second.shape or np.abs(first - second).max() > 0.01
