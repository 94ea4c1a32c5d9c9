"""What happened to the instances of two sides, added up."""

from __future__ import annotations

import heapq
from collections import Counter, defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from segcore.comparison.matching import Change, Matches

_N_BANDS = 10
_MAX_IMAGES = 50  # most changed ones that are named
_IOU_EDGES = (0.5, 0.6, 0.7, 0.8, 0.9, 0.95, 1.0)


@dataclass(frozen=True)
class ChangedImage:
    """One image and how many of its instances changed in which way."""

    image_id: str
    n_changed: int
    changes: Mapping[str, int]

    def to_dict(self) -> dict[str, Any]:
        """Plain JSON values."""
        return {"image_id": self.image_id, "changed": self.n_changed, **self.changes}


@dataclass
class Totals:
    """Sums over images that were compared.

    Attributes:
        changes: Instances by what happened to them.
        by_category: The same by the category on the first side, or else on the second.
        relabelled: (category before, after) -> instances.
        by_score: The same by tenths of the score, on the first side or else on the second; -1 for
            instances without scores.
        by_iou: Pairs by their IoU: for each edge, how many are from it up to the next.
        score_change: Sum of the differences of scores of pairs, sum of their amounts, and number.
        images: Images that were compared.
        changed_images: Of these, with anything that is not the same.
    """

    changes: Counter[Change] = field(default_factory=Counter)
    by_category: dict[str, Counter[Change]] = field(default_factory=lambda: defaultdict(Counter))
    relabelled: Counter[tuple[str, str]] = field(default_factory=Counter)
    by_score: dict[int, Counter[Change]] = field(default_factory=lambda: defaultdict(Counter))
    by_iou: Counter[float] = field(default_factory=Counter)
    score_change: np.ndarray = field(default_factory=lambda: np.zeros(3))
    images: int = 0
    changed_images: int = 0
    _most_changed: list[tuple[int, str, Counter[Change]]] = field(default_factory=list)

    def add(
        self, image_ids: Sequence[str], matches: Matches, first: np.ndarray, second: np.ndarray
    ) -> None:
        """Add the images of one unit.

        Args:
            first, second: (N,) and (M,) scores of the instances of both sides.
        """
        self.images += len(image_ids)
        changes = matches.changes
        self._add_counts(self.changes, changes)
        codes = np.where(matches.codes[:, 0] >= 0, matches.codes[:, 0], matches.codes[:, 1])
        for code in np.unique(codes).tolist():
            of_code = self.by_category[matches.categories[code]]
            self._add_counts(of_code, changes[codes == code])
        for row in np.flatnonzero(changes == Change.RELABELLED).tolist():
            before, after = (matches.categories[code] for code in matches.codes[row].tolist())
            self.relabelled[before, after] += 1
        scores = _scores(first, matches.first), _scores(second, matches.second)
        self._add_scores(changes, *scores)
        ious = matches.ious[~np.isnan(matches.ious)]
        for place in np.searchsorted(_IOU_EDGES, ious, side="right").tolist():
            self.by_iou[(0.0, *_IOU_EDGES)[place]] += 1
        self._add_images(image_ids, matches)

    @staticmethod
    def _add_counts(counter: Counter[Change], changes: np.ndarray) -> None:
        for change, count in enumerate(np.bincount(changes, minlength=len(Change)).tolist()):
            if count:
                counter[Change(change)] += count

    def _add_scores(self, changes: np.ndarray, before: np.ndarray, after: np.ndarray) -> None:
        scores = np.where(np.isnan(before), after, before)
        # As decimal numbers read: 0.7 in float32 is a little less.
        bands = np.floor(np.round(np.nan_to_num(scores, nan=-1.0), 6) * _N_BANDS)
        bands = np.clip(bands, -1, _N_BANDS - 1).astype(int)
        for band in np.unique(bands).tolist():
            self._add_counts(self.by_score[band], changes[bands == band])
        differences = after - before
        differences = differences[~np.isnan(differences)]
        self.score_change += (differences.sum(), np.abs(differences).sum(), len(differences))

    def _add_images(self, image_ids: Sequence[str], matches: Matches) -> None:
        is_changed = matches.changes != Change.SAME
        n_changed = np.bincount(matches.images[is_changed], minlength=len(image_ids))
        self.changed_images += int((n_changed > 0).sum())
        for image in np.argsort(-n_changed, kind="stable")[:_MAX_IMAGES].tolist():
            if not n_changed[image]:
                break
            counts: Counter[Change] = Counter()
            self._add_counts(counts, matches.changes[matches.images == image])
            self._most_changed.append((int(n_changed[image]), image_ids[image], counts))
        self._most_changed = heapq.nsmallest(
            _MAX_IMAGES, self._most_changed, key=lambda entry: (-entry[0], entry[1])
        )

    @property
    def n_instances(self) -> int:
        """Objects of either side; a pair is one."""
        return self.changes.total()

    @property
    def n_changed(self) -> int:
        """Those that are not the same."""
        return self.n_instances - self.changes[Change.SAME]

    def share(self, change: Change | None = None) -> float:
        """Which part of all objects changed, or changed so; 0 if there is none."""
        count = self.n_changed if change is None else self.changes[change]
        return count / self.n_instances if self.n_instances else 0.0

    def most_changed(self) -> list[ChangedImage]:
        """The images with most changes, the most first."""
        return [
            ChangedImage(image_id, n, words(counts)) for n, image_id, counts in self._most_changed
        ]

    def to_dict(self) -> dict[str, Any]:
        """Plain JSON values."""
        total, amount, n_pairs = self.score_change.tolist()
        bands = sorted(self.by_score.items())
        return {
            "images": self.images,
            "changed_images": self.changed_images,
            "instances": self.n_instances,
            "changes": words(self.changes),
            "changed_share": self.share(),
            "by_category": {name: words(c) for name, c in sorted(self.by_category.items())},
            "relabelled": [
                {"before": before, "after": after, "instances": count}
                for (before, after), count in self.relabelled.most_common()
            ],
            "by_score": [
                {"from": None if band < 0 else band / _N_BANDS, **words(c)} for band, c in bands
            ],
            "by_iou": [{"from": edge, "pairs": n} for edge, n in sorted(self.by_iou.items())],
            "score_change": {
                "pairs": int(n_pairs),
                "mean": total / n_pairs if n_pairs else None,
                "mean_amount": amount / n_pairs if n_pairs else None,
            },
            "most_changed": [image.to_dict() for image in self.most_changed()],
        }


def words(changes: Counter[Change]) -> dict[str, int]:
    """Counts by the words for what happened, all of them."""
    return {change.word: changes[change] for change in Change}


def _scores(scores: np.ndarray, rows: np.ndarray) -> np.ndarray:
    """Scores of these rows; NaN for -1."""
    padded = np.append(scores, np.nan)
    result: np.ndarray = padded[rows]
    return result
