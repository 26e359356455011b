"""Bulk runs: every page of many documents, embedded once, in files. `run` is the whole, `load` reads what it leaves."""
