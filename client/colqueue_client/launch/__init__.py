"""Starts the whole stack on one machine: what `colqueue up` does. Knows commands; imports no other part."""
