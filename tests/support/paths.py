"""Where the repository lies, and what processes started by tests need to import from it."""

from __future__ import annotations

from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
PYTHONPATH = str(ROOT)  # `segcore` and `tests.support`, for the workers of a Ray that a test starts
SHARED = ROOT.parent / "shared"  # labelled images, cases and schemas; absent outside our workplace
