"""From images to the files of an annotation tool: segment, then export, both resumable."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from segcore.config.exports import PrelabelConfig
from segcore.config.schema import Config
from segcore.errors import UsageError
from segcore.exit_codes import ExitCode
from segcore.exports.export import export
from segcore.exports.pictures import check_destination
from segcore.exports.selection import read_image_list
from segcore.exports.state import DestLayout
from segcore.exports.summary import ExportSummary
from segcore.exports.tool_labels import read_tool_labels
from segcore.output.layout import EditionLayout
from segcore.output.rankings import find_ranking
from segcore.output.report import RunReport
from segcore.output.results import Results, open_results
from segcore.ranking.methods import STRATA, RankBy
from segcore.ranking.rank import RankOptions, rank
from segcore.run.history import log_and_tell
from segcore.run.segment import segment
from segcore.storage import Storage, normalize
from segcore.text import plural


@dataclass(frozen=True)
class PrelabelReport:
    """What a prelabel job did.

    Attributes:
        export: None where the run has no results to export.
    """

    run: RunReport
    export: ExportSummary | None

    @property
    def exit_code(self) -> int:
        """That of the run: images that failed are left out of the export."""
        return self.run.exit_code

    def to_dict(self) -> dict[str, Any]:
        """Plain dict for JSON."""
        exported = self.export.to_dict() if self.export else None
        return {"run": self.run.to_dict(), "export": exported}

    def text(self) -> str:
        """The report for people."""
        return "\n\n".join([self.run.summary(), *([self.export.text()] if self.export else [])])


def default_output(dest: str) -> str:
    """Where the tables lie if nobody says: beside DEST, which holds the tool's files alone."""
    return f"{normalize(dest)}-masks"


def prelabel(
    config: PrelabelConfig, *, notify: Callable[[str], None] = lambda text: None
) -> PrelabelReport:
    """Segment `config.input` into `config.output` and export that to `config.dest`.

    An edition that the run did not finish is not exported.

    Raises:
        UsageError: The configuration is wrong.
        SegcoreError: One of the two broke off; call it again to continue.
    """
    if config.dest is None:
        raise UsageError("DEST is missing.", "Usage: segcore prelabel INPUT DEST")
    layout = DestLayout(normalize(config.dest))
    check_destination(config.export, layout)
    storage = Storage(config.storage)
    read_tool_labels(storage, config.export)  # what is wrong with these files is said at once
    read_image_list(storage, config.export)
    values = {name: getattr(config, name) for name in Config.model_fields}
    values["output"] = config.output or default_output(config.dest)
    report = segment(Config(**values), notify=notify)
    if report.exit_code not in (ExitCode.DONE, ExitCode.TOO_MANY_FAILED) or not report.ok:
        return PrelabelReport(report, None)
    tell = log_and_tell(notify)
    edition = EditionLayout(report.prefix).name
    results = open_results(storage, values["output"], edition)
    if config.export.ranking:
        _make_ranking(results, config.export.ranking, tell)
    summary = export(results, config.dest, config.export, tell)
    return PrelabelReport(report, summary)


def _make_ranking(results: Results, name: str, notify: Callable[[str], None]) -> None:
    """Rank the images, where the name is a way to rank and there is no ranking of this state."""
    if name not in list(RankBy):
        return
    there = find_ranking(results.storage, results.layout, name)
    if there is None or (there.options.get("by") == name and there.remark(results)):
        options = there.options if there else {}
        made = rank(
            results,
            RankOptions(
                RankBy(name),
                limit=options.get("limit"),
                seed=options.get("seed", 0),
                strata=tuple(options.get("strata") or STRATA),
            ),
        )
        notify(f"Ranked {plural(made.ranking.rows.num_rows, 'image')}: {made.ranking.uri}")
