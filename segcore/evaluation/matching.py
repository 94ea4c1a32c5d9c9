"""Which images and classes of an output are which of the ground truth."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from segcore.errors import UsageError
from segcore.text import plural

_MAX_NAMES = 5  # listed in an error


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
    """

    image_ids: dict[str, int] = field(default_factory=dict)
    failed: int = 0
    unknown: int = 0
    missing: list[str] = field(default_factory=list)
    ambiguous: list[str] = field(default_factory=list)
    other_size: list[str] = field(default_factory=list)

    def add(self, image: Mapping[str, Any], row: ImageRow) -> None:
        """Record that `row` is `image` of the ground truth."""
        self.image_ids[row.image_id] = int(image["id"])
        self.failed += row.failed
        width, height = int(image["width"]), int(image["height"])
        if not row.failed and (row.width, row.height) != (width, height):
            self.other_size.append(
                f"{row.path} is {row.width} x {row.height} pixels, "
                f"not {width} x {height} (width x height)"
            )

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
                f"{output} and {ground_truth}: {_list_names(self.ambiguous)}.",
                "Give file_name in the ground truth enough folders to be unique.",
            )
        if self.other_size:
            raise UsageError(
                f"The size of {plural(len(self.other_size), 'image')} differs from the ground "
                f"truth: {self.other_size[0]}.",
                "Sizes are those after EXIF orientation; is this the ground truth of this archive?",
            )
        if self.missing and not (allow_missing and self.image_ids):
            raise UsageError(
                f"{output} lacks {plural(len(self.missing), 'image')} of {ground_truth}: "
                f"{_list_names(self.missing)}.",
                "Finish the run first, or leave these images out with --allow-missing.",
            )
        facts = (
            (len(self.missing), "of the ground truth not in the output: left out of the scores"),
            (self.failed, "failed in the run: counted as undetected"),
            (self.unknown, "of the output not in the ground truth: left out of the scores"),
        )
        return [f"{plural(count, 'image')} {what}." for count, what in facts if count]


def match_images(rows: Iterable[ImageRow], images: Sequence[Mapping[str, Any]]) -> ImageMatch:
    """Match by `file_name`: equal to the key or path, or one ends with the other at a slash.

    A key without an extension (as some archives have) is matched to the file name without its
    own. An exact match takes precedence over a partial one.
    """
    by_name: dict[str, list[Mapping[str, Any]]] = defaultdict(list)
    for image in images:
        name = _path_parts(str(image["file_name"]))[-1]
        for key in {name, name.rpartition(".")[0] or name}:
            by_name[key].append(image)
    rows_by_image: dict[int, list[ImageRow]] = defaultdict(list)
    match = ImageMatch()
    for row in rows:
        candidates = _candidates(row.path, by_name)
        if len(candidates) == 1:
            rows_by_image[int(candidates[0]["id"])].append(row)
        elif candidates:
            match.ambiguous.append(row.path)
        else:
            match.unknown += 1
    for image in images:
        rows_of_image = rows_by_image.get(int(image["id"]), [])
        if len(rows_of_image) == 1:
            match.add(image, rows_of_image[0])
        elif rows_of_image:
            match.ambiguous.append(str(image["file_name"]))
        else:
            match.missing.append(str(image["file_name"]))
    return match


def _candidates(
    path: str, by_name: Mapping[str, list[Mapping[str, Any]]]
) -> list[Mapping[str, Any]]:
    """Images of the ground truth that an output image could be."""
    parts = _path_parts(path)
    exact, partial = [], []
    for image in by_name.get(parts[-1], []):
        name = _path_parts(str(image["file_name"]))
        name[-1] = parts[-1]  # the same, or the same without its extension
        n_common = min(len(name), len(parts))
        if name == parts:
            exact.append(image)
        elif name[-n_common:] == parts[-n_common:]:
            partial.append(image)
    return exact or partial


def _path_parts(path: str) -> list[str]:
    return [part for part in path.split("/") if part not in ("", ".")] or [path]


def match_categories(
    model_categories: Mapping[int, str], categories: Sequence[Mapping[str, Any]]
) -> tuple[dict[int, int], bool]:
    """Match by name; by id where no name is in both.

    Args:
        model_categories: id -> name of the model's categories.
        categories: Of the ground truth.

    Returns:
        Category id of the model -> id in the ground truth, and whether the match is by id.

    Raises:
        UsageError: Neither names nor ids match.
    """
    ids = {str(c["name"]).strip().casefold(): int(c["id"]) for c in categories}
    by_name = {
        id_: ids[name.strip().casefold()]
        for id_, name in model_categories.items()
        if name.strip().casefold() in ids
    }
    if by_name:
        return by_name, False
    if set(model_categories) == set(ids.values()):
        return {id_: id_ for id_ in model_categories}, True
    raise UsageError(
        f"No class of the model ({_list_names(sorted(model_categories.values()))}) is a class of "
        f"the ground truth ({_list_names(sorted(str(c['name']) for c in categories))}).",
        "Rename the categories of the ground truth to the names of the model.",
    )


def _list_names(names: Sequence[str]) -> str:
    n_more = len(names) - _MAX_NAMES
    return ", ".join(names[:_MAX_NAMES]) + (f" and {n_more:,} more" if n_more > 0 else "")
