"""ColQwen2.5, from bytes to multi-vectors: the one place that imports torch. Knows no queue, no job and no Redis."""

import os

# Read once, when torch is loaded. The forward pass shares its cores with preparing threads: a thread of its team that
# spins while it waits keeps the others from them, and a page took five times as long on two busy cores.
os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
