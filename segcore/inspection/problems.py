"""What checking an output finds: problems, each of a named kind, and the counts."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable
from dataclasses import asdict, dataclass, field
from typing import Any

from segcore.text import align_columns, join_counts, plural, printable

KINDS = {
    "alien_file": "a file that is no part in images/ or instances/, or beside compacted files",
    "altered_part": "a part's bytes are not those that segcore writes for its rows",
    "bad_compaction": "compacted files, or what says which units they hold, are damaged",
    "bad_edition": "edition.json is missing, unreadable or does not match its fingerprint",
    "bad_latest": "latest.json is unreadable or points to something that does not exist",
    "bad_plan": "the plan is missing or damaged",
    "bad_record": "a run record, or one in runs/history, is missing or damaged",
    "bad_rle": "a mask's RLE string cannot be decoded to its canvas",
    "duplicate_image": "an image has more than one row",
    "image_missing": "an image of the plan has no row in its part",
    "image_not_planned": "a part has a row for an image that is not in the plan",
    "missing_part": "a unit of the plan has no `images` part",
    "missing_instances": "a committed unit has no `instances` part",
    "orphan_instance": "instances of an image that has no row",
    "orphan_part": "an `instances` part without its `images` part",
    "bad_registered": "a list of the files that a table refers to is damaged",
    "older_part": "a newer generation of a part exists beside it",
    "report_differs": "the run record's counts differ from those of the parts",
    "unbalanced": "counts of images or instances do not agree",
    "unplanned_part": "a part of a unit that is neither in the plan nor unlisted",
    "unread_images": "a shard holds more images than were read from it",
    "unreadable_part": "a part cannot be read",
    "wrong_unlisted": "the list of unlisted images is damaged or contradicts the parts",
    "wrong_area": "an area is not the number of pixels of its mask",
    "wrong_box": "a box does not agree with its mask",
    "wrong_canvas": "a mask's canvas is not the size of its image",
    "wrong_image_row": "a row of `images` contradicts itself or the plan",
    "wrong_instance_row": "a row of `instances` contradicts the edition or the rows around it",
    "wrong_metadata": "a part's metadata contradicts its rows",
    "wrong_schema": "a part's columns are not those of the schema",
}
MAX_LISTED = 1000  # problems kept in full; all are counted


@dataclass(frozen=True)
class Problem:
    """One thing that is wrong.

    Attributes:
        kind: One word of a closed list, see `KINDS`.
        uri: The object it is about.
        message: One sentence for people.
        image_id: The image it is about, "" when it is not about a single image.
    """

    kind: str
    uri: str
    message: str
    image_id: str = ""


@dataclass
class Verification:
    """What was checked and what was found.

    Attributes:
        run: Of the newest run record; "" when there is none.
        images_unlisted: Images beside `images` whose results are kept though the input lacks them.
        warnings: Images by code of their warnings; these are no problems of the output.
        problems: At most `MAX_LISTED`, sorted by file; `counts` has them all.
        edition_notes: Sentences for people: whether the edition is published, for example.
        seconds: How long the checks took.
    """

    edition: str
    prefix: str
    run: str = ""
    units: int = 0
    images: int = 0
    ok: int = 0
    failed: int = 0
    instances: int = 0
    images_unlisted: int = 0
    warnings: Counter[str] = field(default_factory=Counter)
    counts: Counter[str] = field(default_factory=Counter)
    problems: list[Problem] = field(default_factory=list)
    edition_notes: list[str] = field(default_factory=list)
    seconds: float = 0.0

    @property
    def instances_per_second(self) -> float:
        """Instances checked in a second; 0 where it took no time."""
        return self.instances / self.seconds if self.seconds else 0.0

    @property
    def exit_code(self) -> int:
        """0 fine, 1 problems."""
        return 1 if self.counts else 0

    def add(self, problems: Iterable[Problem]) -> None:
        """Count problems and keep the first of them."""
        for problem in problems:
            assert problem.kind in KINDS, problem.kind
            self.counts[problem.kind] += 1
            if len(self.problems) < MAX_LISTED:
                self.problems.append(problem)

    def to_dict(self) -> dict[str, Any]:
        """Plain JSON values."""
        return asdict(self) | {
            "fine": not self.counts,
            "counts": dict(sorted(self.counts.items())),
            "seconds": round(self.seconds, 3),
            "instances_per_second": round(self.instances_per_second, 1),
        }

    def summary(self) -> str:
        """For people: what was checked, then each problem on a line."""
        total = sum(self.counts.values())
        images = f"{plural(self.images, 'image')} ({self.ok:,} ok, {self.failed:,} failed)"
        checked = (plural(self.units, "unit"), images, plural(self.instances, "instance"))
        rows = [
            ("edition", self.edition),
            ("checked", ", ".join(checked)),
            *self._unlisted_rows(),
            *([("warnings", join_counts(self.warnings))] if self.warnings else []),
            ("time", f"{self.seconds:,.1f} s, {self.instances_per_second:,.0f} instances/s"),
            ("result", plural(total, "problem") if total else "fine"),
        ]
        rows += [(f"  {number:,}", KINDS[kind]) for kind, number in sorted(self.counts.items())]
        lines = [align_columns(rows)]
        lines += [_problem_line(problem, self.prefix) for problem in self.problems]
        if total > len(self.problems):
            lines.append(f"... and {total - len(self.problems):,} more.")
        return "\n".join(lines)

    def _unlisted_rows(self) -> list[tuple[str, str]]:
        if not self.images_unlisted:
            return []
        return [("unlisted", f"{plural(self.images_unlisted, 'image')}, not counted above")]


def _problem_line(problem: Problem, prefix: str) -> str:
    file = problem.uri.removeprefix(prefix + "/")
    image = f" {problem.image_id}:" if problem.image_id else ""
    return printable(f"{problem.kind}: {file}:{image} {problem.message}")
