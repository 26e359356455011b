"""Side-by-side measurements anyone can rerun. Knows every part from outside; nothing of colqueue knows it."""
