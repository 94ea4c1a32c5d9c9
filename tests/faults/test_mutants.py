"""Damaged files of every kind of input, in processes of their own; see `tests.measure.mutants`."""

from __future__ import annotations

import pytest

from tests.support.commands import run_module


@pytest.mark.faults
def test_damaged_input_is_rows_or_one_sentence() -> None:
    done = run_module("tests.measure.mutants", "--count", "40")
    assert done.returncode == 0, done.stdout + done.stderr
    assert "0 that should not have happened" in done.stdout
