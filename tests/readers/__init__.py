"""Exports of every format, read by the libraries of others. `make exports` runs it."""
