"""Times segcore against the peers; see `__main__`, and `speed` for what is measured."""
