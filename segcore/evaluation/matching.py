"""Which images and classes of an output are which of the ground truth."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field

from segcore.errors import UsageError
from segcore.evaluation.exif_labels import ExifLabels
from segcore.evaluation.ground_truth import Id, TruthCategory, TruthImage
from segcore.evaluation.paths import PathIndex
from segcore.evaluation.remarks import list_names, shorten
from segcore.text import plural


@dataclass(frozen=True)
class ImageRow:
    """The needed columns of a row of the `images` table; sizes are None for failed images."""

    image_id: str
    shard: str
    width: int | None
    height: int | None
    failed: bool

    @property
    def path(self) -> str:
        """The key inside the shard, or the whole URI of a loose image."""
        return self.image_id.removeprefix(f"{self.shard}#") if self.shard else self.image_id


@dataclass
class ImageMatch:
    """Output images against ground truth images.

    Attributes:
        image_ids: image_id of the output -> id in the ground truth.
        failed: Matched images that failed.
        unknown: Output images without a counterpart.
        missing: File names of the ground truth without a counterpart.
        ambiguous: File names of the ground truth that several output images could be, and keys
            of output images that several file names could be.
        other_size: Sentences about matched images of another size.
        swapped: The same about those whose sides are swapped.
        shown_size: (width, height) of images that take their canvas from the output: id -> size.
        n_without_size: Images of which the ground truth gives no size.
        n_shown, n_left_out: Images with swapped sides that were taken as shown, or left out.
    """

    exif_labels: ExifLabels = ExifLabels.REFUSE
    image_ids: dict[str, Id] = field(default_factory=dict)
    failed: int = 0
    unknown: int = 0
    missing: list[str] = field(default_factory=list)
    ambiguous: list[str] = field(default_factory=list)
    other_size: list[str] = field(default_factory=list)
    swapped: list[str] = field(default_factory=list)
    shown_size: dict[Id, tuple[int, int]] = field(default_factory=dict)
    n_without_size: int = 0
    n_shown: int = 0
    n_left_out: int = 0

    def add(self, image: TruthImage, row: ImageRow) -> None:
        """Record that `row` is `image` of the ground truth."""
        size, shown = (image.width, image.height), (row.width, row.height)
        if None in size:
            if row.width is None or row.height is None:
                self.other_size.append(
                    f"{shorten(row.path, 200)} failed, and the ground truth has no size of it"
                )
            elif any(side not in (None, actual) for side, actual in zip(size, shown, strict=True)):
                self.other_size.append(_differ(image, row))
            else:
                self.shown_size[image.id] = (row.width, row.height)
                self.n_without_size += 1
        elif not row.failed and size != shown:
            if size != shown[::-1]:
                self.other_size.append(_differ(image, row))
            elif self.exif_labels == ExifLabels.REFUSE:
                self.swapped.append(_differ(image, row))
            elif self.exif_labels == ExifLabels.LEAVE_OUT:
                self.n_left_out += 1
                return
            elif row.width is not None and row.height is not None:
                self.shown_size[image.id] = (row.width, row.height)
                self.n_shown += 1
        self.image_ids[row.image_id] = image.id
        self.failed += row.failed

    def check(self, output: str, ground_truth: str, allow_missing: bool) -> list[str]:
        """Refuse what would make the scores wrong.

        Returns:
            Sentences for people about the rest.

        Raises:
            UsageError: Images cannot be told apart, have other sizes, or are missing.
        """
        if self.ambiguous:
            raise UsageError(
                f"{plural(len(self.ambiguous), 'image')} cannot be told apart by file_name between "
                f"{output} and {ground_truth}: {list_names(self.ambiguous)}.",
                "Give file_name in the ground truth enough folders to be unique.",
            )
        if self.other_size:
            raise UsageError(
                f"The size of {plural(len(self.other_size), 'image')} differs from the ground "
                f"truth: {self.other_size[0]}.",
                "Sizes are those after EXIF orientation; is this the ground truth of this archive?",
            )
        if self.swapped:
            raise UsageError(
                f"Width and height of {plural(len(self.swapped), 'image')} are swapped in the "
                f"ground truth, as where the EXIF orientation was not applied: {self.swapped[0]}.",
                "If the masks lie on the images as viewers show them, use --exif-labels shown; to "
                "measure without these images, --exif-labels leave-out.",
            )
        if self.missing and not (allow_missing and self.image_ids):
            raise UsageError(
                f"{output} lacks {plural(len(self.missing), 'image')} of {ground_truth}: "
                f"{list_names(self.missing)}.",
                "Finish the run first, or leave these images out with --allow-missing.",
            )
        facts = (
            (len(self.missing), "of the ground truth not in the output: left out of the scores"),
            (self.failed, "failed in the run: counted as undetected"),
            (self.unknown, "of the output not in the ground truth: left out of the scores"),
            (self.n_without_size, "without a size in the ground truth: that of the output counts"),
            (self.n_shown, "with swapped sides in the ground truth: masks taken as shown"),
            (self.n_left_out, "with swapped sides in the ground truth: left out of the scores"),
        )
        return [f"{plural(count, 'image')} {what}." for count, what in facts if count]


def _differ(image: TruthImage, row: ImageRow) -> str:
    return (
        f"{shorten(row.path, 200)} is {row.width} x {row.height} pixels, "
        f"not {image.width} x {image.height} (width x height)"
    )


def match_images(
    rows: Iterable[ImageRow],
    images: Iterable[TruthImage],
    exif_labels: ExifLabels = ExifLabels.REFUSE,
) -> ImageMatch:
    """Match by `file_name`: equal to the key or path, or one ends with the other at a slash.

    A key without an extension (as some archives have) is matched to the file name without its
    own. An exact match takes precedence over a partial one; backslashes count as slashes. An image
    of the ground truth that gives the id of a row (`archive_id`) is that row and no other.
    """
    images = list(images)
    index = PathIndex([image.file_name for image in images])
    by_id = {image.archive_id: n for n, image in enumerate(images) if image.archive_id}
    rows_by_id: dict[int, ImageRow] = {}
    rows_by_image: dict[int, list[ImageRow]] = defaultdict(list)
    undecided: list[str] = []
    match = ImageMatch(exif_labels)
    for row in rows:
        if row.image_id in by_id:
            rows_by_id[by_id[row.image_id]] = row
            continue
        candidates = index.find(row.path)
        if len(candidates) == 1:
            rows_by_image[candidates[0]].append(row)
        elif candidates:
            undecided.append(row.path)
        else:
            match.unknown += 1
    if len(rows_by_id) == len(images):  # so a name that could be several is none of them
        match.unknown += len(undecided)
    else:
        match.ambiguous += undecided
    for number, row in rows_by_id.items():
        match.unknown += len(rows_by_image.get(number, ()))
        rows_by_image[number] = [row]
    for number, image in enumerate(images):
        rows_of_image = rows_by_image.get(number, [])
        if len(rows_of_image) == 1:
            match.add(image, rows_of_image[0])
        elif rows_of_image:
            match.ambiguous.append(image.file_name)
        else:
            match.missing.append(image.file_name)
    return match


def match_categories(
    model_categories: Mapping[int, str], categories: Sequence[TruthCategory]
) -> tuple[dict[int, Id], bool]:
    """Match by name; by id where no name is in both.

    Of several classes of one name, that with the id of the model's class is taken.

    Args:
        model_categories: id -> name of the model's categories.
        categories: Of the ground truth.

    Returns:
        Category id of the model -> id in the ground truth, and whether the match is by id.

    Raises:
        UsageError: Neither names nor ids match, or a name is that of several classes.
    """
    by_name: dict[str, list[TruthCategory]] = defaultdict(list)
    for category in categories:
        by_name[_plain_name(category.name)].append(category)
    matched: dict[int, Id] = {}
    for id_, name in model_categories.items():
        candidates = by_name.get(_plain_name(name), [])
        exact = [c for c in candidates if c.name == name]
        same_id = [c for c in exact or candidates if c.id == id_]
        found = same_id or exact or candidates
        if len(found) > 1:
            raise UsageError(
                f"The class {shorten(name)} of the model could be {len(found)} classes of the "
                f"ground truth: {list_names([f'{c.name} (id {c.id})' for c in found])}.",
                "Give the classes of the ground truth names of their own.",
            )
        if found:
            matched[id_] = found[0].id
    if matched:
        return matched, False
    if set(model_categories) == {category.id for category in categories}:
        return {id_: id_ for id_ in model_categories}, True
    raise UsageError(
        f"No class of the model ({list_names(sorted(model_categories.values()))}) is a class of "
        f"the ground truth ({list_names(sorted(c.name for c in categories))}).",
        "Rename the categories of the ground truth to the names of the model.",
    )


def _plain_name(name: str) -> str:
    return name.strip().casefold()
