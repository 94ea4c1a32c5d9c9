"""Fixtures of the tests that look at an output from outside."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.support.finished_output import FinishedOutput, finish_run


@pytest.fixture
def out(tmp_path: Path) -> FinishedOutput:
    """A run that finished on disk."""
    return finish_run(str(tmp_path))
