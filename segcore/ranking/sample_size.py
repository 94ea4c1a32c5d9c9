"""How many images to check by hand, and what the checked ones tell about all of them.

Each checked image is either right or wrong, and the images to check are drawn at random. Sources:

- Cochran, "Sampling Techniques", 3rd edition (1977), chapter 4: the size of a sample for a share,
  n0 = z^2 p (1 - p) / e^2, and with a finite population n0 / (1 + (n0 - 1) / N).
- Clopper and Pearson, "The use of confidence or fiducial limits illustrated in the case of the
  binomial" (Biometrika 26, 1934): the interval that holds the true share at least as often as is
  stated. With a finite population the same is done with the hypergeometric distribution, which
  drawing without replacement has (Buonaccorsi, The American Statistician 41, 1987).
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import asdict, dataclass
from statistics import NormalDist
from typing import Any

import numpy as np

from segcore.errors import UsageError

MAX_POPULATION = 10_000_000_000  # beyond, logarithms of factorials are not precise enough
MAX_CHECKED = 10_000_000
_STEPS = 60  # that halve the interval of a share


def images_to_check(
    error: float, confidence: float, population: int | None = None, expected: float = 0.5
) -> int:
    """How many images to check so that the share of wrong ones is known to ± `error`.

    Args:
        confidence: How often that holds, such as 0.95.
        population: All images; None where they are many more than would be checked.
        expected: The share of wrong images that is expected; with 0.5 the number is enough
            whatever the share.

    Raises:
        UsageError: A number is out of its range.
    """
    _check_share("error", error, 0.5)
    _check_share("confidence", confidence)
    _check_share("expected share", expected)
    _check_population(population)
    z = NormalDist().inv_cdf((1 + confidence) / 2)
    n = z * z * expected * (1 - expected) / (error * error)
    if population is not None:
        n = n / (1 + (n - 1) / population)
        return min(max(1, math.ceil(round(n, 6))), population)
    return max(1, math.ceil(round(n, 6)))


@dataclass(frozen=True)
class ObservedShare:
    """What the checked images tell about all.

    Attributes:
        share: Of the checked images that are wrong.
        low, high: Between these is the share of all images, with the stated confidence at least.
        method: How that was computed.
    """

    checked: int
    wrong: int
    confidence: float
    population: int | None
    share: float
    low: float
    high: float
    method: str

    def to_dict(self) -> dict[str, Any]:
        """Plain JSON values."""
        return asdict(self)


def observed_share(
    checked: int, wrong: int, confidence: float = 0.95, population: int | None = None
) -> ObservedShare:
    """The share of wrong images among all, when some were drawn at random and checked.

    Args:
        population: All images; None where they are many more than were checked.

    Raises:
        UsageError: The numbers contradict each other.
    """
    _check_share("confidence", confidence)
    _check_population(population)
    if not 1 <= checked <= MAX_CHECKED:
        raise UsageError(f"{checked:,} images were checked; it must be 1 to {MAX_CHECKED:,}.")
    if not 0 <= wrong <= checked:
        raise UsageError(f"{wrong:,} of {checked:,} checked images cannot be wrong.")
    if population is not None and checked > population:
        raise UsageError(f"{checked:,} of {population:,} images cannot have been checked.")
    tail = (1 - confidence) / 2
    if population is None:
        low, high = _binomial_interval(checked, wrong, tail)
        method = "Clopper-Pearson"
    else:
        low, high = _hypergeometric_interval(population, checked, wrong, tail)
        method = "exact, hypergeometric"
    share = wrong / checked
    return ObservedShare(checked, wrong, confidence, population, share, low, high, method)


def _binomial_interval(n: int, k: int, tail: float) -> tuple[float, float]:
    def at_most(share: float, most: int) -> float:
        x = np.arange(most, dtype=np.float64)
        odds = math.log(share) - math.log1p(-share)
        ratios = np.log((n - x) / (x + 1)) + odds
        return _sum(n * math.log1p(-share), ratios)

    def bisect(is_low: Callable[[float], bool]) -> float:
        low, high = 0.0, 1.0
        for _ in range(_STEPS):
            middle = (low + high) / 2
            low, high = (middle, high) if is_low(middle) else (low, middle)
        return (low + high) / 2

    lowest = bisect(lambda p: 1 - at_most(p, k - 1) < tail) if k else 0.0
    highest = bisect(lambda p: at_most(p, k) > tail) if k < n else 1.0
    return lowest, highest


def _hypergeometric_interval(population: int, n: int, k: int, tail: float) -> tuple[float, float]:
    """By the number of wrong images among all, which is `k` to `population` - (`n` - `k`)."""

    def at_most(wrong: int, most: int) -> float:
        first = max(0, n - (population - wrong))
        if most < first:
            return 0.0
        if most >= min(n, wrong):
            return 1.0
        x = np.arange(first, most, dtype=np.float64)
        ratios = np.log((wrong - x) * (n - x)) - np.log((x + 1) * (population - wrong - n + x + 1))
        start = (
            _log_choose(wrong, first)
            + _log_choose(population - wrong, n - first)
            - _log_choose(population, n)
        )
        return _sum(start, ratios)

    least, most = k, population - (n - k)

    def first_where(holds: Callable[[int], bool]) -> int:
        """The lowest number of which it holds; it holds of all above and of `most` + 1."""
        low, high = least, most + 1
        while low < high:
            middle = (low + high) // 2
            low, high = (low, middle) if holds(middle) else (middle + 1, high)
        return low

    lowest = first_where(lambda wrong: 1 - at_most(wrong, k - 1) > tail) if k else 0
    highest = first_where(lambda wrong: at_most(wrong, k) <= tail) - 1 if k < n else most
    return lowest / population, max(lowest, highest) / population


def _sum(start: float, ratios: np.ndarray) -> float:
    """Sum of probabilities: exp(`start`), and each next one by its logarithmic ratio to it."""
    logs = start + np.concatenate([[0.0], np.cumsum(ratios)])
    return min(1.0, float(np.exp(logs).sum()))


def _log_choose(n: int, k: int) -> float:
    return math.lgamma(n + 1) - math.lgamma(k + 1) - math.lgamma(n - k + 1)


def _check_share(name: str, value: float, highest: float = 1.0) -> None:
    if not 0 < value < highest:
        raise UsageError(f"The {name} is {value:g}; it must lie between 0 and {highest:g}.")


def _check_population(population: int | None) -> None:
    if population is not None and not 1 <= population <= MAX_POPULATION:
        raise UsageError(
            f"The population is {population:,} images; it must be 1 to {MAX_POPULATION:,}."
        )
