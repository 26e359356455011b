"""The error of a document, or of one of its pages, that cannot be turned into an image."""

__all__ = ["RenderError"]


class RenderError(Exception):
    """A document or a page cannot be rendered. `code` is stable (docs/backfill.md), `message` is a sentence."""

    def __init__(self, code: str, message: str) -> None:
        super().__init__(code, message)
        self.code = code
        self.message = message

    def __str__(self) -> str:
        return f"{self.message} ({self.code})"
