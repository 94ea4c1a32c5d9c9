"""The inputs of ../shared/cases that once came out wrong, run again: `python -m tests.cases`."""
