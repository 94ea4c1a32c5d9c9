"""Pieces in several threads: results in order, errors at their place, few pieces at once."""

from __future__ import annotations

import threading
from collections.abc import Iterator

import pytest
from hypothesis import given
from hypothesis import strategies as st

from segcore.sources.parallel import map_in_order


@given(st.lists(st.integers(), max_size=50))
def test_results_are_those_of_map(pieces: list[int]) -> None:
    assert list(map_in_order(str, pieces)) == list(map(str, pieces))


def test_an_error_comes_at_the_place_of_its_piece() -> None:
    results = map_in_order(lambda piece: 6 // piece, [1, 2, 0, 3])
    assert (next(results), next(results)) == (6, 3)
    with pytest.raises(ZeroDivisionError):
        next(results)


def test_few_pieces_are_taken_ahead_and_by_the_caller() -> None:
    taken = []

    def pieces() -> Iterator[int]:
        for number in range(1000):
            taken.append(threading.current_thread())
            yield number

    results = map_in_order(abs, pieces())
    for number in range(100):
        assert next(results) == number
        assert len(taken) < number + 10
    results.close()  # type: ignore[attr-defined]
    assert set(taken) == {threading.current_thread()}
    assert len(taken) < 110
