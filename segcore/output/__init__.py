"""The files of a run: where they lie, their schemas, and how they are written and read."""
