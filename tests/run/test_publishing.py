"""What `latest.json` names after a run, and what a run that never began leaves behind."""

from __future__ import annotations

import itertools
import json
import shutil
from collections.abc import Sequence
from contextlib import nullcontext
from pathlib import Path

import pytest

from segcore.distributed import cluster
from segcore.distributed.cluster import NodeResources
from segcore.errors import ClusterError, Interrupted, SegcoreError, UsageError
from segcore.evaluation.evaluate import evaluate
from segcore.inspection.status import read_status
from segcore.inspection.verify import verify_output
from segcore.lease.hold import hold_lease
from segcore.output.layout import EditionLayout, OutputLayout
from segcore.output.report import RunReport
from segcore.output.results import open_results
from segcore.planning.plan import Units
from segcore.run.job import Job
from segcore.run.passes import Notify, Pass, RunState
from segcore.run.segment import preview, segment
from segcore.storage import Storage
from tests.support import serial_run
from tests.support.archives import tar_bytes
from tests.support.bright_images import bright_png
from tests.support.commands import run_segcore
from tests.support.jobs import BRIGHT_MODEL, job_config, write_files

OTHER = "model.conf=0.5"  # another edition than the default


@pytest.fixture(autouse=True)
def _without_ray(monkeypatch: pytest.MonkeyPatch) -> None:
    serial_run.without_ray(monkeypatch)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Has an archive `in` of three good images and a bad one; the outputs go to `out`."""
    images = {f"{i}.png": bright_png(i) for i in range(3)} | {"words.png": b"no image"}
    write_files(tmp_path / "in", images)
    return tmp_path


def _segment(folder: Path, *sets: str, overwrite: bool = False) -> RunReport:
    allowed = "run.max_failed_fraction=0.5"
    return segment(job_config(folder / "in", folder / "out", allowed, *sets), overwrite=overwrite)


def _published(folder: Path) -> str | None:
    """The edition that `latest.json` names; None if there is none."""
    path = folder / "out" / "latest.json"
    return json.loads(path.read_bytes())["edition"] if path.exists() else None


def _prepare(folder: Path, state: str) -> str | None:
    """Bring an output into a state; returns what is published then."""
    if state == "nothing":
        return None
    earlier = _segment(folder, *([OTHER] if state != "own" else []))
    latest = Path(OutputLayout(earlier.output).latest_json)
    if state == "damaged":
        latest.write_text("{")
    if state == "other deleted":
        shutil.rmtree(earlier.prefix)
    return earlier.edition


CASES = [
    *itertools.product(("nothing", "own", "other"), (None, True, False), ("success",)),
    *itertools.product(("other deleted", "damaged"), (None,), ("success",)),
    *itertools.product(("nothing", "other"), (None,), ("too_many_failed", "incomplete")),
    ("other", True, "incomplete"),
]


@pytest.mark.parametrize(("state", "publish", "end"), CASES)
def test_which_runs_publish(
    folder: Path, monkeypatch: pytest.MonkeyPatch, state: str, publish: bool | None, end: str
) -> None:
    before = _prepare(folder, state)
    latest = folder / "out" / "latest.json"
    bytes_before = latest.read_bytes() if latest.exists() else None
    write_files(folder / "in", {"new.png": bright_png(7)})
    sets = [] if publish is None else [f"run.publish={str(publish).lower()}"]
    if end == "too_many_failed":
        sets.append("run.max_failed_fraction=0")
    if end == "incomplete":
        serial_run.without_ray(monkeypatch, lambda *args: None)
    report = _segment(folder, *sets)
    assert report.status == end

    is_allowed = {True: True, False: False, None: state != "other"}[publish]
    if end != "incomplete" and is_allowed:
        assert _published(folder) == report.edition == report.published
        assert json.loads(latest.read_bytes())["run"] == report.run
    else:
        assert (latest.read_bytes() if latest.exists() else None) == bytes_before
        assert report.published == (before if state in ("own", "other") else "")
    advice = "\n".join(report.advice())
    says_so = "This edition is not published" in advice
    assert says_so == (end != "incomplete" and report.published != report.edition)


def test_a_trial_leaves_readers_the_full_edition_and_the_same_run_again_publishes_it(
    folder: Path,
) -> None:
    full = _segment(folder)
    trial = _segment(folder, OTHER)
    assert (trial.older_edition, trial.edition_changes) == (
        full.edition,
        ("model.parameters.conf: 0.25 -> 0.5",),
    )
    advice = "\n".join(trial.advice())
    assert f"latest.json names {full.edition}" in advice
    assert "--publish" in advice
    assert f"It differs from {full.edition}: model.parameters.conf: 0.25 -> 0.5." in advice

    storage, output = Storage(), str(folder / "out")
    results = open_results(storage, output)
    assert (results.name, results.newer_edition) == (full.edition, trial.edition)
    assert results.edition_notes == (
        f"Edition {full.edition}, which is published.",
        f"A newer edition, {trial.edition}, is not published; --edition {trial.edition} "
        "chooses it.",
    )
    not_published = f"Edition {trial.edition}, which is not published: {full.edition} is."
    status, verification = read_status(storage, output), verify_output(storage, output)
    assert status.edition == verification.edition == trial.edition
    assert status.edition_notes == tuple(verification.edition_notes) == (not_published,)
    assert open_results(storage, output, trial.edition).edition_notes == (not_published,)
    assert open_results(storage, trial.prefix).edition_notes == (not_published,)

    again = _segment(folder, OTHER)
    assert again.nothing_to_do
    assert _published(folder) == full.edition
    published = _segment(folder, OTHER, "run.publish=true")
    assert (published.nothing_to_do, published.images_this_time) == (False, 0)
    assert _published(folder) == trial.edition == published.published
    assert open_results(storage, output).newer_edition == ""
    assert _segment(folder, OTHER, "run.publish=true").nothing_to_do
    assert not verify_output(storage, output).counts


def test_a_new_edition_says_in_what_it_differs_before_anything_runs(folder: Path) -> None:
    config = job_config(folder / "in", folder / "out", "run.publish=false")
    first: list[str] = []
    report = segment(config, notify=first.append)
    assert not any("new edition" in line for line in first)
    told: list[str] = []
    sets = ["model.conf=0.4", "decode.strict=false", "run.publish=false"]
    config = job_config(folder / "in", folder / "out", *sets)
    expected = (
        f"This begins a new edition beside {report.edition}: decode.strict: unset -> false; "
        "model.parameters.conf: 0.25 -> 0.4."
    )
    assert preview(config).notes() == [expected]
    segment(config, notify=told.append)
    assert expected in told
    assert preview(config).notes() == []  # it has begun


def test_evaluate_names_the_edition_and_the_newer_one(folder: Path) -> None:
    full, trial = _segment(folder), _segment(folder, OTHER)
    truth = {
        "images": [{"id": 1, "file_name": "1.png", "width": 56, "height": 40}],
        "categories": [{"id": 1, "name": "bright"}],
        "annotations": [
            {"id": 1, "image_id": 1, "category_id": 1, "bbox": [1, 1, 4, 4], "iscrowd": 0,
             "segmentation": [[1, 1, 5, 1, 5, 5, 1, 5]]}
        ],
    }  # fmt: skip
    rows = [r for t in open_results(Storage(), str(folder / "out")).images() for r in t.to_pylist()]
    (size,) = [(r["width"], r["height"]) for r in rows if r["image_id"].endswith("/1.png")]
    truth["images"][0].update(width=size[0], height=size[1])
    (folder / "truth.json").write_text(json.dumps(truth))
    report = evaluate(Storage(), str(folder / "out"), str(folder / "truth.json"))
    assert report.edition == full.edition
    assert any(trial.edition in note for note in report.edition_notes)


# Each leads to an error before the run can begin; the words are in its message.
NEVER_BEGAN = {
    "no model": (["model.name=no-such-model"], "no-such-model"),
    "bad checkpoint": (["model.name={folder}/damaged.pt"], "damaged.pt"),
    "bad option": (["model.imgsz=33"], "imgsz"),
    "no GPU": (["model.device=cuda"], "0 GPU"),
    "too many actors": (["ray.min_actors=64", "ray.cpus_per_actor=8"], "has room for"),
    "no input": (["input={folder}/nowhere"], "does not exist"),
    "empty input": (["input={folder}/empty"], "No images found"),
    "mixture": (["input={folder}/mixture"], "mixture"),
    "local paths": (["ray.address=10.0.0.1:6379"], "has other machines"),
}


@pytest.mark.parametrize("finished", [False, True], ids=["new output", "published output"])
@pytest.mark.parametrize("reason", NEVER_BEGAN)
def test_a_run_that_never_began_leaves_no_trace(
    folder: Path, monkeypatch: pytest.MonkeyPatch, reason: str, finished: bool
) -> None:
    monkeypatch.undo()  # the real `connect_workers`, but without Ray itself
    monkeypatch.setattr(
        "segcore.distributed.cluster.connected",
        lambda options: nullcontext(cluster.find_target(options)),
    )
    monkeypatch.setattr(
        "segcore.distributed.cluster.live_nodes", lambda: [NodeResources(cpus=2.0, gpus=0.0)]
    )
    if finished:
        serial_run.segment(job_config(folder / "in", folder / "out"))
    write_files(folder, {"damaged.pt": b"PK\x03\x04 and no more"})
    write_files(folder / "mixture", {"1.png": bright_png(1), "1.tar": bytes(1024)})
    (folder / "empty").mkdir()
    before = _tree(folder / "out")
    sets, words = NEVER_BEGAN[reason]
    sets = [text.replace("{folder}", str(folder)) for text in sets]
    values = dict(text.split("=", 1) for text in sets)
    source = values.pop("input", str(folder / "in"))
    model = values.pop("model.name", BRIGHT_MODEL)
    options = ["decode.strict=false", *(f"{key}={value}" for key, value in values.items())]
    with pytest.raises(SegcoreError) as caught:
        segment(job_config(source, folder / "out", "run.publish=true", *options, model=model))
    assert words in caught.value.message
    assert _tree(folder / "out") == before


def _tree(folder: Path) -> dict[str, tuple[int, bytes]]:
    """All files and folders, with their times and bytes."""
    return {
        str(path): (path.stat().st_mtime_ns, path.read_bytes() if path.is_file() else b"")
        for path in (folder, *folder.rglob("*"))
        if path.exists()
    }


@pytest.mark.parametrize("ended", ["interrupted", "nothing found"])
def test_a_run_without_results_does_not_claim_the_output_for_its_input(
    folder: Path, monkeypatch: pytest.MonkeyPatch, ended: str
) -> None:
    def interrupted(*args: object) -> None:
        raise KeyboardInterrupt

    other = folder / "other"
    if ended == "interrupted":
        write_files(other, {"1.png": bright_png(1)})
        serial_run.without_ray(monkeypatch, interrupted)
    else:
        write_files(other, {"1.tar": tar_bytes([("1.txt", b"")])})
    with pytest.raises(SegcoreError):
        segment(job_config(other, folder / "out"))
    serial_run.without_ray(monkeypatch)
    report = _segment(folder)
    assert (report.status, report.images, report.sequence) == ("success", 4, 2)
    assert not verify_output(Storage(), report.output).counts
    with pytest.raises(UsageError, match="holds the results of another input"):
        segment(job_config(other, folder / "out"))


def test_an_interrupt_while_ray_starts_leaves_no_trace(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def interrupted(*args: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr("segcore.run.segment.connect_workers", interrupted)
    with pytest.raises(Interrupted):
        _segment(folder)
    assert not (folder / "out").exists()


def test_a_lease_that_is_held_is_noticed_before_ray_starts(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    started: list[object] = []

    def connect(job: Job, n_units: int, state: RunState) -> nullcontext[None]:
        started.append(job)
        return nullcontext()

    monkeypatch.setattr("segcore.run.segment.connect_workers", connect)
    config = job_config(folder / "in", folder / "out")
    layout = EditionLayout(preview(config).prefix)
    with hold_lease(Storage(), layout.lease_folder, 60.0):
        before = _tree(folder / "out")
        with pytest.raises(SegcoreError, match="Another run is working"):
            segment(config)
        assert started == []
        assert _tree(folder / "out").keys() == before.keys()


def test_ray_is_not_started_when_only_results_move(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    first = _segment(folder)
    (folder / "in" / "0.png").unlink()

    def refuse(*args: object) -> None:
        raise ClusterError("There is no cluster.")

    monkeypatch.setattr("segcore.run.segment.connect_workers", refuse)
    report = _segment(folder, "source.allow_shrunk_listing=true")
    assert (report.status, report.images_this_time) == ("success", 0)
    assert report.run != first.run


def test_the_pool_is_made_for_the_units_that_are_left(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    sizes: list[int] = []

    def connect(job: Job, n_units: int, state: RunState) -> nullcontext[None]:
        sizes.append(n_units)
        return nullcontext()

    def do_one(job: Job, passes: Sequence[Pass], state: RunState, notify: Notify) -> None:
        one = Pass(Units(passes[0].units.table.slice(0, 1)))
        serial_run.run_passes(job, [one], state, notify)

    serial_run.without_ray(monkeypatch, do_one)
    monkeypatch.setattr("segcore.run.segment.connect_workers", connect)
    for _ in range(3):
        _segment(folder, "plan.images=2")
    assert sizes == [2, 1]


@pytest.mark.faults
@pytest.mark.slow
def test_a_cluster_that_does_not_answer_leaves_no_trace(folder: Path) -> None:
    arguments = ["segment", str(folder / "in"), str(folder / "out"), "--address", "127.0.0.1:1"]
    done = run_segcore(*arguments, "--set", "ray.shared_paths=true")
    assert done.returncode == 1
    assert "Cannot connect to the Ray cluster at 127.0.0.1:1" in done.stderr
    assert not (folder / "out").exists()
