"""JSON from tools, bounded."""

from __future__ import annotations

import json
from typing import Any

from segcore.evaluation.truth_masks import Unusable


def parse(data: bytes) -> Any:
    """A JSON document.

    Raises:
        Unusable: It is none, or nested too deeply.
    """
    try:
        return json.loads(data)
    except RecursionError:
        raise Unusable("that are nested too deeply") from None
    except ValueError as error:  # UnicodeDecodeError, too
        raise Unusable("that are no JSON", str(error)[:200]) from None


def items(value: Any) -> list[Any]:
    """A list; an empty one in place of anything else."""
    return value if isinstance(value, list) else []


def mapping(value: Any) -> dict[str, Any]:
    """An object; an empty one in place of anything else."""
    return value if isinstance(value, dict) else {}


def text(value: Any) -> str:
    """A text; "" in place of anything else."""
    return value if isinstance(value, str) else ""
