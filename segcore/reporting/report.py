"""A report on an edition: what is asked for, and the sections that answer it."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field

from segcore.comparison.compare import CompareOptions, Comparison, compare
from segcore.comparison.truth import TruthImages
from segcore.errors import SegcoreError
from segcore.evaluation.evaluate import evaluate
from segcore.evaluation.remarks import shorten
from segcore.output.image_rows import ImageRecord, describe_unread
from segcore.output.rankings import read_ranking
from segcore.output.results import Results
from segcore.output.run_records import RunRecord, read_run_records
from segcore.reporting.analysis import analysis_section, describe_image
from segcore.reporting.changes import changes_section, describe_changes, describe_errors
from segcore.reporting.contents import Contents, Group, read_contents
from segcore.reporting.gallery import FigureWriter, controls, read_gallery
from segcore.reporting.html import element, join
from segcore.reporting.page import Section, write_page
from segcore.reporting.sections import counts_section, run_section, scores_section
from segcore.storage import Storage
from segcore.text import plural

# Of the 10 MB of a file; what is around the sections takes some 20 kB.
_RUN_BYTES, _COUNTS_BYTES, _SCORES_BYTES, _CHANGES_BYTES = 300_000, 500_000, 400_000, 400_000
_ANALYSIS_BYTES = 400_000
_GALLERY_BYTES, _FIGURE_BYTES = 7_100_000, 6_600_000
_MAX_WHY_CHARS = 400
_HEADINGS: Mapping[Group, tuple[str, str]] = {
    Group.RANDOM: ("Random images", "Segmented images; the same seed gives the same ones."),
    Group.LEAST_CERTAIN: ("Least certain", "Those with the lowest mean score of their instances."),
    Group.CROWDED: ("Most crowded", "Those with most instances."),
    Group.LARGEST: ("Largest masks", "Those with a mask that covers most of the image."),
    Group.EMPTY: ("Nothing found", "Segmented images without an instance."),
    Group.FAILED: ("Failed", "Images without a result, and why."),
}


@dataclass(frozen=True)
class ReportOptions:
    """What is asked for.

    Attributes:
        ground_truth: URI of a COCO instances file to measure against; "" for none.
        against: An edition of the same output by its name, or another output or prefix of an
            edition, to compare with; "" for none.
        images: Most images of each group of the gallery.
        seed: Of the random images.
        ranking: Whose first images are shown; "" for none.
        price: Of an hour of all machines of the run, to tell what it cost; None to leave that out.
    """

    ground_truth: str = ""
    against: str = ""
    images: int = 8
    seed: int = 0
    include_unlisted: bool = False
    ranking: str = ""
    price: float | None = None


@dataclass(frozen=True)
class Report:
    """The file, and what it could not hold.

    Attributes:
        html: Its bytes.
        problems: Sentences about what is missing in it.
        remarks: Sentences about what is in it.
    """

    edition: str
    html: bytes
    problems: tuple[str, ...]
    section_bytes: Mapping[str, int]
    remarks: tuple[str, ...] = ()


@dataclass
class _Comparisons:
    """Sections that need more than the edition, and the images that they single out.

    Attributes:
        notes: Heading of a group -> image_id -> what is said of the image.
        explanations: Heading of a group -> what is said of all of them.
        remarks: Sentences for people about what is not as they may think.
        known: The known masks, if there are any.
    """

    sections: list[Section] = field(default_factory=list)
    notes: dict[str, dict[str, str]] = field(default_factory=dict)
    explanations: dict[str, str] = field(default_factory=dict)
    problems: list[str] = field(default_factory=list)
    remarks: list[str] = field(default_factory=list)
    known: TruthImages | None = None


def make_report(
    results: Results,
    options: ReportOptions = ReportOptions(),
    notify_progress: Callable[[int, int], None] = lambda done, units: None,
) -> Report:
    """Make the report on an edition.

    What cannot be read, such as an image that is gone or a ground truth that does not fit, is said
    in the report and in `Report.problems`; the rest goes on.

    Args:
        notify_progress: Called with the number of units that are read, and of all.

    Raises:
        SegcoreError: The output itself cannot be read.
    """
    compared = _compare(results, options)
    wanted = [image_id for notes in compared.notes.values() for image_id in notes]
    contents = read_contents(results, options.images, options.seed, wanted, notify_progress)
    problems = [*compared.problems, *describe_unread(contents.damaged_units, contents.n_damaged)]
    groups = _groups(contents, compared)
    records = [record for _, _, members, _ in groups for record in members]
    gallery = read_gallery(results, records, _FIGURE_BYTES, compared.known)
    problems += gallery.problems()
    writer = FigureWriter(gallery)
    figures = [writer.group(*group) for group in groups]
    pictures = join(element("p", _explain(compared), class_="note"), controls(gallery), *figures)
    run = run_section(results, _find_run(results), contents, problems, _RUN_BYTES,
                      options.price)  # fmt: skip
    sections = [
        Section("run", "The run", run, _RUN_BYTES),
        *compared.sections,
        Section("counts", "What was found", counts_section(contents, _COUNTS_BYTES), _COUNTS_BYTES),
        Section("gallery", "Images", pictures, _GALLERY_BYTES),
    ]
    n_images = contents.ok + contents.failed
    subtitle = f"{plural(n_images, 'image')}, {plural(contents.instances, 'instance')}"
    page = write_page(f"Report on {results.name}", subtitle, sections)
    sizes = {section.name: len(section.to_markup().encode()) for section in sections}
    return Report(results.name, page, tuple(problems), sizes, tuple(compared.remarks))


def _explain(compared: _Comparisons) -> str:
    """What is drawn over the images."""
    known = " Known masks are dashed lines." if compared.known else ""
    return (
        "Each colour is one mask, drawn along the edges of its pixels; its class and score are "
        f"told under the pointer.{known} Pictures are small copies; dark images are brightened. "
        "With JavaScript, they can be magnified and any lowest score be chosen."
    )


def _groups(
    contents: Contents, compared: _Comparisons
) -> list[tuple[str, str, Sequence[ImageRecord], Mapping[str, str]]]:
    """Heading, explanation, images and notes on them, of each group that has an image."""
    groups: list[tuple[str, str, Sequence[ImageRecord], Mapping[str, str]]] = []
    for heading, notes in compared.notes.items():
        members = [contents.records[name] for name in notes if name in contents.records]
        explanation = compared.explanations.get(heading, "Those with most differences first.")
        groups.append((heading, explanation, members, notes))
    for group, best in contents.groups.items():
        selected = best.selected()
        heading, explanation = _HEADINGS[group]
        if group in (Group.EMPTY, Group.FAILED):
            explanation += f" {plural(selected.n_matching, 'image')} in all."
        groups.append((heading, explanation, selected.records, {}))
    return [group for group in groups if group[2]]


def _find_run(results: Results) -> RunRecord | None:
    """The record of the run whose results are read, or else the newest one."""
    records = read_run_records(results.storage, results.layout)
    of_run = [record for record in records if record.run == results.run]
    newest = of_run or records
    return newest[-1] if newest else None


def _compare(results: Results, options: ReportOptions) -> _Comparisons:
    compared = _Comparisons()
    for step in _STEPS:
        try:
            step(compared, results, options)
        except SegcoreError as error:
            compared.problems.append(f"{_STEPS[step]} left out: {error.message} {error.hint}")
    return compared


def _add_scores(compared: _Comparisons, results: Results, options: ReportOptions) -> None:
    if options.ground_truth:
        report = evaluate(
            results.storage, results.prefix, options.ground_truth,
            allow_missing=True, include_unlisted=options.include_unlisted,
        )  # fmt: skip
        if report.not_in_output:
            compared.problems.append(
                f"{plural(report.not_in_output, 'image')} of the ground truth have no results: the "
                "scores leave them out."
            )
        content = scores_section(report, _SCORES_BYTES)
        compared.sections.append(Section("scores", "Scores", content, _SCORES_BYTES))
        closer = analysis_section(report, _ANALYSIS_BYTES)
        compared.sections.append(Section("analysis", "Closer look", closer, _ANALYSIS_BYTES))
        heading = "Worst images"
        compared.explanations[heading] = (
            "Those with most objects missed or invented, with detections from the best score of "
            "their class on."
        )
        compared.notes[heading] = {
            report.output_ids[one.image_id]: describe_image(one)
            for one in report.analysis.worst_images[: options.images]
        }


def _add_errors(compared: _Comparisons, results: Results, options: ReportOptions) -> None:
    if options.ground_truth:
        comparison = _compare_with(results.storage, options.ground_truth, results, options)
        compared.known = comparison.known
        worst = comparison.totals.most_changed()[: options.images]
        compared.notes["Most errors"] = {
            image.image_id: describe_errors(image.changes) for image in worst
        }
        content = changes_section(comparison, "known masks", _CHANGES_BYTES)
        compared.sections.append(Section("errors", "Errors", content, _CHANGES_BYTES))
        _note_damage(compared, comparison)


def _add_changes(compared: _Comparisons, results: Results, options: ReportOptions) -> None:
    if options.against:
        against = options.against
        if "/" not in against:
            against = results.layout.output.edition(against).prefix
        comparison = _compare_with(results.storage, against, results, options)
        changed = comparison.totals.most_changed()[: options.images]
        compared.notes["Most changed"] = {
            image.image_id: describe_changes(image.changes) for image in changed
        }
        content = changes_section(comparison, "the other edition", _CHANGES_BYTES)
        compared.sections.append(Section("changes", "What changed", content, _CHANGES_BYTES))
        _note_damage(compared, comparison)


def _add_ranking(compared: _Comparisons, results: Results, options: ReportOptions) -> None:
    if options.ranking:
        ranking = read_ranking(results, options.ranking)
        first = ranking.rows.slice(0, options.images)
        reasons = zip(first["image_id"].to_pylist(), first["why"].to_pylist(), strict=True)
        heading = f"First of the ranking {ranking.name}"
        remark = ranking.remark(results)
        compared.notes[heading] = {one: shorten(why, _MAX_WHY_CHARS) for one, why in reasons}
        compared.explanations[heading] = remark or "What `segcore rank` put first, and why."
        compared.remarks += filter(None, [remark])


_STEPS = {
    _add_ranking: "The ranking",
    _add_scores: "Scores",
    _add_errors: "Errors",
    _add_changes: "What changed:",
}


def _compare_with(
    storage: Storage, first: str, results: Results, options: ReportOptions
) -> Comparison:
    limits = CompareOptions(include_unlisted=options.include_unlisted)
    return compare(storage, first, results.prefix, limits)


def _note_damage(compared: _Comparisons, comparison: Comparison) -> None:
    if n := len(comparison.damaged_units):
        compared.problems.append(f"{plural(n, 'unit')} could not be compared.")
