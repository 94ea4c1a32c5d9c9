"""The section about what differs from another edition, or from known masks."""

from __future__ import annotations

from collections.abc import Mapping

from segcore.comparison.compare import Comparison
from segcore.comparison.matching import Change
from segcore.evaluation.remarks import shorten
from segcore.reporting.charts import share, table, table_within
from segcore.reporting.html import Content, Markup, element, join
from segcore.text import plural, redact_link

_MAX_NOTES, _MAX_NOTE_CHARS = 30, 300
_ERRORS = {
    Change.SAME: "found",
    Change.MOVED: "found, but not exactly",
    Change.RELABELLED: "found as another class",
    Change.VANISHED: "missed",
    Change.APPEARED: "extra",
}


def describe_changes(changes: Mapping[str, int]) -> str:
    """What changed in an image: ``2 vanished, 1 moved``."""
    words = [
        f"{changes[c.word]:,} {c.word}" for c in Change if c != Change.SAME and changes[c.word]
    ]
    return ", ".join(words)


def describe_errors(changes: Mapping[str, int]) -> str:
    """The same of an image whose masks are known: ``2 missed, 1 extra``."""
    counts = ((changes[c.word], text) for c, text in _ERRORS.items() if c != Change.SAME)
    return ", ".join(f"{count:,} {text}" for count, text in counts if count)


def changes_section(comparison: Comparison, other: str, max_bytes: int) -> Markup:
    """What differs between A, the other side, and B, the edition of the report.

    Args:
        other: What A is, for people.
    """
    totals = comparison.totals
    is_truth = other == "known masks"
    document = totals.to_dict()
    texts = [_ERRORS[change] if is_truth else change.word for change in Change]
    intro = (
        f"Against {other}: {redact_link(comparison.first)}. {plural(totals.images, 'image')} "
        f"compared, {totals.changed_images:,} of them with a difference. Masks are matched one to "
        f"one from an IoU of {comparison.limits.match_iou:g} on, and are the same from "
        f"{comparison.limits.same_iou:g} on."
    )
    rows = [(text, f"{document['changes'][change.word]:,}",
             share(document["changes"][change.word], totals.n_instances))
            for change, text in zip(Change, texts, strict=True)]  # fmt: skip
    by_class = sorted(
        document["by_category"].items(), key=lambda item: (-sum(item[1].values()), item[0])
    )
    bands = [
        ("no score" if row["from"] is None else f"{row['from']:.1f} to {row['from'] + 0.1:.1f}",
         row)
        for row in document["by_score"]
    ]  # fmt: skip
    room = max_bytes // 4
    parts: list[Content] = [
        element("p", intro),
        table("All objects", ("outcome", "objects", "share"), rows),
        table_within("By class", ("class", *texts), _rows(by_class), room),
    ]
    if not is_truth:
        parts.append(table_within("By score", ("score", *texts), _rows(bands), room))
    if totals.relabelled:
        pairs = [
            (shorten(before), shorten(after), f"{n:,}")
            for (before, after), n in totals.relabelled.most_common(50)
        ]
        headings = ("known as", "found as", "objects") if is_truth else ("was", "is", "objects")
        n_more = len(totals.relabelled) - len(pairs)
        parts.append(table_within("Other classes", headings, pairs, room, n_more=n_more))
    describe = describe_errors if is_truth else describe_changes
    images = [
        (shorten(image.image_id, 200), describe(image.changes)) for image in totals.most_changed()
    ]
    if images:
        caption = "Images with most differences"
        whole = table_within(caption, ("image", "differences"), images, room // 2)
        parts.append(element("details", element("summary", caption), whole))
    notes = (shorten(text, _MAX_NOTE_CHARS) for text in comparison.notes[:_MAX_NOTES])
    parts += [element("p", text, class_="note") for text in notes]
    return join(*parts)


def _rows(counts: list[tuple[str, dict[str, int]]]) -> list[list[Content]]:
    return [
        [shorten(name), *(f"{of_name[change.word]:,}" for change in Change)]
        for name, of_name in counts
    ]
