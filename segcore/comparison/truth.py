"""Known masks as the other side of a comparison."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field

import numpy as np
import pyarrow as pa

from segcore.comparison.editions import OtherImages
from segcore.comparison.instances import ImageInstances
from segcore.errors import UsageError
from segcore.evaluation.evaluate import image_rows
from segcore.evaluation.ground_truth import GroundTruth, Id
from segcore.evaluation.matching import match_categories, match_images
from segcore.evaluation.remarks import list_names
from segcore.output.results import Results
from segcore.text import plural


@dataclass(frozen=True)
class KnownMask:
    """A known object of an image.

    Attributes:
        category: The name that the edition has for its class, or else its own.
        counts: COCO compressed RLE on the canvas of the image.
        box: x, y, width, height in pixels.
    """

    category: str
    is_crowd: bool
    counts: str
    box: tuple[float, float, float, float]


@dataclass
class TruthImages:
    """Finds the known masks of the images of an edition.

    Attributes:
        ids: image_id -> id in the ground truth.
        names: Id of a category -> the name that the edition has for it, or else its own.
        n_crowds: Crowd regions that were left out so far.
        notes: Sentences for people.
    """

    truth: GroundTruth
    ids: dict[str, Id]
    names: dict[Id, str]
    missing: list[str]
    notes: list[str] = field(default_factory=list)
    n_crowds: int = 0

    @classmethod
    def of(cls, results: Results, truth: GroundTruth) -> TruthImages:
        """Match the images and classes of an edition with those of a ground truth."""
        match = match_images(image_rows(results), truth.images.values())
        notes = []
        if match.ambiguous:
            notes.append(
                f"{plural(len(match.ambiguous), 'image')} cannot be told apart by file_name and "
                f"were left out: {list_names(match.ambiguous)}."
            )
        names = {category.id: category.name for category in truth.categories}
        own = results.categories
        try:
            matched, by_id = match_categories(own, truth.categories)
            names |= {truth_id: own[number] for number, truth_id in matched.items()}
            if by_id:
                notes.append("Classes were matched by their ids: they have no name in common.")
        except UsageError as error:
            notes.append(f"{error.message} All matches count as relabelled.")
        for image_id, (width, height) in match.shown_size.items():
            truth.set_size(image_id, width, height)
        truth.measure(match.image_ids.values())
        return cls(truth, match.image_ids, names, match.missing, notes)

    def never_found(self) -> Iterator[str]:
        """File names of the ground truth that the edition lacks."""
        return iter(self.missing)

    def find(self, unit: str, images: pa.Table) -> OtherImages:
        """The images of a unit of the edition; see `EditionImages.find`."""
        ids = [self.ids.get(image_id) for image_id in images["image_id"].to_pylist()]
        counts: list[int] = []
        strings: list[bytes] = []
        canvases: list[tuple[int, int]] = []
        labels: list[str] = []
        sizes = np.full((len(ids), 2), -1, np.int64)
        for row, truth_id in enumerate(ids):
            objects = self.truth.objects(truth_id) if truth_id is not None else []
            if truth_id is not None:
                sizes[row] = self.truth.canvas(truth_id)
            n_before = len(strings)
            for item in objects:
                if item.is_crowd:
                    self.n_crowds += 1
                    continue
                strings.append(item.rle["counts"])
                canvases.append((int(sizes[row, 0]), int(sizes[row, 1])))
                labels.append(self.names[item.category_id])
            counts.append(len(strings) - n_before)
        no = np.zeros(len(ids), bool)
        return OtherImages(
            np.array([truth_id is not None for truth_id in ids], bool),
            no,
            sizes,
            no,
            ImageInstances.of_lists(counts, strings, canvases, labels, [np.nan] * len(strings)),
        )

    def masks(self, image_id: str, size: tuple[int, int]) -> list[KnownMask] | None:
        """The known objects of an image of the edition; None where there is none of these images.

        Args:
            size: (height, width) of the image; masks on another canvas are none of it.
        """
        truth_id = self.ids.get(image_id)
        if truth_id is None or self.truth.canvas(truth_id) != size:
            return None
        return [
            KnownMask(
                self.names[item.category_id], item.is_crowd, item.rle["counts"].decode(), item.bbox
            )
            for item in self.truth.objects(truth_id)
        ]

    def remarks(self) -> list[str]:
        """What a person should know, when all was compared."""
        crowds = []
        if self.n_crowds:
            crowds = [f"{plural(self.n_crowds, 'crowd region')} of the ground truth left out."]
        return [*self.notes, *crowds, *self.truth.remarks.sentences()]
