"""What checking an output finds: problems, each of a named kind, and the counts."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable
from dataclasses import asdict, dataclass, field
from typing import Any

from segcore.text import align_columns

KINDS = {
    "alien_file": "a file among the parts that is none",
    "altered_part": "bytes are not those that its rows give",
    "bad_edition": "edition.json is missing, unreadable or does not match its fingerprint",
    "bad_latest": "latest.json points to what is not there or not complete",
    "bad_plan": "the plan is missing or damaged",
    "bad_record": "a run record is missing or damaged",
    "bad_rle": "a mask does not decode to its canvas",
    "duplicate_image": "an image has more than one row",
    "image_missing": "the plan names an image that its part lacks",
    "image_not_planned": "a part has an image that the plan does not name",
    "missing_part": "a unit of the plan has no `images` part",
    "missing_instances": "a committed unit has no `instances` part",
    "orphan_instance": "instances of an image that has no row",
    "orphan_part": "an `instances` part without its `images` part",
    "report_differs": "the run's record states other counts than the parts hold",
    "unbalanced": "counts of images or instances that do not agree",
    "unplanned_part": "a part of a unit that the plan does not hold",
    "unreadable_part": "a part cannot be read",
    "wrong_area": "area is not that of the mask",
    "wrong_box": "box and mask do not agree",
    "wrong_canvas": "a mask has another canvas than its image",
    "wrong_image_row": "a row of `images` contradicts itself",
    "wrong_instance_row": "a row of `instances` contradicts the edition or its neighbours",
    "wrong_metadata": "a part's metadata contradicts its rows",
    "wrong_schema": "columns are not those of the schema",
}
MAX_LISTED = 1000  # problems kept in full; all are counted


@dataclass(frozen=True)
class Problem:
    """One thing that is wrong.

    Attributes:
        kind: One word of a closed list, see `KINDS`.
        uri: The object it is about.
        message: One sentence for people.
        image_id: The image it is about, "" when it is about more.
    """

    kind: str
    uri: str
    message: str
    image_id: str = ""


@dataclass
class Verification:
    """What was looked at and what was found.

    Attributes:
        run: Of the newest run record; "" when there is none.
        problems: At most `MAX_LISTED`, sorted by file; `counts` has them all.
    """

    edition: str
    prefix: str
    run: str = ""
    units: int = 0
    images: int = 0
    ok: int = 0
    failed: int = 0
    instances: int = 0
    counts: Counter[str] = field(default_factory=Counter)
    problems: list[Problem] = field(default_factory=list)

    @property
    def exit_code(self) -> int:
        """0 fine, 1 problems."""
        return 1 if self.counts else 0

    def note(self, problems: Iterable[Problem]) -> None:
        """Count problems and keep the first of them."""
        for problem in problems:
            assert problem.kind in KINDS, problem.kind
            self.counts[problem.kind] += 1
            if len(self.problems) < MAX_LISTED:
                self.problems.append(problem)

    def to_dict(self) -> dict[str, Any]:
        """Plain JSON values."""
        return asdict(self) | {"fine": not self.counts, "counts": dict(sorted(self.counts.items()))}

    def summary(self) -> str:
        """For people: what was checked, then each problem on a line."""
        total = sum(self.counts.values())
        rows = [
            ("edition", self.edition),
            ("checked", f"{self.units:,} units, {self.images:,} images "
             f"({self.ok:,} ok, {self.failed:,} failed), {self.instances:,} instances"),
            ("result", f"{total:,} problems" if total else "fine"),
        ]  # fmt: skip
        rows += [(f"  {number:,}", KINDS[kind]) for kind, number in sorted(self.counts.items())]
        lines = [align_columns(rows)]
        lines += [_line(problem, self.prefix) for problem in self.problems]
        if total > len(self.problems):
            lines.append(f"... and {total - len(self.problems):,} more.")
        return "\n".join(lines)


def _line(problem: Problem, prefix: str) -> str:
    where = problem.uri.removeprefix(prefix + "/")
    about = f" {problem.image_id}:" if problem.image_id else ""
    return f"{problem.kind}: {where}:{about} {problem.message}"
