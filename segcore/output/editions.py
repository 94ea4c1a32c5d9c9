"""Which edition of an output a reader takes: the published one, the newest, or the one named."""

from __future__ import annotations

from dataclasses import dataclass

from segcore.errors import DamagedOutput, ObjectNotFound, StorageError, UsageError
from segcore.output.latest import read_latest, read_published
from segcore.output.layout import EditionLayout, OutputLayout
from segcore.storage import Storage, normalize


@dataclass(frozen=True)
class EditionChoice:
    """The edition that a reader takes, and what a person should know about the choice.

    Attributes:
        layout: Where its files lie.
        published: The edition that ``latest.json`` names; "" if nothing is published; None if that
            cannot be read.
        newer: An edition with a newer run that is not published; "" if there is none, or if a
            person chose the edition.
    """

    layout: EditionLayout
    published: str | None = None
    newer: str = ""

    def sentences(self) -> list[str]:
        """The choice for people."""
        name = self.layout.name
        if self.published == name:
            sentences = [f"Edition {name}, which is published."]
        elif self.published:
            sentences = [f"Edition {name}, which is not published: {self.published} is."]
        elif self.published is None:
            sentences = [f"Edition {name}."]
        else:
            sentences = [f"Edition {name}; nothing is published."]
        if self.newer:
            sentences.append(
                f"A newer edition, {self.newer}, is not published; "
                f"--edition {self.newer} chooses it."
            )
        return sentences


def choose_edition(
    storage: Storage, output: str, edition: str | None = None, *, newest: bool = False
) -> EditionChoice:
    """The edition to look at.

    Args:
        output: What a run was given as output, or the prefix of one edition in it.
        edition: Name of the edition; default the one that ``latest.json`` points to, else the
            only one.
        newest: By default take the one whose run record was written last, published or not.

    Raises:
        UsageError: There is no output, no such edition, or there are several and none was chosen.
    """
    uri = normalize(output)
    if edition is not None:
        return _chosen(storage, _edition_by_name(storage, OutputLayout(uri), edition))
    if storage.exists(EditionLayout(uri).edition_json):
        return _chosen(storage, EditionLayout(uri))
    return _choose_by_default(storage, OutputLayout(uri), newest)


def newest_edition(storage: Storage, output: OutputLayout, *, without: str = "") -> str:
    """The edition whose run record was written last; "" when there is none.

    Args:
        without: An edition that does not count.
    """
    dated = _dated_editions(storage, output)
    dated.pop(without, None)
    return _newest(dated)


def edition_layouts(storage: Storage, output: OutputLayout) -> list[EditionLayout]:
    """The editions of an output, by name."""
    layouts = _edition_folders(storage, output)
    return [layout for layout in layouts if storage.exists(layout.edition_json)]


def require_editions(storage: Storage, output: OutputLayout) -> list[EditionLayout]:
    """As `edition_layouts`.

    Raises:
        UsageError: There is no edition.
    """
    layouts = edition_layouts(storage, output)
    if not layouts:
        raise _no_output(output)
    return layouts


def _chosen(storage: Storage, layout: EditionLayout) -> EditionChoice:
    """An edition that a person named. Only its own folder need be readable."""
    try:
        return EditionChoice(layout, read_published(storage, layout.output).edition)
    except (StorageError, UsageError):  # UsageError: the prefix is a whole bucket
        return EditionChoice(layout)


def _choose_by_default(storage: Storage, output: OutputLayout, newest: bool) -> EditionChoice:
    dated = _dated_editions(storage, output)
    newest_name = _newest(dated)
    published = read_published(storage, output).edition
    if newest and newest_name:
        return EditionChoice(output.edition(newest_name), published)
    # An edition that is published was found to exist; what else latest.json says has its own error.
    layout = output.edition(published) if published else _published_or_only_edition(storage, output)
    is_newer = newest_name and dated[newest_name] > dated.get(layout.name, 0.0)
    return EditionChoice(layout, published, newest_name if is_newer else "")


def _edition_by_name(storage: Storage, output: OutputLayout, name: str) -> EditionLayout:
    layout = output.edition(name)
    if storage.exists(layout.edition_json):
        return layout
    raise UsageError(
        f"{output.uri} has no edition {name}.", _describe_editions(_editions(storage, output))
    )


def _newest(dated: dict[str, float]) -> str:
    """The edition with the newest run record; "" when there is none."""
    return max(dated, key=lambda name: (dated[name], name), default="")


def _dated_editions(storage: Storage, output: OutputLayout) -> dict[str, float]:
    """When a run record of each edition was last written; editions without one are left out."""
    dated = {}
    for layout in _edition_folders(storage, output):
        times = [changed for _, changed in storage.list_folder(layout.runs_folder)]
        if times:
            dated[layout.name] = max(times)
    return dated


def _published_or_only_edition(storage: Storage, output: OutputLayout) -> EditionLayout:
    try:
        latest = read_latest(storage, output)
    except ObjectNotFound:
        editions = _editions(storage, output)
        if len(editions) == 1:
            return output.edition(editions[0])
        if editions:
            raise UsageError(
                f"{output.uri} holds {len(editions)} editions, and none of them is published.",
                f"Choose one with --edition. {_describe_editions(editions)}",
            ) from None
        raise _no_output(output) from None
    if not isinstance(latest.get("edition"), str):
        raise DamagedOutput(
            f"{output.latest_json} does not name an edition.", "Choose one with --edition."
        )
    layout = output.edition(latest["edition"])
    if not storage.exists(layout.edition_json):
        raise DamagedOutput(
            f"{output.latest_json} names the edition {layout.name}, which does not exist.",
            f"Choose one with --edition. {_describe_editions(_editions(storage, output))}",
        )
    return layout


def _edition_folders(storage: Storage, output: OutputLayout) -> list[EditionLayout]:
    return [EditionLayout(uri) for uri in storage.folders(output.uri)]


def _no_output(output: OutputLayout) -> UsageError:
    return UsageError(
        f"{output.uri} is not the output of a run: it holds no edition.",
        "Give the folder or URI that was the OUTPUT of `segcore segment`.",
    )


def _editions(storage: Storage, output: OutputLayout) -> list[str]:
    """Names of the editions of an output."""
    return [layout.name for layout in edition_layouts(storage, output)]


def _describe_editions(editions: list[str]) -> str:
    return f"Its editions: {', '.join(editions)}." if editions else "It has no editions."
