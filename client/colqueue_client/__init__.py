"""Talks to a running colqueue, or starts one. Imports none of its other parts: HTTP is all it knows of them."""
