"""Whole jobs over damaged archives: none crashes, every file is a row, and the rows are sound."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import strategies as st

from segcore.config import Config
from segcore.errors import UsageError
from segcore.inspection.verify import verify_output
from segcore.output.report import RunReport
from segcore.run.segment import preview, segment
from segcore.storage import Storage
from tests.support.archives import parquet_bytes, tar_bytes
from tests.support.image_files import corpus, mutations, pixels, save
from tests.support.jobs import THRESHOLD_MODEL, job_config, table_rows

pytestmark = pytest.mark.timeout(900)

Files = list[tuple[str, bytes]]  # name, content
SHARD_CODES = {"shard_corrupt", "shard_truncated"}
IMAGES_PER_SHARD = 12
HOSTILE_LINES = (
    *("../../etc/passwd", "/etc/passwd", "file:///no/such.png", "http://127.0.0.1/x.png"),
    *("s3://", "gopher://x/y.png", "..", "a/../../b.png", "x" * 5000 + ".png", "a//b\\c.png"),
    *("%2e%2e/x.png", "-rf", "s3://no-such-bucket-here/x.png", " \u202egnp.exe"),
    *("*.png", "~/x.png"),
)


def _valid_files() -> dict[str, bytes]:
    """One file of every kind, also of those that are recognised and refused."""
    rgb = pixels()
    return corpus() | {"gif": save(rgb, "GIF"), "ppm": save(rgb, "PPM"), "ico": save(rgb, "ICO")}


def _damaged_files(per_file: int) -> Files:
    return [(f"{name}.png", data) for name, data in mutations(_valid_files(), per_file)]


def _config(source: Path, output: Path) -> Config:
    sets = ["plan.images=256", "ray.max_actors=1", "decode.max_pixels=2000000"]
    return job_config(source, output, *sets, "storage.retries=0", model=THRESHOLD_MODEL)


def _write_files(folder: Path, files: Files) -> Path:
    folder.mkdir()
    for name, data in files:
        (folder / name).write_bytes(data)
    return folder


def _run_job(source: Path, output: Path) -> tuple[RunReport, list[dict[str, Any]]]:
    """The report and all rows of `images`, after checking what must hold for every job."""
    report = segment(_config(source, output))
    assert report.exit_code in (0, 3), report.errors
    rows = table_rows(report.prefix, "images")
    assert len({row["image_id"] for row in rows}) == len(rows) == report.images
    verification = verify_output(Storage(), str(output))
    assert verification.exit_code == 0, verification
    return report, rows


def _check_loose_images(files: Files, work: Path) -> None:
    source = _write_files(work / "in", files)
    report, rows = _run_job(source, work / "out")
    assert {row["image_id"] for row in rows} == {str(source / name) for name, _ in files}
    assert report.failed > len(files) // 3
    assert {"corrupt", "truncated", "not_an_image"} <= set(report.failures)


def _check_manifest(files: Files, work: Path) -> None:
    source = _write_files(work / "in", files)
    lines = [name for name, _ in files] + list(HOSTILE_LINES)
    (source / "all.txt").write_text("\n".join(lines), "utf-8")
    report, rows = _run_job(source / "all.txt", work / "out")
    assert report.images == len(lines)
    images = {row["image_id"]: row for row in rows}
    assert {str(source / name) for name, _ in files} <= set(images)
    refused = [row for row in rows if row["image_id"] not in {str(source / n) for n, _ in files}]
    assert len(refused) == len(HOSTILE_LINES)
    assert {row["status"] for row in refused} == {"failed"}
    assert {row["error_code"] for row in refused} <= {"unsafe_uri", "not_found", "not_an_image"}


def _check_shards(
    files: Files, work: Path, extension: str, pack: Callable[[Files], bytes], n_damaged_shards: int
) -> None:
    """Undamaged shards that hold damaged images; and shards that are damaged themselves."""
    starts = range(0, len(files), IMAGES_PER_SHARD)
    groups = [files[start : start + IMAGES_PER_SHARD] for start in starts]
    undamaged = [(f"whole{i:03d}.{extension}", pack(group)) for i, group in enumerate(groups)]
    sound = pack([(f"{i:02d}.png", save(pixels(), "PNG")) for i in range(IMAGES_PER_SHARD)])
    cut_off = {f"shard{sevenths}": sound[: len(sound) * sevenths // 7] for sevenths in range(7)}
    damaged = [
        (f"{name}.{extension}", data)
        for name, data in [*mutations({"shard": sound}, n_damaged_shards), *cut_off.items()]
    ]
    source = _write_files(work / "in", undamaged + damaged)
    _, rows = _run_job(source, work / "out")
    rows_per_shard = Counter(Path(row["shard"]).name for row in rows)
    for (name, _), group in zip(undamaged, groups, strict=True):
        assert rows_per_shard[name] == len(group)
    reported = {Path(row["shard"]).name for row in rows if row["error_code"] in SHARD_CODES}
    for name, _ in damaged:  # all of its images, or a row that says that some cannot be named
        n_rows = rows_per_shard[name]
        assert n_rows == IMAGES_PER_SHARD or name in reported, (name, n_rows)


def _pack_parquet(files: Files) -> bytes:
    columns = {"key": [name for name, _ in files], "image": [data for _, data in files]}
    return parquet_bytes(columns, rows_per_group=5)


CHECKS: dict[str, Callable[[Files, Path, int], None]] = {
    "images": lambda files, work, _: _check_loose_images(files, work),
    "manifest": lambda files, work, _: _check_manifest(files, work),
    "tar": lambda files, work, n: _check_shards(files, work, "tar", tar_bytes, n),
    "parquet": lambda files, work, n: _check_shards(files, work, "parquet", _pack_parquet, n),
}


@pytest.mark.faults
@pytest.mark.parametrize("kind", [kind for kind in CHECKS if kind != "manifest"])  # see below
def test_a_job_accounts_for_every_damaged_file(
    ray_session: None, tmp_path: Path, kind: str
) -> None:
    files = _damaged_files(per_file=10)
    assert len(files) > 300
    CHECKS[kind](files, tmp_path, 40)


@pytest.mark.chaos
@pytest.mark.parametrize("kind", CHECKS)
def test_a_job_accounts_for_thousands_of_damaged_files(
    ray_session: None, tmp_path: Path, kind: str
) -> None:
    CHECKS[kind](_damaged_files(per_file=100), tmp_path, 1000)


@st.composite
def _damaged_file(draw: st.DrawFn) -> bytes:
    """A valid file with a few pieces changed, cut out, doubled or put in."""
    data = bytearray(_VALID_FILES[draw(st.sampled_from(sorted(_VALID_FILES)))])
    for _ in range(draw(st.integers(1, 4))):
        start = draw(st.integers(0, max(0, len(data) - 1)))
        stop = min(len(data), start + draw(st.integers(0, 64)))
        piece = draw(st.binary(max_size=8))
        data[start:stop] = draw(st.sampled_from((piece, bytes(data[start:stop]) * 2, b"\xff" * 4)))
    return bytes(data)


_VALID_FILES = _valid_files()


@pytest.mark.chaos
@settings(
    max_examples=15,
    phases=[Phase.explicit, Phase.reuse, Phase.generate],  # shrinking would take hours
    suppress_health_check=list(HealthCheck),
)
@given(contents=st.lists(_damaged_file(), min_size=60, max_size=200))
def test_a_job_accounts_for_whatever_is_drawn(
    ray_session: None, tmp_path_factory: pytest.TempPathFactory, contents: list[bytes]
) -> None:
    work = tmp_path_factory.mktemp("drawn")
    files = [(f"{i:04d}.png", data) for i, data in enumerate(contents)]
    report, _ = _run_job(_write_files(work / "in", files), work / "out")
    assert report.images == len(contents)


MANIFESTS = {
    "a.txt": "\n".join(["a.png", "b/c.png", "s3://bucket/x.png", "# no", "d.png"]),
    "a.csv": 'uri,label\na.png,1\n"b ""x"".png",2\ns3://bucket/x.png,3\n',
    "a.jsonl": '{"uri": "a.png"}\n{"uri": "b.png", "n": 1}\n{"uri": "s3://bucket/x.png"}\n',
}


@pytest.mark.slow
def test_a_damaged_manifest_is_planned_or_refused_with_a_message(tmp_path: Path) -> None:
    valid = {name: text.encode() for name, text in MANIFESTS.items()}
    valid["a.parquet"] = parquet_bytes({"uri": ["a.png", "b.png", "c.png"]})
    assert any(_count_planned_images(tmp_path, name, data) for name, data in valid.items())
    outcomes = Counter[bool]()
    for name, data in valid.items():
        for _, damaged in mutations({name: data}, per_file=60):
            outcomes[_count_planned_images(tmp_path, name, damaged) is not None] += 1
    assert outcomes[True] > 40
    assert outcomes[False] > 40


def _count_planned_images(folder: Path, name: str, data: bytes) -> int | None:
    """Images that a manifest lists; None when it is refused. Nothing else may happen."""
    (folder / name).write_bytes(data)
    try:
        n_images = preview(_config(folder / name, folder.parent / "never")).images
    except UsageError as error:
        return None if error.message else pytest.fail("refused without a message")
    assert n_images is not None
    return n_images
