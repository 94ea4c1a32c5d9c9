"""Whole jobs over damaged archives: none crashes, every file is a row, and the rows are sound."""

from __future__ import annotations

import io
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import strategies as st

from segcore.config import Config, load_config
from segcore.errors import UsageError
from segcore.inspection.verify import verify_output
from segcore.output.report import RunReport
from segcore.run.segment import preview, segment
from segcore.storage import Storage
from tests.support.archives import parquet_bytes, tar_bytes
from tests.support.image_files import corpus, mutations, pixels, save

pytestmark = [pytest.mark.ray, pytest.mark.timeout(900)]

Files = list[tuple[str, bytes]]  # name, content
SHARD_CODES = {"shard_corrupt", "shard_truncated"}
PER_SHARD = 12
HOSTILE_LINES = (
    *("../../etc/passwd", "/etc/passwd", "file:///no/such.png", "http://127.0.0.1/x.png"),
    *("s3://", "gopher://x/y.png", "..", "a/../../b.png", "x" * 5000 + ".png", "a//b\\c.png"),
    *(
        "%2e%2e/x.png",
        "-rf",
        "s3://no-such-bucket-here/x.png",
        " \u202egnp.exe",
        "*.png",
        "~/x.png",
    ),
)


def _valid() -> dict[str, bytes]:
    """One file of every kind, also of those that are recognised and refused."""
    rgb = pixels()
    return corpus() | {"gif": save(rgb, "GIF"), "ppm": save(rgb, "PPM"), "ico": save(rgb, "ICO")}


def _damaged(per_file: int) -> Files:
    return [(f"{name}.png", data) for name, data in mutations(_valid(), per_file)]


def _config(source: Path, output: Path) -> Config:
    flags = {
        "input": ("input", str(source)),
        "output": ("output", str(output)),
        "model": ("model.name", "tests.support.threshold_model:Threshold"),
    }
    sets = ["plan.images=256", "ray.max_actors=1", "decode.max_pixels=2000000"]
    return load_config(sets=[*sets, "storage.retries=0"], flags=flags)


def _write(folder: Path, files: Files) -> Path:
    folder.mkdir()
    for name, data in files:
        (folder / name).write_bytes(data)
    return folder


def _job(source: Path, output: Path) -> tuple[RunReport, list[dict[str, Any]]]:
    """The report and all rows of `images`, after what must hold for every job."""
    report = segment(_config(source, output))
    assert report.exit_code in (0, 3), report.errors
    rows = [
        row
        for part in Path(report.prefix, "images").glob("*.parquet")
        for row in pq.read_table(io.BytesIO(part.read_bytes())).to_pylist()
    ]
    assert len({row["image_id"] for row in rows}) == len(rows) == report.images
    found = verify_output(Storage(), str(output))
    assert found.exit_code == 0, found
    return report, rows


def _loose(files: Files, work: Path) -> None:
    source = _write(work / "in", files)
    report, rows = _job(source, work / "out")
    assert {row["image_id"] for row in rows} == {str(source / name) for name, _ in files}
    assert report.failed > len(files) // 3
    assert {"corrupt", "truncated", "not_an_image"} <= set(report.failures)


def _listed(files: Files, work: Path) -> None:
    source = _write(work / "in", files)
    lines = [name for name, _ in files] + list(HOSTILE_LINES)
    (source / "all.txt").write_text("\n".join(lines), "utf-8")
    report, rows = _job(source / "all.txt", work / "out")
    assert report.images == len(lines)
    images = {row["image_id"]: row for row in rows}
    assert {str(source / name) for name, _ in files} <= set(images)
    refused = [row for row in rows if row["image_id"] not in {str(source / n) for n, _ in files}]
    assert len(refused) == len(HOSTILE_LINES)
    assert {row["status"] for row in refused} == {"failed"}
    assert {row["error_code"] for row in refused} <= {"unsafe_uri", "not_found", "not_an_image"}


def _sharded(
    files: Files, work: Path, extension: str, pack: Callable[[Files], bytes], per_shard: int
) -> None:
    """Shards that are whole, holding damaged images; and shards that are damaged themselves."""
    groups = [files[at : at + PER_SHARD] for at in range(0, len(files), PER_SHARD)]
    whole = [(f"whole{i:03d}.{extension}", pack(group)) for i, group in enumerate(groups)]
    sound = pack([(f"{i:02d}.png", save(pixels(), "PNG")) for i in range(PER_SHARD)])
    cut = {f"shard{at}": sound[: len(sound) * at // 7] for at in range(7)}
    broken = [
        (f"{name}.{extension}", data)
        for name, data in [*mutations({"shard": sound}, per_shard), *cut.items()]
    ]
    source = _write(work / "in", whole + broken)
    _, rows = _job(source, work / "out")
    by_shard = Counter(Path(row["shard"]).name for row in rows)
    for (name, _), group in zip(whole, groups, strict=True):
        assert by_shard[name] == len(group)
    told = {Path(row["shard"]).name for row in rows if row["error_code"] in SHARD_CODES}
    for name, _ in broken:  # all of its images, or a row that says that some cannot be told
        assert by_shard[name] == PER_SHARD or name in told, (name, by_shard[name])


def _parquet(files: Files) -> bytes:
    columns = {"key": [name for name, _ in files], "image": [data for _, data in files]}
    return parquet_bytes(columns, rows_per_group=5)


SOURCES: dict[str, Callable[[Files, Path, int], None]] = {
    "images": lambda files, work, _: _loose(files, work),
    "manifest": lambda files, work, _: _listed(files, work),
    "tar": lambda files, work, n: _sharded(files, work, "tar", tar_bytes, n),
    "parquet": lambda files, work, n: _sharded(files, work, "parquet", _parquet, n),
}


@pytest.mark.faults
@pytest.mark.parametrize("kind", [kind for kind in SOURCES if kind != "manifest"])  # see below
def test_a_job_accounts_for_every_damaged_file(
    ray_session: None, tmp_path: Path, kind: str
) -> None:
    files = _damaged(per_file=10)
    assert len(files) > 300
    SOURCES[kind](files, tmp_path, 40)


@pytest.mark.chaos
@pytest.mark.parametrize("kind", SOURCES)
def test_a_job_accounts_for_thousands_of_damaged_files(
    ray_session: None, tmp_path: Path, kind: str
) -> None:
    SOURCES[kind](_damaged(per_file=100), tmp_path, 1000)


@st.composite
def _mutated(draw: st.DrawFn) -> bytes:
    """A valid file with a few pieces changed, cut out, doubled or put in."""
    valid = _VALID[draw(st.sampled_from(sorted(_VALID)))]
    data = bytearray(valid)
    for _ in range(draw(st.integers(1, 4))):
        at = draw(st.integers(0, max(0, len(data) - 1)))
        stop = min(len(data), at + draw(st.integers(0, 64)))
        piece = draw(st.binary(max_size=8))
        data[at:stop] = draw(st.sampled_from((piece, bytes(data[at:stop]) * 2, b"\xff" * 4)))
    return bytes(data)


_VALID = _valid()


@pytest.mark.chaos
@settings(
    max_examples=15,
    phases=[Phase.explicit, Phase.reuse, Phase.generate],  # to shrink would take hours
    suppress_health_check=list(HealthCheck),
)
@given(drawn=st.lists(_mutated(), min_size=60, max_size=200))
def test_a_job_accounts_for_whatever_is_drawn(
    ray_session: None, tmp_path_factory: pytest.TempPathFactory, drawn: list[bytes]
) -> None:
    work = tmp_path_factory.mktemp("drawn")
    source = _write(work / "in", [(f"{i:04d}.png", data) for i, data in enumerate(drawn)])
    report, _ = _job(source, work / "out")
    assert report.images == len(drawn)


MANIFESTS = {
    "a.txt": "\n".join(["a.png", "b/c.png", "s3://bucket/x.png", "# no", "d.png"]),
    "a.csv": 'uri,label\na.png,1\n"b ""x"".png",2\ns3://bucket/x.png,3\n',
    "a.jsonl": '{"uri": "a.png"}\n{"uri": "b.png", "n": 1}\n{"uri": "s3://bucket/x.png"}\n',
}


def test_a_damaged_manifest_is_planned_or_refused_in_words(tmp_path: Path) -> None:
    valid = {name: text.encode() for name, text in MANIFESTS.items()}
    valid["a.parquet"] = parquet_bytes({"uri": ["a.png", "b.png", "c.png"]})
    assert len({_planned(tmp_path, name, data) for name, data in valid.items()} - {-1}) > 0
    outcomes = Counter[bool]()
    for name, data in valid.items():
        for _, damaged in mutations({name: data}, per_file=60):
            outcomes[_planned(tmp_path, name, damaged) >= 0] += 1
    assert outcomes[True] > 40
    assert outcomes[False] > 40


def _planned(folder: Path, name: str, data: bytes) -> int:
    """Images that a manifest is found to list; -1 when it is refused. Nothing else may happen."""
    (folder / name).write_bytes(data)
    try:
        found = preview(_config(folder / name, folder.parent / "never")).images
    except UsageError as error:
        return -1 if error.message else -2
    assert found is not None
    return found
