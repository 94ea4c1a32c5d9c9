"""The public surface: every name is there, documented, and costs nothing before it is used."""

from __future__ import annotations

import subprocess
import sys

import pytest

import segcore


def test_every_public_name_is_there_and_documented() -> None:
    for name in segcore.__all__:
        assert getattr(segcore, name).__doc__, name
    with pytest.raises(AttributeError, match="'nothing'"):
        segcore.nothing  # noqa: B018


def test_importing_segcore_imports_none_of_its_dependencies() -> None:
    heavy = ("torch", "ray", "cv2", "numpy", "pyarrow", "pydantic")
    code = f"import sys, segcore; print([m for m in {heavy} if m in sys.modules])"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"
