"""segcore demo: draw an archive with known masks, segment it, measure, and show."""

from __future__ import annotations

import json
import os
import shlex
import shutil
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from segcore.cli.console import notify

if TYPE_CHECKING:
    from segcore.config import Config
    from segcore.evaluation.evaluate import EvaluationReport
    from segcore.output.report import RunReport
    from segcore.output.results import Results
    from segcore.storage import Storage
    from segcore.testing.synthetic_archive import SyntheticArchive

# What the bundled model must reach on the demo's images; a worse number means something broke.
AP50_FLOOR = 0.80
_BUCKET = "segcore-demo"
_TILES = 12
_BROKEN_SHARE = 0.0175  # seven of 400: one of each kind
_MARK = "segcore-demo.json"  # what says that a folder is ours to write in again

EPILOG = """
[bold]Examples[/bold]

  segcore demo

  segcore demo --images 100 --out /tmp/demo

  segcore demo --s3

Exit code 1 when the rows do not match what was broken on purpose, or the masks are worse than
they should be.
"""


def command(
    out: Annotated[Path, typer.Option(help="Folder for everything the demo makes.")] = Path(
        "demo-output"
    ),
    images: Annotated[int, typer.Option(min=1, max=100_000, help="Images to draw.")] = 400,
    model: Annotated[
        str | None,
        typer.Option(help="Bundled name or checkpoint path. [nuclei-yolo11n]", show_default=False),
    ] = None,
    s3: Annotated[
        bool,
        typer.Option("--s3", help="Archive and tables on an S3 server, started on loopback."),
    ] = False,
    as_json: Annotated[bool, typer.Option("--json", help="One JSON document on stdout.")] = False,
) -> None:
    """Draw microscopy images with known masks, segment them, and measure the masks found.

    Makes an archive of tar shards, a few members broken on purpose; runs the whole pipeline on it
    with the bundled model; checks that every image is accounted for; and leaves tables, the truth
    and a contact sheet in OUT.
    """
    _claim(out)
    if s3:
        with _own_s3(out) as base:
            outcome = recipe(Recipe(out, base, images, model), notify)
            _copy_tables(outcome, base, out)
    else:
        outcome = recipe(Recipe(out, str(out.absolute()), images, model), notify)
    print(json.dumps(outcome.to_dict(), indent=2)) if as_json else show(outcome)
    problems = outcome.problems()
    notify(*(f"Error: {problem}" for problem in problems))
    sys.exit(1 if problems else 0)


@dataclass(frozen=True)
class Recipe:
    """What to do.

    Attributes:
        out: Local folder for the contact sheet.
        base: Folder or prefix for archive and tables, local or s3://.
        model: None for the bundled one.
    """

    out: Path
    base: str
    images: int
    model: str | None = None
    ap50_floor: float = AP50_FLOOR


@dataclass
class Outcome:
    """What came of it.

    Attributes:
        tables: Local folder or URI with `images` and `instances` of the edition.
        unexpected: Sentences on rows that are not what the archive must give.
        seconds: Of each step.
    """

    archive: SyntheticArchive
    report: RunReport
    evaluation: EvaluationReport
    contact_sheet: Path
    tables: str
    ap50_floor: float
    unexpected: list[str] = field(default_factory=list)
    seconds: dict[str, float] = field(default_factory=dict)

    def problems(self) -> list[str]:
        """Why the demo failed; nothing when it did not."""
        found = list(self.unexpected)
        ap50 = self.evaluation.scores.mask.ap50
        if not ap50 >= self.ap50_floor:
            found.append(f"mask AP50 is {ap50:.3f}; at least {self.ap50_floor:.2f} is expected.")
        return found

    def to_dict(self) -> dict[str, Any]:
        """Plain JSON values."""
        return {
            "ok": not self.problems(),
            "problems": self.problems(),
            "archive": asdict(self.archive),
            "run": self.report.to_dict(),
            "evaluation": self.evaluation.to_dict(),
            "ap50_floor": self.ap50_floor,
            "tables": self.tables,
            "contact_sheet": str(self.contact_sheet),
            "seconds": self.seconds,
        }


def recipe(
    todo: Recipe,
    notify: Callable[[str], None] = notify,
    segment: Callable[[Config], RunReport] | None = None,
) -> Outcome:
    """The demo without the words: draw, segment, check, measure, picture.

    Args:
        segment: Stands in for `segcore.run.segment.segment` in tests.

    Raises:
        SegcoreError: A step could not be done at all.
    """
    from segcore.evaluation.evaluate import evaluate
    from segcore.output.results import open_results
    from segcore.storage import Storage, join
    from segcore.testing.synthetic_archive import write_archive

    storage, seconds = Storage(), _Clock()
    notify(f"Drawing {todo.images:,} images of nuclei with known masks ...")
    broken = round(todo.images * _BROKEN_SHARE)
    archive = write_archive(storage, join(todo.base, "archive"), todo.images, broken)
    seconds.lap("draw")
    notify(f"Segmenting {archive.shards} ...")
    report = (segment or _segment)(_config(todo, archive))
    seconds.lap("segment")
    notify("Comparing with the known masks ...")
    results = open_results(storage, report.output, report.edition)
    unexpected = check(archive, results.images(["image_id", "status", "error_code"]))
    evaluation = evaluate(storage, report.output, archive.ground_truth, report.edition)
    seconds.lap("evaluate")
    sheet = todo.out / "contact-sheet.png"
    sheet.write_bytes(_sheet(results, archive))
    seconds.lap("draw_sheet")
    return Outcome(
        archive=archive,
        report=report,
        evaluation=evaluation,
        contact_sheet=sheet,
        tables=report.prefix,
        ap50_floor=todo.ap50_floor,
        unexpected=unexpected,
        seconds=seconds.laps,
    )


class _Clock:
    def __init__(self) -> None:
        self.laps: dict[str, float] = {}
        self._last = time.monotonic()

    def lap(self, name: str) -> None:
        now = time.monotonic()
        self.laps[name], self._last = round(now - self._last, 2), now


def _config(todo: Recipe, archive: SyntheticArchive) -> Config:
    from segcore.config import load_config
    from segcore.storage import join

    flags = {
        "INPUT": ("input", archive.shards),
        "OUTPUT": ("output", join(todo.base, "masks")),
        "--model": ("model.name", todo.model),
        # images broken on purpose are no reason to call the run a failure
        "demo": ("run.max_failed_fraction", 0.05),
    }
    return load_config(flags=flags)


def _segment(config: Config) -> RunReport:
    from segcore.run.segment import segment

    return segment(config, overwrite=True, notify=notify)


def check(archive: SyntheticArchive, tables: Iterator[Any]) -> list[str]:
    """Rows of the `images` table against what was written: sentences on every difference.

    Args:
        tables: With columns image_id, status, error_code.
    """
    rows: dict[str, str | None] = {}
    n_rows = 0
    for table in tables:
        for row in table.to_pylist():
            name = row["image_id"].rpartition("#")[2]
            rows[name] = None if row["status"] == "ok" else row["error_code"]
            n_rows += 1
    found = []
    if n_rows != archive.n_images or len(rows) != n_rows:
        found.append(
            f"the images table has {n_rows:,} rows with {len(rows):,} names; "
            f"the archive has {archive.n_images:,} images."
        )
    failed = {name: code for name, code in rows.items() if code is not None}
    for name in sorted(set(failed) | set(archive.broken)):
        expected, got = archive.broken.get(name), failed.get(name)
        if expected is None:
            found.append(f"{name} is a good image but failed ({got}).")
        elif got != expected:
            said = f"failed as {got}" if got else "was not reported as failed"
            found.append(f"{name} was broken as {expected.value} but {said}.")
    return found


def _sheet(results: Results, archive: SyntheticArchive) -> bytes:
    """A contact sheet of images spread over the archive, as a PNG file."""
    from segcore.visualize.sample import sample_sheet

    drawn = _nuclei_drawn(results.storage, archive)
    return sample_sheet(
        results,
        _TILES,
        title=f"segcore demo: masks found in {_TILES} of {archive.n_images:,} images",
        note="Each colour is one mask. Synthetic fluorescence microscopy, "
        "dark images are brightened here.",
        subtitle=lambda name, found: f"{found} nuclei found, {drawn[name]} drawn",
    )


def _nuclei_drawn(storage: Storage, archive: SyntheticArchive) -> dict[str, int]:
    """How many are in each image, by file name."""
    truth = json.loads(storage.read(archive.ground_truth))
    counts = {image["id"]: 0 for image in truth["images"]}
    for annotation in truth["annotations"]:
        counts[annotation["image_id"]] += 1
    return {image["file_name"]: counts[image["id"]] for image in truth["images"]}


def _claim(out: Path) -> None:
    """Make the folder, or take one that an earlier demo made; never somebody else's."""
    from segcore.errors import UsageError

    if out.exists() and not out.is_dir():
        raise UsageError(f"{out} is a file.", "Choose a folder with --out.")
    if out.is_dir() and any(out.iterdir()) and not (out / _MARK).exists():
        raise UsageError(
            f"{out} holds files that are not of this demo.", "Choose another folder with --out."
        )
    try:
        out.mkdir(parents=True, exist_ok=True)
        (out / _MARK).write_text('{"made_by": "segcore demo"}\n')
    except OSError as error:
        raise UsageError(
            f"{out} cannot be written: {error.strerror}.", "Choose another folder with --out."
        ) from None


@contextmanager
def _own_s3(out: Path) -> Iterator[str]:
    """A loopback S3 server for the time of the demo, found by the usual AWS variables.

    Its folder is removed at the end, and kept with its log if it does not start.
    """
    from segcore.testing.loopback_s3 import LoopbackS3

    folder = out / "s3-server"
    shutil.rmtree(folder, ignore_errors=True)  # of a demo that was killed
    before = {key: value for key, value in os.environ.items() if key.startswith("AWS_")}
    for key in before:  # a session token or profile would contradict the server's keys
        del os.environ[key]
    try:
        with LoopbackS3(folder, _BUCKET) as server:
            os.environ.update(server.environment)
            notify(f"S3 server at {server.endpoint}, bucket {_BUCKET}; it ends with the demo.")
            yield f"s3://{_BUCKET}"
        shutil.rmtree(folder, ignore_errors=True)
    finally:
        for key in [key for key in os.environ if key.startswith("AWS_")]:
            del os.environ[key]
        os.environ.update(before)


def _copy_tables(outcome: Outcome, base: str, out: Path) -> None:
    """Bring tables and truth from the server, which ends with the demo, to OUT."""
    from segcore.storage import Storage

    storage = Storage()
    local = out.absolute()
    shutil.rmtree(local / "masks", ignore_errors=True)  # of the demo before
    uris = [info.uri for info in storage.list(outcome.report.output)]
    for uri in [*uris, outcome.archive.ground_truth]:
        storage.write(str(local / uri.removeprefix(base).lstrip("/")), storage.read(uri))
    outcome.tables = str(local / outcome.report.prefix.removeprefix(base).lstrip("/"))


def show(outcome: Outcome) -> None:
    """The summary for people, on stdout."""
    from rich import box
    from rich.console import Console
    from rich.table import Table

    from segcore.output.layout import EditionLayout

    report, scores = outcome.report, outcome.evaluation.scores
    table = Table(box=box.SIMPLE_HEAD, show_header=False, title="Demo", title_justify="left")
    table.add_column()
    table.add_column()
    reasons = ", ".join(f"{code} {count}" for code, count in report.failures.items())
    balance = "all as expected" if not outcome.unexpected else "NOT AS EXPECTED"
    table.add_row("images", f"{report.images:,} in {outcome.archive.n_shards} tar shards")
    table.add_row("  segmented", f"{report.ok:,}")
    table.add_row("  broken on purpose", f"{report.failed:,}, {balance} ({reasons})")
    table.add_row("nuclei drawn", f"{outcome.archive.n_instances:,}")
    table.add_row("masks found", f"{report.instances:,}")
    table.add_row("mask AP50", f"{scores.mask.ap50:.3f}")
    table.add_row("mask AP (50-95)", f"{scores.mask.ap:.3f}")
    table.add_row("box AP (50-95)", f"{scores.box.ap:.3f}")
    table.add_row("speed", f"{report.images_per_second:.1f} images/s, {report.pool}")
    steps = ", ".join(f"{name} {took:.0f} s" for name, took in outcome.seconds.items())
    table.add_row("time", f"{sum(outcome.seconds.values()):.0f} s ({steps})")
    Console().print(table)
    print(f"Contact sheet   {_short(outcome.contact_sheet)}")
    layout = EditionLayout(outcome.tables)
    print(f"Tables          {_short(layout.parts_pattern('images'))}")
    print(f"                {_short(layout.parts_pattern('instances'))}")
    pandas, duckdb = one_liners(outcome.tables)
    print(f"\nOpen them with pandas:\n  {pandas}")
    print(f"or with DuckDB (pip install duckdb):\n  {duckdb}")


def one_liners(tables: str) -> tuple[str, str]:
    """Shell commands that open the tables with pandas and with DuckDB."""
    from segcore.output.layout import EditionLayout

    layout, python = EditionLayout(tables), shlex.quote(_short(sys.executable))
    files = _short(layout.parts_pattern("instances")).replace("'", "''")  # SQL doubles a quote
    pandas = (
        f"import pandas as pd; print(pd.read_parquet({_short(layout.parts_folder('instances'))!r})"
        ".groupby('category')[['area', 'score']].describe().T)"
    )
    sql = (
        "SELECT category, count(*) AS masks, round(avg(area), 1) AS mean_area, "
        f"round(avg(score), 3) AS mean_score FROM '{files}' GROUP BY category"
    )
    duckdb = f"import duckdb; print(duckdb.sql('''{sql}'''))"
    return f"{python} -c {_quoted(pandas)}", f"{python} -c {_quoted(duckdb)}"


def _quoted(code: str) -> str:
    """A shell word, in double quotes where that is enough: easier to read and to change."""
    plain = not set('"$`\\!') & set(code)
    return f'"{code}"' if plain else shlex.quote(code)


def _short(path: str | Path) -> str:
    """Relative to the working folder where the path lies in it."""
    text = os.path.relpath(path)
    return str(path) if text.startswith("..") else text
