"""How much one run may do; what is left, the next run does."""

from __future__ import annotations

import time
from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np

from segcore.config.schema import RunOptions
from segcore.planning.plan import Units

_HOUR_S = 3600.0


@dataclass
class Budget:
    """Images, time and money of one run.

    Attributes:
        images: How many may still be begun; None: any number.
        deadline: When to stop, by the monotonic clock; None: never.
        max_cost: How much the workers may cost; None: any amount.
        worker_price: Of one worker for an hour; None: not known.
        reached: Whether units were left because of it.
    """

    images: int | None = None
    deadline: float | None = None
    max_cost: float | None = None
    worker_price: float | None = None
    reached: bool = False
    _workers: int = 0
    _since: float = 0.0
    _cost_before: float = 0.0

    @classmethod
    def of(cls, options: RunOptions) -> Budget:
        """A budget that begins now."""
        max_seconds = options.max_seconds
        deadline = None if max_seconds is None else time.monotonic() + max_seconds
        return cls(options.max_images, deadline, options.max_cost, options.worker_price)

    def pay_workers(self, number: int) -> None:
        """From now on, so many workers cost money; 0: none any more."""
        self._cost_before, self._workers, self._since = self.cost(), number, time.monotonic()

    def cost(self) -> float:
        """What the workers have cost so far; 0 if their price is not known."""
        hours = (time.monotonic() - self._since) / _HOUR_S
        return self._cost_before + (self.worker_price or 0.0) * self._workers * hours

    def is_over(self) -> bool:
        """Whether time or money is used up; remembers that units may be left because of it."""
        is_late = self.deadline is not None and time.monotonic() >= self.deadline
        if is_late or (self.max_cost is not None and self.cost() >= self.max_cost):
            self.reached = True
            return True
        return False

    def cut(self, units: Units, most_images: int, retried: Mapping[str, int]) -> Units:
        """The first units that fit, and at least one if any image is left.

        Args:
            most_images: What a unit counts whose images are not known before it is read.
            retried: Unit -> the images of it that are segmented, where these are not all.
        """
        if self.images is None or not len(units):
            return units
        sizes = units.table["n_images"].fill_null(most_images).to_numpy()
        if retried:
            ids = units.table["unit"].to_pylist()
            sizes = np.array(
                [retried.get(unit, size) for unit, size in zip(ids, sizes, strict=True)]
            )
        ends = np.cumsum(sizes)
        n_units = int(np.searchsorted(ends, self.images, side="right"))
        if self.images > 0:
            n_units = max(n_units, 1)
        self.reached |= n_units < len(units)
        self.images = max(0, self.images - (int(ends[n_units - 1]) if n_units else 0))
        return Units(units.table.slice(0, n_units))
