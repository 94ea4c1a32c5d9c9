"""What was not read, or was read otherwise than written, counted by name and said in words."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping

from segcore.sources import other_images_hint
from segcore.text import plural, printable

# Notes of parts. The names are in docs/output.md, too.
_MEANINGS = {
    "ignored_members": ("member of a tar that is no image", "members of tars that are no images"),
    "duplicate_names": (
        "key that occurred before in its shard, renamed to ~2, ~3, ...",
        "keys that occurred before in their shard, renamed to ~2, ~3, ...",
    ),
    "samples_with_several_images": (
        "sample with several images, perhaps masks; see source.suffixes",
        "samples with several images, perhaps masks; see source.suffixes",
    ),
    "inner_archives": ("tar inside a tar, read as well", "tars inside tars, read as well"),
    "bytes_behind_end_mark": (
        "byte behind the end of a tar, not read",
        "bytes behind the end of tars, not read",
    ),
    "rows_without_images": ("row of Parquet without images", "rows of Parquet without images"),
    "pages_left_out": ("page of a TIFF, not read", "pages of TIFFs, not read"),
    "frames_left_out": ("frame of an animation, not read", "frames of animations, not read"),
}
_MAX_KINDS = 200  # in a report: names come from archives, and a report must stay small
_MAX_SHOWN_LINES = 20
_MAX_SHOWN_DETAILS = 8
_OTHER = "other"
_IGNORED = "ignored_members."


def bound_kinds(notes: Mapping[str, int]) -> dict[str, int]:
    """The notes with at most 200 names, sorted; the rarest are added up as ``<name>.other``.

    ``ignored_members.json`` is a detail of ``ignored_members``, for example.
    """
    if len(notes) <= _MAX_KINDS:
        return dict(sorted(notes.items()))
    ordered = sorted(notes, key=lambda name: ("." in name, -notes[name], name))
    bounded: Counter[str] = Counter({name: notes[name] for name in ordered[: _MAX_KINDS // 2]})
    for name in ordered[_MAX_KINDS // 2 :]:
        topic = name.partition(".")[0]
        is_known = f"{topic}.{_OTHER}" in bounded or len(bounded) < _MAX_KINDS
        bounded[f"{topic if is_known else _OTHER}.{_OTHER}"] += notes[name]
    return dict(sorted(bounded.items()))


def describe_left_out(notes: Mapping[str, int]) -> list[str]:
    """One line for each note, with its details: ``12 members of tars ... (json 8, txt 4)``.

    The last says how to read the members that are images of kinds left out by default.
    """
    topics = {name: count for name, count in notes.items() if "." not in name}
    for name in notes:
        topics.setdefault(name.partition(".")[0], 0)
    lines = [_describe(topic, count, notes) for topic, count in sorted(topics.items())]
    if len(lines) > _MAX_SHOWN_LINES:
        n_more = len(lines) - _MAX_SHOWN_LINES
        lines[_MAX_SHOWN_LINES:] = [f"and {plural(n_more, 'more kind')}; the report has them all"]
    ignored = {name.partition(".")[2]: n for name, n in notes.items() if name.startswith(_IGNORED)}
    return lines + other_images_hint(ignored)


def _describe(topic: str, count: int, notes: Mapping[str, int]) -> str:
    details = {
        name.partition(".")[2]: number
        for name, number in notes.items()
        if name.startswith(f"{topic}.")
    }
    count = count or sum(details.values())
    one, many = _MEANINGS.get(topic, (topic, topic))
    text = f"{count:,} {one if count == 1 else many}"
    ordered = sorted(details, key=lambda name: (-details[name], name))
    shown = [f"{name} {details[name]:,}" for name in ordered[:_MAX_SHOWN_DETAILS]]
    if n_more := sum(details[name] for name in ordered[_MAX_SHOWN_DETAILS:]):
        shown.append(f"others {n_more:,}")
    return printable(f"{text} ({', '.join(shown)})" if shown else text)
