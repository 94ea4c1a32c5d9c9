"""Where the weights are that are part of the package; does not import PyTorch."""

from __future__ import annotations

from pathlib import Path

BUNDLED = Path(__file__).parent / "bundled"


def bundled_names() -> list[str]:
    """Models whose weights are in this package."""
    return sorted(path.stem for path in BUNDLED.glob("*.safetensors"))
