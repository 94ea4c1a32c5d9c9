"""Every member of a tar is a row or is counted: joined tars, inner tars, bytes behind the end."""

from __future__ import annotations

import io
import random
import subprocess
import tarfile
from collections import Counter
from itertools import pairwise
from pathlib import Path

import pytest

from segcore.sources import Sample, SourceOptions, open_source, read_unit
from segcore.sources.units import UnitLimits
from segcore.storage import Storage, StorageOptions
from tests.support.archives import codes, image_bytes, open_and_read, tar_bytes
from tests.support.paths import SHARED

storage = Storage(StorageOptions(retries=1))
SMALL_UNITS = UnitLimits(images=2, bytes=3000)
FORMATS = {"ustar": tarfile.USTAR_FORMAT, "gnu": tarfile.GNU_FORMAT, "pax": tarfile.PAX_FORMAT}
END_MARK = b"\0" * 1024


def _without_end_mark(members: list[tuple[str, bytes]], **options: object) -> bytes:
    data = tar_bytes(members, **options)
    with tarfile.open(fileobj=io.BytesIO(data)) as archive:
        archive.getmembers()
        return data[: archive.offset]


def _read(
    path: Path, limits: UnitLimits | None = None, **options: object
) -> tuple[list[Sample], Counter[str]]:
    """All samples of a tar, and what reading noticed."""
    chosen = SourceOptions(**options)  # type: ignore[arg-type]
    notes: Counter[str] = Counter()
    samples: list[Sample] = []
    units = list(open_source(str(path), chosen, storage).units(limits or UnitLimits()))
    assert (units[0].start, units[-1].stop) == (0, path.stat().st_size)
    assert all(unit.stop == following.start for unit, following in pairwise(units))
    for unit in units:
        found = list(read_unit(unit, storage, chosen, notes))
        assert unit.n_images in (None, len(found))
        samples += found
    return samples, +notes


def _rows(samples: list[Sample]) -> list[tuple[str, bytes | None, str, str]]:
    return [(s.image_id, s.data, str(s.error), s.warning) for s in samples]


def _read_both_ways(path: Path) -> tuple[dict[str, bytes | None], Counter[str]]:
    """name -> content, which must not depend on how the shard is cut."""
    samples, notes = _read(path)
    cut_samples, cut_notes = _read(path, SMALL_UNITS)
    assert _rows(cut_samples) == _rows(samples)
    for counts in (notes, cut_notes):  # a sample may be cut in two
        counts.pop("samples_with_several_images", None)
    assert cut_notes == notes
    return {s.image_id.removeprefix(f"{path}#"): s.data for s in samples}, notes


def _make_joined_tars(seed: int) -> bytes:
    """Some tars in a row: formats, gaps, long and absolute names drawn from the seed."""
    rng = random.Random(seed)
    parts = []
    for archive in range(rng.randint(1, 4)):
        format_name = rng.choice(sorted(FORMATS))
        members = []
        for index in range(rng.randint(0, 4)):
            folder = rng.choice(["", "./", "/abs/", "d é/", "long/" * rng.choice([10, 50])])
            if format_name == "ustar" and len(folder) > 150:
                folder = ""
            name = f"{folder}{archive}-{index}.png"
            members.append((name, rng.randbytes(rng.choice([0, 1, 511, 512, 513, 2000]))))
        end_mark = b"\0" * 512 * rng.choice([0, 1, 2, 3, 18, 4000])
        parts.append(_without_end_mark(members, format=FORMATS[format_name]) + end_mark)
    return b"".join(parts) + END_MARK


@pytest.mark.slow
@pytest.mark.parametrize("seed", range(24))
def test_members_are_those_of_gnu_tar_and_of_python(tmp_path: Path, seed: int) -> None:
    path = tmp_path / "a.tar"
    path.write_bytes(_make_joined_tars(seed))
    contents, notes = _read_both_ways(path)
    with tarfile.open(path, ignore_zeros=True) as archive:
        expected = {}
        for info in archive:
            reader = archive.extractfile(info)
            assert reader is not None
            expected[info.name.removeprefix("./")] = reader.read()
    assert contents == expected
    assert notes == Counter()
    command = ["tar", "--ignore-zeros", "--absolute-names", "--file", str(path)]
    names = subprocess.run(
        [*command, "--list", "--quoting-style=literal"], capture_output=True, check=True
    ).stdout
    assert [name.removeprefix("./") for name in names.decode().splitlines()] == list(contents)
    extracted = subprocess.run([*command, "--extract", "--to-stdout"], capture_output=True)
    assert extracted.stdout == b"".join(data or b"" for data in contents.values())


def test_members_that_are_not_plain_are_rows_too(tmp_path: Path) -> None:
    """GNU tar writes sparse files and hard links: both are counted, the rest is read."""
    folder = tmp_path / "in"
    folder.mkdir()
    (folder / "1.png").write_bytes(image_bytes())
    (folder / "2.png").hardlink_to(folder / "1.png")
    (folder / "3.png").symlink_to("1.png")
    with (folder / "4.png").open("wb") as file:
        file.truncate(1 << 20)
        file.write(b"x" * 5000)
    for format_name in ("gnu", "posix"):
        path = tmp_path / f"{format_name}.tar"
        subprocess.run(
            ["tar", "--sparse", f"--format={format_name}", "-cf", path, "-C", folder, "1.png",
             "2.png", "3.png", "4.png"],
            check=True,
        )  # fmt: skip
        path.write_bytes(path.read_bytes() * 2)
        contents, _ = _read_both_ways(path)
        assert sum(data == image_bytes() for data in contents.values()) == 2
        samples, _ = _read(path)
        assert sorted(codes(samples).values()) == ["unsafe_member"] * 6
        assert len(samples) == 8


@pytest.mark.parametrize("n_bytes", [1, 300, 512, 5000, 3 << 20])
def test_other_bytes_behind_the_end_are_counted(tmp_path: Path, n_bytes: int) -> None:
    path = tmp_path / "a.tar"
    junk = b"x" * n_bytes
    path.write_bytes(tar_bytes([("1.png", b"1"), ("2.png", b"2")]) + junk)
    contents, notes = _read_both_ways(path)
    assert contents == {"1.png": b"1", "2.png": b"2"}
    assert notes == Counter({"bytes_behind_end_mark": n_bytes})


def test_a_tar_behind_the_end_that_cannot_be_read_is_a_failed_row(tmp_path: Path) -> None:
    first, second = tar_bytes([("1.png", b"1")]), tar_bytes([("2.png", b"2")])
    damaged = bytearray(second)
    damaged[3] ^= 0xFF
    for following in (bytes(damaged), b"unaligned" + second):
        path = tmp_path / "a.tar"
        path.write_bytes(first + following)
        for limits in (UnitLimits(), SMALL_UNITS):
            samples, _ = _read(path, limits)
            assert codes(samples) == {f"{path}#{len(first)}": "shard_corrupt"}
            assert "follow the end mark" in str(samples[1].error)
            assert samples[0].data == b"1"


def test_a_compressed_tar_says_so(tmp_path: Path) -> None:
    path = tmp_path / "a.tar"
    sink = io.BytesIO()
    with tarfile.open(fileobj=sink, mode="w:gz") as archive:
        archive.addfile(tarfile.TarInfo("1.png"))
    path.write_bytes(sink.getvalue())
    samples, _ = _read(path)
    assert "compressed (gzip)" in str(samples[0].error)


def _nested(depth: int) -> bytes:
    data = tar_bytes([("deep.png", b"deep")])
    for level in range(depth):
        data = tar_bytes([(f"{level}a.png", b"a" * 700), ("in.tar", data), (f"{level}b.png", b"b")])
    return data


@pytest.mark.parametrize("depth", [1, 2, 3])
def test_tars_inside_a_tar_are_read(tmp_path: Path, depth: int) -> None:
    path = tmp_path / "a.tar"
    path.write_bytes(_nested(depth))
    contents, _ = _read_both_ways(path)
    assert contents["in.tar/" * depth + "deep.png"] == b"deep"
    assert len(contents) == 2 * depth + 1
    assert _read(path)[1]["inner_archives"] == depth


def test_tars_too_deep_inside_are_a_failed_row(tmp_path: Path) -> None:
    path = tmp_path / "a.tar"
    path.write_bytes(_nested(6))
    samples, _ = _read(path)
    assert list(codes(samples).values()) == ["unsupported_format"]
    assert "3 levels deep" in str([s.error for s in samples])
    assert _rows(_read(path, SMALL_UNITS)[0]) == _rows(samples)


def test_a_damaged_inner_tar_does_not_end_the_shard(tmp_path: Path) -> None:
    good = tar_bytes([(f"{i}.png", b"x" * 900) for i in range(4)])
    flipped = bytearray(good)
    flipped[1536 * 2 + 5] ^= 0xFF
    cases = {
        "flipped": (bytes(flipped), 2, "shard_corrupt"),
        "truncated": (good[: 1536 * 2 + 600], 2, "shard_truncated"),
        "without its end": (good[: 1536 * 3], 3, "shard_truncated"),
        "not a tar": (b"hello" * 300, 0, "shard_corrupt"),
        "empty": (b"", 0, "shard_truncated"),
    }
    for inner, n_good, code in cases.values():
        path = tmp_path / "a.tar"
        outer = [("first.png", b"1"), ("in.tar", inner), ("last.png", b"2"), ("x.tar", good)]
        path.write_bytes(tar_bytes(outer) * 2)
        contents, _ = _read_both_ways(path)
        samples, _ = _read(path)
        assert list(codes(samples).values()) == [code] * 2
        assert "in.tar: " in str(next(s.error for s in samples if s.error))
        assert len(contents) == len(samples) == 2 * (2 + n_good + 1 + 4)
        assert contents["last.png~2"] == b"2"


def _make_damaged(rng: random.Random, depth: int = 0) -> bytes:
    """A tar with tars in it, each perhaps without its end mark, cut off or with a flipped byte."""
    members = []
    for index in range(rng.randint(0, 3)):
        is_inner = depth < 3 and rng.random() < 0.6
        data = _make_damaged(rng, depth + 1) if is_inner else b"x" * rng.choice([0, 5, 512, 900])
        members.append((f"{index}.{'tar' if is_inner else 'png'}", data))
    damage = rng.choice(["none", "none", "end", "end", "cut", "flip"])
    data = tar_bytes(members) if damage == "none" or not members else _without_end_mark(members)
    if damage == "cut":
        data = data[: rng.randint(0, len(data))]
    if damage == "flip" and data:
        place = rng.randrange(len(data))
        data = data[:place] + bytes([data[place] ^ 0xFF]) + data[place + 1 :]
    return data


@pytest.mark.slow
@pytest.mark.parametrize("limits", [SMALL_UNITS, UnitLimits(images=1, bytes=1)])
def test_damage_anywhere_gives_each_row_a_name_of_its_own(tmp_path: Path, limits) -> None:
    rng = random.Random(6)
    path = tmp_path / "a.tar"
    n_failed = 0
    for _ in range(40):
        path.write_bytes(_make_damaged(rng))
        samples, _ = _read(path)
        assert len({sample.image_id for sample in samples}) == len(samples)
        n_failed += len(codes(samples))
        if path.stat().st_size:
            assert _rows(_read(path, limits)[0]) == _rows(samples)
    assert n_failed > 10


def test_members_are_chosen_by_their_whole_suffix(tmp_path: Path) -> None:
    members = [
        (f"{i}.{suffix}", suffix.encode())
        for i in range(3)
        for suffix in ("jpg", "seg.png", "image.png", "json")
    ]
    (tmp_path / "a.tar").write_bytes(tar_bytes(members))
    samples, notes = _read(tmp_path / "a.tar")
    assert len(samples) == 9
    assert notes["samples_with_several_images"] == 3  # a hint that masks may be among them
    samples, notes = _read(tmp_path / "a.tar", SMALL_UNITS, suffixes=("JPG",))
    assert [s.data for s in samples] == [b"jpg"] * 3
    assert notes["ignored_members.png"] == 6
    assert "samples_with_several_images" not in notes
    samples, _ = _read(tmp_path / "a.tar", suffixes=(".image.png", "seg.png"))
    assert [s.data for s in samples] == [b"seg.png", b"image.png"] * 3
    sources = [
        open_source(str(tmp_path / "a.tar"), SourceOptions(suffixes=suffixes), storage)
        for suffixes in ((), ("jpg",), ("seg.png",))
    ]
    assert len({source.fingerprint for source in sources}) == 3
    assert sources[0].fingerprint == "tar:bmp,jpeg,jpg,png,tif,tiff,webp"  # as it always was


def test_ignored_members_are_counted_by_extension_within_bounds(tmp_path: Path) -> None:
    names = [f"{i}.x{i}" for i in range(100)] + ["a.\x1b[31m", "no-extension", "b." + "y" * 200]
    (tmp_path / "a.tar").write_bytes(tar_bytes([(name, b"") for name in names]))
    _, notes = _read(tmp_path / "a.tar")
    assert notes["ignored_members"] == len(names)
    assert len(notes) <= 40
    assert all(name.isprintable() and len(name) < 40 for name in notes)


@pytest.mark.skipif(not SHARED.exists(), reason="the shared folder with the cases is not here")
@pytest.mark.parametrize(
    ("name", "n_rows"),
    [
        ("tar-concatenated/cat.tar", 7),
        ("tar-concatenated/onezero.tar", 2),
        ("tar-of-tars/ILSVRC_train.tar", 4),
        ("tar-absolute-names/abs.tar", 2),
        ("tar-image-and-mask/seg.tar", 4),
    ],
)
def test_the_cases_that_came_out_wrong(name: str, n_rows: int) -> None:
    for limits in (UnitLimits(), SMALL_UNITS):
        _, samples = open_and_read(str(SHARED / "cases" / name), storage, limits)
        assert len(samples) == n_rows
        assert codes(samples) == {}
