"""Estimates an input's language-model tokens, and with them the rows of its result, from what the api knows of it."""

import math
import unicodedata
from typing import Final

from shared.jobs import InputType
from shared.settings import TokenSettings

__all__ = ["AUGMENTATION_TOKENS", "MAX_ASPECT", "PROMPT_TOKENS", "estimate_tokens"]

AUGMENTATION_TOKENS: Final = 10
"""Tokens that colpali-engine's `process_queries` appends to every text."""

PROMPT_TOKENS: Final = 11
"""Tokens of the prompt that colpali-engine's `process_images` puts around every page, with Qwen2.5's tokenizer."""

MAX_ASPECT: Final = 200
"""How many times longer than the other one side of a page may be; `smart_resize` refuses more."""


def estimate_tokens(input_type: InputType, payload: bytes, settings: TokenSettings) -> int:
    """Return an upper bound of the tokens of one input. Its result has as many rows, or fewer where it is pooled.

    The bound holds for every payload that the worker accepts; an input that the worker refuses has no rows.
    A text costs at most one token per UTF-8 byte, because Qwen2.5's tokenizer merges bytes: English text has about a
    quarter of that, and other languages have between a third and all of it. A page costs what the largest page costs,
    because its size in pixels is known only after decoding.
    """
    if input_type is InputType.IMAGE:
        return PROMPT_TOKENS + _max_visual_tokens(settings.max_visual_tokens)
    around = len((settings.query_prefix or "").encode()) + AUGMENTATION_TOKENS
    if len(payload) + around >= settings.max_text_tokens:
        return settings.max_text_tokens
    return min(_normalised_bytes(payload) + around, settings.max_text_tokens)


def _max_visual_tokens(limit: int) -> int:
    """Return the most visual tokens of any page.

    A page of extreme aspect ratio has at least one row of tokens, so it exceeds limits below 200 (`smart_resize`).
    """
    return max(limit, math.ceil(math.sqrt(MAX_ASPECT * limit)))


def _normalised_bytes(payload: bytes) -> int:
    """Return the number of UTF-8 bytes that the tokenizer reads: it normalises to NFC, which can lengthen a text."""
    if payload.isascii():
        return len(payload)
    text = payload.decode()
    return len(payload) if unicodedata.is_normalized("NFC", text) else len(unicodedata.normalize("NFC", text).encode())
