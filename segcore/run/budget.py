"""How much one run may do; what is left, the next run does."""

from __future__ import annotations

import time
from dataclasses import dataclass

import numpy as np

from segcore.planning.plan import Units


@dataclass
class Budget:
    """Images and time of one run.

    Attributes:
        images: How many may still be begun; None: any number.
        deadline: When to stop, by the monotonic clock; None: never.
        reached: Whether units were left because of it.
    """

    images: int | None = None
    deadline: float | None = None
    reached: bool = False

    @classmethod
    def of(cls, max_images: int | None, max_seconds: float | None) -> Budget:
        """A budget that begins now."""
        deadline = None if max_seconds is None else time.monotonic() + max_seconds
        return cls(max_images, deadline)

    def is_over(self) -> bool:
        """Whether the time is up; remembers that units may be left because of it."""
        if self.deadline is not None and time.monotonic() >= self.deadline:
            self.reached = True
            return True
        return False

    def cut(self, units: Units, most_images: int) -> Units:
        """The first units that fit, and at least one if any image is left.

        Args:
            most_images: What a unit counts whose images are not known before it is read.
        """
        if self.images is None or not len(units):
            return units
        sizes = units.table["n_images"].fill_null(most_images).to_numpy()
        ends = np.cumsum(sizes)
        n_units = int(np.searchsorted(ends, self.images, side="right"))
        if self.images > 0:
            n_units = max(n_units, 1)
        self.reached |= n_units < len(units)
        self.images = max(0, self.images - (int(ends[n_units - 1]) if n_units else 0))
        return Units(units.table.slice(0, n_units))
