"""What a run cost, at a stated price of an hour."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from segcore.reporting.html import Content
from segcore.text import plural

_SECONDS = 3600.0
_MILLION = 1_000_000


def describe_cost(values: Mapping[str, Any], price: float) -> Iterator[tuple[str, Content]]:
    """Names and values about the cost of the last execution of a run.

    Args:
        values: The record of the run.
        price: Of an hour of all machines of the run together, in any currency.
    """
    name = f"Cost, at {price:,.10g} an hour"
    timings = values.get("timings")
    steps = timings.values() if isinstance(timings, Mapping) else ()
    seconds = sum(value for value in steps if isinstance(value, int | float) and value > 0)
    n_images, pace = values.get("images_this_time"), values.get("images_per_second")
    if not seconds or not isinstance(n_images, int) or not isinstance(pace, int | float):
        yield name, "The record of the run does not say how long it took."
        return
    hours = seconds / _SECONDS
    text = (
        f"{price * hours:,.4g} for the last execution: {hours:,.3g} h from its start to its "
        f"end, {plural(n_images, 'image')}"
    )
    yield name, text
    if pace > 0:
        each = price / _SECONDS / pace * _MILLION
        yield "Cost of a million images", f"{each:,.4g}, at {pace:,.4g} images/s (extrapolated)"
