"""Finding file names by paths of which either may have more folders than the other."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator, Sequence

_MAX_FOLDERS = 32  # of a name whose ends are indexed
_SEVERAL = -1


class PathIndex:
    """File names by their whole path and by its ends; work grows with the number of names alone.

    Names are compared part by part. A backslash counts as a slash, and the last part may lack its
    extension in the path that is looked up.
    """

    def __init__(self, names: Sequence[str]) -> None:
        self._as_written: dict[str, list[int]] = defaultdict(list)
        self._whole: dict[str, list[int]] = defaultdict(list)
        self._ends: dict[str, int] = {}  # the number of the name, or _SEVERAL
        for number, name in enumerate(names):
            self._as_written[name].append(number)
            whole = _join(name)
            for path in {whole, _without_extension(whole)}:
                self._whole[path].append(number)
                for end in _ends(path):
                    self._ends[end] = _SEVERAL if end in self._ends else number

    def find(self, path: str) -> list[int]:
        """Numbers of the names that this path can be; two or more where that is not decided.

        Equal ones, else those that end with the path, or with which the path ends.
        """
        if equal := self.find_whole(path):
            return equal
        whole = _join(path)
        shorter = [number for end in _ends(whole) for number in self._whole.get(end, ())]
        longer = self._ends.get(whole)
        return shorter + ([] if longer is None else [longer] * (2 if longer == _SEVERAL else 1))

    def find_whole(self, path: str) -> list[int]:
        """Numbers of the names that are this path as a whole."""
        return self._as_written.get(path) or self._whole.get(_join(path)) or []


def _join(path: str) -> str:
    parts = [part for part in path.replace("\\", "/").split("/") if part not in ("", ".")]
    return "/".join(parts) or path


def _without_extension(path: str) -> str:
    folder, slash, name = path.rpartition("/")
    return f"{folder}{slash}{name.rpartition('.')[0] or name}"


def _ends(path: str) -> Iterator[str]:
    """The path without its first folder, without its first two, and so on; at most 32 of them."""
    for _ in range(_MAX_FOLDERS):
        _, slash, path = path.partition("/")
        if not slash:
            return
        yield path
