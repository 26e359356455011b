"""The sample document: a small PDF of our own making, and a query that one of its pages answers. Knows paths only."""

from pathlib import Path

__all__ = ["SAMPLE_PDF", "SAMPLE_QUERY"]

SAMPLE_PDF = Path(__file__).with_name("sample.pdf")
SAMPLE_QUERY = "In which month was the most water delivered?"
"""Answered by the bar chart on page 3."""
