from __future__ import annotations

import io
import itertools
import tarfile
from collections import Counter
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from segcore.errors import StorageError
from segcore.sources import Sample, SourceOptions, open_source, read_unit, tar
from segcore.sources.tar import read_tar
from segcore.sources.units import UnitLimits, make_unit
from segcore.storage import Storage, StorageOptions, join
from tests.support.archives import codes, image_bytes, open_and_read, tar_bytes

storage = Storage(StorageOptions(retries=1))
SMALL_UNITS = UnitLimits(images=3, bytes=4096)  # cuts tars of a few members


def _content(samples: list[Sample], uri: str) -> dict[str, bytes | None]:
    return {s.image_id.removeprefix(uri + "#"): s.data for s in samples}


def test_webdataset_shards_are_read_without_other_members(folder: str) -> None:
    for shard in range(2):
        members = [
            ("0001.jpg", image_bytes(shard, "jpg")),
            ("0001.json", b"{}"),
            ("0001.cls", b"3"),
            ("sub/0002.PNG", image_bytes(shard)),
            ("sub/._0002.png", b"a resource fork of macOS"),
        ]
        storage.write(join(folder, f"{shard}.tar"), tar_bytes(members))
    source, samples = open_and_read(folder, storage)
    assert source.kind == "tar"
    assert [s.image_id for s in samples] == [
        join(folder, f"{shard}.tar#{name}")
        for shard in "01"
        for name in ("0001.jpg", "sub/0002.PNG")
    ]
    assert samples[0].data == image_bytes(0, "jpg")
    assert samples[0].uri == join(folder, "0.tar")
    assert samples[0].etag == storage.stat(samples[0].uri).etag
    units = list(source.units(UnitLimits()))
    assert [(u.kind, u.start, u.stop, u.n_images) for u in units] == [
        ("tar", 0, 10240, None), ("tar", 0, 10240, None),
    ]  # fmt: skip
    notes: Counter[str] = Counter()
    list(read_unit(units[0], storage, SourceOptions(), notes))
    assert +notes == Counter(
        {
            "ignored_members": 3,
            "ignored_members.cls": 1,
            "ignored_members.hidden": 1,
            "ignored_members.json": 1,
        }
    )


@pytest.mark.parametrize("format_", [tarfile.GNU_FORMAT, tarfile.PAX_FORMAT, tarfile.USTAR_FORMAT])
def test_cut_and_whole_shards_give_the_same_images(folder: str, format_: int) -> None:
    long = "" if format_ == tarfile.USTAR_FORMAT else "long/" * 60
    members = [(f"./{long}{i:02}.png", bytes([i]) * (i * 100)) for i in range(20)]
    members += [("03.txt", b"1"), (f"{long}04.png", b"again"), (f"{long}04.png", b"and again")]
    uri = join(folder, "a.tar")
    storage.write(uri, tar_bytes(members, format=format_))
    source, uncut = open_and_read(uri, storage)
    units = list(source.units(SMALL_UNITS))
    assert len(units) > 5
    assert units[0].start == 0
    assert units[-1].stop == storage.stat(uri).size
    assert all(a.stop == b.start for a, b in itertools.pairwise(units))
    from_cut_units = []
    for unit in units:
        samples = list(read_unit(unit, storage, SourceOptions()))
        assert len(samples) == unit.n_images <= 3
        from_cut_units += samples
    assert from_cut_units == uncut
    assert _content(uncut, uri)[f"{long}07.png"] == bytes([7]) * 700
    assert _content(uncut, uri)[f"{long}04.png~2"] == b"again"
    assert _content(uncut, uri)[f"{long}04.png~3"] == b"and again"
    assert [s.warning for s in uncut[-2:]] == ["duplicate_name"] * 2
    assert len({s.image_id for s in uncut}) == len(uncut) == 22


def test_cutting_a_shard_again_gives_the_same_units(tmp_path: object) -> None:
    uri = f"{tmp_path}/a.tar"
    storage.write(uri, tar_bytes([(f"{i}.png", b"x" * 999) for i in range(30)]))
    source = open_source(uri, SourceOptions(), storage)
    assert list(source.units(SMALL_UNITS)) == list(source.units(SMALL_UNITS))


def test_shards_of_a_large_archive_are_units_as_they_are(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name, n_images in {"a": 8, "b": 9, "c": 3, "d": 40}.items():
        members = [(f"{i}.png", b"x" * 999) for i in range(n_images)]
        storage.write(f"{tmp_path}/{name}.tar", tar_bytes(members))
    limits = UnitLimits(images=3, bytes=10_000, shard_bytes=30_000)

    def units_of(name: str) -> list[tuple[int, int]]:
        source = open_source(str(tmp_path), SourceOptions(), storage)
        units = [unit for unit in source.units(limits) if unit.shard.endswith(f"{name}.tar")]
        return [(unit.start, unit.stop) for unit in units]

    assert [len(units_of(name)) for name in "abcd"] == [3, 3, 1, 14]
    monkeypatch.setattr(tar, "_MAX_INDEXED_BYTES", 20_000)
    assert [len(units_of(name)) for name in "abc"] == [1, 1, 1]
    assert units_of("a") == [(0, storage.stat(f"{tmp_path}/a.tar").size)]
    assert len(units_of("d")) == 14  # too large to be one unit


@pytest.mark.parametrize("limits", [UnitLimits(), SMALL_UNITS])
def test_a_truncated_shard_yields_its_good_members(folder: str, limits: UnitLimits) -> None:
    data = tar_bytes([(f"{i}.png", bytes([i]) * 1000) for i in range(10)])
    uri = join(folder, "a.tar")
    # A member is a header of 512 bytes and 1024 bytes of content. Cut it inside the content, inside
    # the header, and between members.
    for cut in (1536 * 6 + 700, 1536 * 6 + 100, 1536 * 6):
        storage.write(uri, data[:cut])
        source, samples = open_and_read(uri, storage, limits)
        assert _content(samples[:-1], uri) == {f"{i}.png": bytes([i]) * 1000 for i in range(6)}
        assert codes(samples) == {f"{uri}#{1536 * 6}": "shard_truncated"}
        *_, last_unit = source.units(limits)
        assert last_unit.n_images is None


@pytest.mark.parametrize("limits", [UnitLimits(), SMALL_UNITS])
def test_a_damaged_header_is_a_failed_row(folder: str, limits: UnitLimits) -> None:
    data = bytearray(tar_bytes([(f"{i}.png", bytes([i]) * 1000) for i in range(10)]))
    data[1536 * 4 + 10] ^= 0xFF
    uri = join(folder, "a.tar")
    storage.write(uri, bytes(data))
    _, samples = open_and_read(uri, storage, limits)
    assert list(_content(samples[:-1], uri)) == [f"{i}.png" for i in range(4)]
    assert codes(samples) == {f"{uri}#{1536 * 4}": "shard_corrupt"}


@pytest.mark.parametrize(
    ("data", "code"),
    [(b"", "shard_truncated"), (b"x", "shard_truncated"), (b"hello" * 1000, "shard_corrupt")],
)
def test_a_file_that_is_not_a_tar_is_one_failed_row(folder: str, data: bytes, code: str) -> None:
    uri = join(folder, "a.tar")
    storage.write(uri, data)
    _, samples = open_and_read(uri, storage)
    assert codes(samples) == {f"{uri}#0": code}


def test_an_empty_tar_has_no_images(folder: str) -> None:
    storage.write(join(folder, "a.tar"), tar_bytes([]))
    _, samples = open_and_read(join(folder, "a.tar"), storage)
    assert samples == []


def test_unsafe_members_are_failed_rows(tmp_path: object) -> None:
    def special(name: str, kind: bytes, target: str = "") -> tarfile.TarInfo:
        info = tarfile.TarInfo(name)
        info.type, info.linkname = kind, target
        return info

    uri = f"{tmp_path}/a.tar"
    members = [
        ("good.png", b"1"),
        ("../up.png", b"2"),
        ("/etc/abs.png", b"3"),
        ("a/../../up.png", b"4"),
        special("sym.png", tarfile.SYMTYPE, "/etc/passwd"),
        special("hard.png", tarfile.LNKTYPE, "good.png"),
        special("dev.png", tarfile.CHRTYPE),
        special("fifo.png", tarfile.FIFOTYPE),
        special("folder.png", tarfile.DIRTYPE),
        special("link", tarfile.SYMTYPE, "/etc"),
        ("good2.png", b"5"),
    ]
    storage.write(uri, tar_bytes(members, format=tarfile.GNU_FORMAT))
    for limits in (UnitLimits(), SMALL_UNITS):
        _, samples = open_and_read(uri, storage, limits)
        names = ["../up", "a/../../up", "sym", "hard", "dev", "fifo"]
        assert codes(samples) == {f"{uri}#{name}.png": "unsafe_member" for name in names}
        good = {k: v for k, v in _content(samples, uri).items() if v is not None}
        # nothing is extracted, so an absolute name is only a name
        assert good == {"good.png": b"1", "/etc/abs.png": b"3", "good2.png": b"5"}


def test_sparse_members_are_failed_rows(tmp_path: object) -> None:
    header = tarfile.TarInfo("sparse.png")
    header.size = 512
    block = bytearray(header.tobuf(tarfile.GNU_FORMAT))
    block[156:157] = tarfile.GNUTYPE_SPARSE
    block[386:398], block[398:410] = b"00000000000\0", b"00000001000\0"  # offset 0, 512 bytes
    block[483:495] = b"77777777777\0"  # claims to be 8 GB when unpacked
    block[148:156] = b" " * 8
    block[148:156] = b"%06o\0 " % sum(block)
    uri = f"{tmp_path}/a.tar"
    storage.write(uri, bytes(block) + b"x" * 512 + tar_bytes([("good.png", b"1")]))
    _, samples = open_and_read(uri, storage)
    assert codes(samples) == {f"{uri}#sparse.png": "unsafe_member"}
    assert samples[1].data == b"1"


def test_members_over_the_limit_are_not_read(tmp_path: object) -> None:
    uri = f"{tmp_path}/a.tar"
    storage.write(uri, tar_bytes([("a.png", b"x" * 100), ("b.png", b"x" * 10)]))
    _, samples = open_and_read(uri, storage, max_image_bytes=50)
    assert codes(samples) == {f"{uri}#a.png": "too_many_bytes"}
    assert samples[1].data == b"x" * 10


@pytest.mark.parametrize("kind", [tarfile.GNUTYPE_LONGNAME, tarfile.XHDTYPE])
@pytest.mark.parametrize("size", [8 << 30, -512])
def test_absurd_sizes_in_headers_neither_hang_nor_fill_the_memory(
    tmp_path: object, kind: bytes, size: int
) -> None:
    header = tarfile.TarInfo("x.png")
    header.type, header.size = kind, size
    uri = f"{tmp_path}/a.tar"
    good = tar_bytes([("good.png", b"1")])[:1024]
    storage.write(uri, good + header.tobuf(tarfile.GNU_FORMAT) + b"\0" * 20_000)
    _, samples = open_and_read(uri, storage)
    assert samples[0].data == b"1"
    assert list(codes(samples).values()) == ["shard_corrupt"]


def test_a_negative_member_size_is_a_failed_row(tmp_path: object) -> None:
    header = tarfile.TarInfo("x.png")
    header.size = -1024
    uri = f"{tmp_path}/a.tar"
    good = tar_bytes([("good.png", b"1")])[:1024]
    storage.write(uri, good + header.tobuf(tarfile.GNU_FORMAT) + b"\0" * 20_000)
    _, samples = open_and_read(uri, storage)
    assert list(codes(samples).values()) == ["shard_corrupt"]


_BASE = tar_bytes([(f"{i}.png", bytes([i]) * 600) for i in range(5)], format=tarfile.PAX_FORMAT)


@pytest.mark.slow
@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], max_examples=200)
@given(
    at=st.integers(0, len(_BASE) - 1),
    patch=st.binary(min_size=1, max_size=20),
    end=st.integers(0, len(_BASE)),
)
def test_any_damage_gives_samples_and_never_crashes(
    tmp_path: object, at: int, patch: bytes, end: int
) -> None:
    data = bytearray(_BASE[:end])
    data[at : at + len(patch)] = patch
    uri = f"{tmp_path}/fuzz.tar"
    storage.write(uri, bytes(data))
    info = storage.stat(uri)
    unit = make_unit("tar", shard=uri, etag=info.etag, stop=info.size, n_images=None, n_bytes=0)
    notes: Counter[str] = Counter()
    samples = list(read_tar(unit, storage, SourceOptions(), notes))
    good = [s for s in samples if s.error is None]
    # every image that is missing is accounted for by a failed row
    assert len(good) < len(samples) or len(good) + notes["ignored_members"] == 5
    assert len({s.image_id for s in samples}) == len(samples)


def test_a_shard_that_changed_after_planning_raises(folder: str) -> None:
    uri = join(folder, "a.tar")
    storage.write(uri, tar_bytes([("a.png", b"1")]))
    (unit,) = open_source(uri, SourceOptions(), storage).units(UnitLimits())
    storage.write(uri, tar_bytes([("a.png", b"2"), ("b.png", b"3" * 20_000)]))
    with pytest.raises(StorageError, match="changed while the run"):
        list(read_unit(unit, storage, SourceOptions()))
    storage.delete(uri)
    with pytest.raises(StorageError, match="does not exist"):
        list(read_unit(unit, storage, SourceOptions()))


def test_nothing_is_written_to_disk(tmp_path: object, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("extract", "extractall", "extractfile"):
        monkeypatch.delattr(tarfile.TarFile, name)
    uri = f"{tmp_path}/a.tar"
    storage.write(uri, tar_bytes([("a.png", b"1")]))
    _, samples = open_and_read(uri, storage)
    assert samples[0].data == b"1"


def test_names_that_are_not_utf8_are_escaped(tmp_path: object) -> None:
    sink = io.BytesIO()
    with tarfile.open(fileobj=sink, mode="w", format=tarfile.GNU_FORMAT, encoding="latin-1") as t:
        t.addfile(tarfile.TarInfo("é.png"))
    uri = f"{tmp_path}/a.tar"
    storage.write(uri, sink.getvalue())
    _, samples = open_and_read(uri, storage)
    assert samples[0].image_id == f"{uri}#\\udce9.png"
    assert samples[0].data == b""
