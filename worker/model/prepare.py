"""The CPU step: one page or query becomes what the network reads. Knows colpali-engine's processor; knows no batch.

Thread-safe: the processor's tokenizer, which changes its own settings with every call, is asked at construction only.
"""

from dataclasses import dataclass

import torch
from PIL import Image
from tokenizers import Tokenizer
from torch import Tensor

from shared.cost import AUGMENTATION_TOKENS
from shared.errors import TextInvalidError, TextTooLongError
from worker.model.decode import decode_page
from worker.model.libraries import ColQwen2_5_Processor
from worker.model.options import ModelOptions
from worker.model.pixels import resized
from worker.model.seam import Prepared

__all__ = ["Features", "Preparer"]

# Longer texts are refused unread. Prose has 3 to 5 characters a token; only walls of dots or blanks exceed this.
_MAX_CHARACTERS_PER_TOKEN = 16


@dataclass(frozen=True, slots=True)
class Features:
    """One input as the network reads it, without padding, on the CPU."""

    ids: Tensor
    """Token ids, int64 (n_tokens)."""

    positions: Tensor
    """Where each token stands in time, height and width (M-RoPE), int64 (3 x n_tokens)."""

    pixels: Tensor | None = None
    """A page, resized, uint8 (height x width x 3); None for a query."""

    visual: range = range(0)
    """The places of a page's visual tokens."""


class Preparer:
    """Prepares single inputs as `process_images` and `process_queries` would, by any number of threads at once."""

    def __init__(self, processor: ColQwen2_5_Processor, options: ModelOptions) -> None:
        tokenizer = processor.tokenizer
        prompt = tokenizer(processor.visual_prompt_prefix)["input_ids"]
        image = prompt.index(processor.image_token_id)
        self._before, self._image, self._after = prompt[:image], prompt[image : image + 1], prompt[image + 1 :]
        self._image_processor = processor.image_processor
        self._token_side = processor.image_processor.patch_size * processor.image_processor.merge_size
        self._prefix = processor.query_prefix
        self._suffix = AUGMENTATION_TOKENS * [tokenizer.convert_tokens_to_ids(processor.query_augmentation_token)]
        # Ours alone, and set once: special tokens in a caller's text are ordinary characters.
        self._plain_tokenizer = Tokenizer.from_str(tokenizer.backend_tokenizer.to_str())
        self._plain_tokenizer.encode_special_tokens = True
        self._plain_tokenizer.no_padding()
        self._plain_tokenizer.no_truncation()
        self._max_text_tokens = options.max_text_tokens
        self._max_image_pixels = options.max_image_pixels
        # Process-wide: Pillow's own limit would otherwise overrule a higher one of ours.
        Image.MAX_IMAGE_PIXELS = max(Image.MAX_IMAGE_PIXELS or 0, options.max_image_pixels)
        Image.init()  # Pillow loads its plugins at first use, and not safely from several threads

    def page(self, data: bytes) -> Prepared:
        """Raises `ImageInvalidError`, `ImageTooLargeError` or `ImageAspectError`."""
        image = decode_page(data, self._max_image_pixels)
        if torch.get_num_threads() != 1:
            # A setting of the calling thread: pages are prepared side by side, and each would start a team of its own.
            torch.set_num_threads(1)
        pixels = resized(image, self._image_processor)
        rows, columns = (side // self._token_side for side in pixels.shape[:2])
        first, n_visual = len(self._before), rows * columns
        ids = [*self._before, *n_visual * self._image, *self._after]
        positions = torch.arange(len(ids)).repeat(3, 1)
        positions[:, first : first + n_visual] = _places(rows, columns) + first
        # The text goes on behind the longer side of the page.
        positions[:, first + n_visual :] += max(rows, columns) - n_visual
        return Prepared(len(ids), Features(torch.tensor(ids), positions, pixels, range(first, first + n_visual)))

    def query(self, text: str) -> Prepared:
        """Raises `TextInvalidError` or `TextTooLongError`."""
        if not isinstance(text, str):
            raise TextInvalidError("the text is not a string")
        if len(text) > _MAX_CHARACTERS_PER_TOKEN * self._max_text_tokens:
            raise self._too_long()
        try:
            text.encode()
        except UnicodeEncodeError as error:
            raise TextInvalidError("the text holds half of a surrogate pair, which is no character") from error
        ids = self._plain_tokenizer.encode(self._prefix + text, add_special_tokens=False).ids + self._suffix
        if len(ids) > self._max_text_tokens:
            raise self._too_long()
        return Prepared(len(ids), Features(torch.tensor(ids), torch.arange(len(ids)).expand(3, -1)))

    def _too_long(self) -> TextTooLongError:
        return TextTooLongError(f"the text has more than {self._max_text_tokens} tokens")


def _places(rows: int, columns: int) -> Tensor:
    """Return time, height and width of each visual token of a page, int64 (3 x rows * columns): a page has one time."""
    height, width = torch.cartesian_prod(torch.arange(rows), torch.arange(columns)).T
    return torch.stack([torch.zeros_like(height), height, width])
