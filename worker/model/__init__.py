"""ColQwen2.5, from bytes to multi-vectors: the one place that imports torch. Knows no queue, no job and no Redis."""
