"""Sizes of samples against the literature, intervals against exact fractions."""

from __future__ import annotations

from fractions import Fraction
from math import comb

import pytest

from segcore.errors import UsageError
from segcore.ranking.sample_size import images_to_check, observed_share
from tests.support.commands import call_segcore


@pytest.mark.parametrize(
    ("error", "confidence", "population", "n"),
    [
        (0.05, 0.95, None, 385),  # the usual tables of Cochran's formula
        (0.02, 0.95, None, 2401),
        (0.03, 0.95, None, 1068),
        (0.05, 0.99, None, 664),
        (0.05, 0.95, 10_000, 370),
        (0.05, 0.95, 500, 218),
        (0.02, 0.95, 100, 97),
        (0.4, 0.5, 1, 1),
    ],
)
def test_sizes_are_those_of_the_tables(
    error: float, confidence: float, population: int | None, n: int
) -> None:
    assert images_to_check(error, confidence, population) == n


def test_a_size_lies_between_one_and_all_and_grows_with_the_population() -> None:
    sizes = [images_to_check(0.03, 0.95, n) for n in range(1, 3000)]
    assert sizes == sorted(sizes)
    assert all(1 <= size <= n for n, size in enumerate(sizes, start=1))
    assert sizes[-1] <= images_to_check(0.03, 0.95)
    assert images_to_check(0.03, 0.95, expected=0.02) < images_to_check(0.03, 0.95)


def _at_most(population: int, wrong: int, n: int, k: int) -> Fraction:
    """P(at most k wrong ones among n drawn), by counting."""
    favourable = sum(comb(wrong, x) * comb(population - wrong, n - x) for x in range(k + 1))
    return Fraction(favourable, comb(population, n))


@pytest.mark.parametrize("population", [1, 2, 7, 18])
@pytest.mark.parametrize("confidence", [0.5, 0.9, 0.95])
def test_the_interval_of_a_finite_population_is_that_of_exact_fractions(
    population: int, confidence: float
) -> None:
    tail = (1 - Fraction(confidence)) / 2
    for n in range(1, population + 1):
        for k in range(n + 1):
            fits = [
                wrong
                for wrong in range(k, population - (n - k) + 1)
                if 1 - (_at_most(population, wrong, n, k - 1) if k else 0) > tail
                and _at_most(population, wrong, n, k) > tail
            ]
            found = observed_share(n, k, confidence, population)
            # Where no number fits both tails, the interval is empty but for what was seen.
            if fits:
                assert (found.low, found.high) == (fits[0] / population, fits[-1] / population)
            assert found.low <= found.high


@pytest.mark.parametrize(("n", "k"), [(1, 0), (1, 1), (10, 0), (10, 3), (381, 7), (50, 50)])
def test_the_interval_of_a_large_population_has_the_stated_tails(n: int, k: int) -> None:
    found = observed_share(n, k, 0.95)

    def at_most(share: float, most: int) -> float:
        p = Fraction(share)
        return float(sum(comb(n, x) * p**x * (1 - p) ** (n - x) for x in range(most + 1)))

    if k:
        assert 1 - at_most(found.low, k - 1) == pytest.approx(0.025)
    else:
        assert (found.low, found.high) == (0, pytest.approx(1 - 0.025 ** (1 / n)))
    if k < n:
        assert at_most(found.high, k) == pytest.approx(0.025)
    else:
        assert found.high == 1


def test_intervals_of_large_numbers_meet_those_of_endless_ones() -> None:
    endless = observed_share(100_000, 1700)
    finite = observed_share(100_000, 1700, population=10_000_000_000)
    assert finite.low == pytest.approx(endless.low, rel=1e-3)
    assert finite.high == pytest.approx(endless.high, rel=1e-3)
    assert observed_share(500, 20, population=500).low == observed_share(500, 20, 0.95, 500).high


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("--error", "0"), "error is 0; it must lie between 0 and 0.5"),
        (("--error", "0.6"), "error is 0.6"),
        (("--confidence", "1"), "confidence is 1"),
        (("--expected", "0"), "expected share is 0"),
        (("--checked", "5"), "--checked and --wrong belong together"),
        (("--checked", "5", "--wrong", "6"), "6 of 5 checked images cannot be wrong"),
        (("--checked", "9", "--wrong", "6", "--population", "8"), "9 of 8 images cannot"),
        (("out", "--population", "8"), "leave --population out"),
        (("nothing-here",), "nothing-here"),
    ],
)
def test_numbers_that_cannot_be_are_refused(arguments: tuple[str, ...], message: str) -> None:
    done = call_segcore("sample-size", *arguments)
    assert (done.returncode, message in done.stderr) == (2, True), done.stderr


def test_the_command_says_it_in_words() -> None:
    done = call_segcore("sample-size", "--error", "0.02", "--population", "98000")
    assert done.stdout == (
        "Check 2,344 of 98,000 images, drawn at random: the share of wrong ones is then known to "
        "±0.02 with 0.95 confidence, whatever it is.\n"
    )
    done = call_segcore("sample-size", "--checked", "381", "--wrong", "7")
    assert done.stdout.startswith("7 of 381 checked images wrong: 1.84%. Of all images, 0.74% to ")
    with pytest.raises(UsageError):
        observed_share(0, 0)
