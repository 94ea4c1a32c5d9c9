"""Where to cut the keys of a folder in two, when nothing is known but the keys listed so far.

A guess is right if there are keys on both sides of it, and each costs a request. Keys that follow
each other differ near their ends, and how far the folder goes on is not known. So the first guess
changes the first letter that differs within a page; after a right one, the next changes the letter
before it, and after a wrong one, the limit is lower.
"""

from __future__ import annotations

import string
from collections.abc import Iterable, Mapping, Set

_ALPHABETS = (string.digits, string.ascii_lowercase, string.ascii_uppercase)
_SAMPLED_KEYS = 50  # of a page


class KeyRange:
    """The keys of a folder that one chain of requests has not listed yet.

    Attributes:
        bound: The key at which another chain goes on; None where there is no other.
        split_after: After how many more pages it may be cut again.
    """

    def __init__(self, prefix: str, bound: str | None = None) -> None:
        self.bound = bound
        self.split_after = 2
        self._prefix = prefix
        self._limit = bound  # no key is known from here on
        self._letters: dict[int, set[str]] = {}  # that were seen at each place of a key
        self._place: int | None = None  # the first letter that the next guess changes

    def guess(self, keys: list[str]) -> str | None:
        """A text behind the keys of the page that was listed last, and before the bound."""
        self.split_after = 2
        for key in keys[:: max(1, len(keys) // _SAMPLED_KEYS)]:
            for place, letter in enumerate(key):
                self._letters.setdefault(place, set()).add(letter)
        if self._place is None:
            self._place = _count_common(keys[0], keys[-1])
        first_place = max(self._place, len(self._prefix))
        return guess_between(keys[-1], self._limit, first_place, self._letters)

    def narrow(self, guess: str) -> None:
        """There is nothing between this guess and the bound."""
        self._limit = guess

    def cut(self, key: str) -> KeyRange:
        """End at this key; returns the range from there on."""
        rest = KeyRange(self._prefix, self.bound)
        rest._letters = {place: set(letters) for place, letters in self._letters.items()}
        rest._limit = self._limit
        rest._place = (self._place or 1) - 1
        self.bound = self._limit = key
        return rest


def guess_between(
    low: str, high: str | None, first_place: int, letters: Mapping[int, Set[str]]
) -> str | None:
    """A text between `low` and `high`, both excluded, that there may be keys behind.

    Args:
        low: A key.
        high: A text behind it; None for the end.
        first_place: So many characters it has in common with `low` at least.
        letters: Which were seen at each place of keys.

    Returns:
        None if there is no good guess.
    """
    if high is not None and high <= low:
        return None
    for place in range(first_place, len(low) + 1):
        start = low[place : place + 1]
        end = ""
        if high is not None and low[:place] == high[:place]:
            end = high[place]
            if start == end:
                continue
        for alphabet in (letters.get(place, ()), *_ALPHABETS):
            if alphabet in _ALPHABETS and start and start not in alphabet:
                continue
            choices = sorted(
                letter for letter in alphabet if start < letter and (not end or letter < end)
            )
            if choices:
                return low[:place] + choices[len(choices) // 2]
    return None


def _count_common(first: str, second: str) -> int:
    """With how many equal letters two texts begin."""
    pairs = enumerate(zip(first, second, strict=False))
    return next((place for place, (a, b) in pairs if a != b), min(len(first), len(second)))


def is_ascending(keys: Iterable[str]) -> bool:
    """Whether each key is greater than the one before it, by code points as S3 orders them."""
    iterator = iter(keys)
    previous = next(iterator, None)
    for key in iterator:
        if previous is not None and key <= previous:
            return False
        previous = key
    return True
