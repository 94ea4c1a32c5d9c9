from __future__ import annotations

import os
from pathlib import Path

import pytest

from segcore.distributed.pool import PoolSize
from segcore.errors import (
    AccessDenied,
    ErrorCode,
    NothingFound,
    ObjectNotFound,
    StorageError,
    UsageError,
)
from segcore.run.passes import source_options_for_pool
from segcore.sources import SourceOptions, objects, open_source, read_unit
from segcore.sources.units import Member, UnitLimits, make_unit
from segcore.storage import Storage, StorageOptions, join
from tests.support.archives import codes, image_bytes, open_and_read, parquet_bytes, tar_bytes

storage = Storage(StorageOptions(retries=0))


def test_a_folder_of_images_is_read_without_hidden_and_other_files(folder: str) -> None:
    names = ["b/2.PNG", "a.jpg", "c d/é.tiff", "x.webp", "x.bmp", "x.jpeg", "x.tif"]
    for seed, name in enumerate(names):
        storage.write(join(folder, name), image_bytes(seed, name.rpartition(".")[2].lower()))
    storage.write(join(folder, "notes.txt"), b"not an image")
    storage.write(join(folder, ".hidden.png"), b"hidden")
    storage.write(join(folder, ".cache/x.png"), b"hidden")
    source, samples = open_and_read(folder, storage)
    assert source.kind == "images"
    assert [s.image_id for s in samples] == sorted(join(folder, name) for name in names)
    assert all(s.error is None and s.uri == s.image_id and s.etag for s in samples)
    by_id = {s.image_id: s.data for s in samples}
    assert by_id[join(folder, "a.jpg")] == image_bytes(1, "jpg")
    assert source.notes == [
        f"Skipped 2 hidden files or folders in {folder}: names that start with a dot.",
        f"Skipped 1 other file in {folder}: 1 x .txt.",
    ]


def test_what_is_left_out_is_counted_by_extension(tmp_path: object) -> None:
    names = ["a.png", "b.heic", "c.heic", "README", "d.tar.gz", *(f"{i}.{i}" for i in range(9))]
    for name in [*names, "e.\x1b[31m"]:
        storage.write(f"{tmp_path}/{name}", b"x")
    source, _ = open_and_read(str(tmp_path), storage)
    assert source.notes == [
        f"Skipped 14 other files in {tmp_path}: 2 x .heic, 1 x without extension, 1 x .?[31m, "
        "1 x .0, 1 x .1, 8 x other extensions.",
        "Compressed archives are not read: unpack them to .tar or to files.",
        "To read .heic too: --set 'source.extensions=[jpg,jpeg,png,webp,tif,tiff,bmp,heic]' and "
        "pip install 'segcore[heic]'.",
    ]


def test_images_are_chosen_by_their_whole_suffix(folder: str) -> None:
    for name in ("1.jpg", "1.seg.png", "d.x/1.image.png", "2.JPG", "3.txt"):
        storage.write(join(folder, name), b"x")
    source, samples = open_and_read(folder, storage, suffixes=("jpg", "image.png"))
    assert [s.uri.removeprefix(folder + "/") for s in samples] == [
        "1.jpg", "2.JPG", "d.x/1.image.png",
    ]  # fmt: skip
    assert source.notes == [
        f"Skipped 1 other file in {folder}: 1 x .txt.",
        f"Skipped 1 image without one of source.suffixes in {folder}.",
    ]
    with pytest.raises(UsageError, match=r"has a suffix of \.zz"):
        open_source(folder, SourceOptions(suffixes=("zz",)), storage)


def test_pipes_and_devices_are_failed_rows_at_once(tmp_path: Path) -> None:
    storage.write(f"{tmp_path}/in/a.png", b"a")
    os.mkfifo(tmp_path / "in" / "b.png")
    os.mkfifo(tmp_path / "pipe")
    (tmp_path / "in" / "c.png").symlink_to(tmp_path / "pipe")
    (tmp_path / "in" / "d.png").symlink_to("/dev/zero")
    for allow_outside in (False, True):
        _, samples = open_and_read(f"{tmp_path}/in", storage, allow_outside=allow_outside)
        assert set(codes(samples).values()) == {"unsafe_uri"}
        assert [s.data for s in samples] == [b"a", None, None, None]
    storage.write(f"{tmp_path}/in/m.txt", b"a.png\nb.png\nc.png\nd.png")
    _, samples = open_and_read(f"{tmp_path}/in/m.txt", storage, allow_outside=True)
    assert [s.data for s in samples] == [b"a", None, None, None]
    assert set(codes(samples).values()) == {"unsafe_uri"}
    assert "named pipe" in str(samples[1].error)
    os.rename(tmp_path / "pipe", tmp_path / "x.tar")
    for name in ("x.tar", "in/b.png"):
        with pytest.raises(StorageError, match="named pipe"):
            open_source(str(tmp_path / name), SourceOptions(), storage)


def test_a_single_image_is_an_archive(folder: str) -> None:
    uri = join(folder, "a.png")
    storage.write(uri, image_bytes())
    storage.write(join(folder, "b.png"), image_bytes())
    source, samples = open_and_read(uri, storage)
    assert source.kind == "images"
    assert [(s.image_id, s.data) for s in samples] == [(uri, image_bytes())]


@pytest.mark.parametrize(
    ("limits", "sizes"),
    [
        (UnitLimits(images=4), [4, 4, 2]),
        (UnitLimits(images=1), [1] * 10),
        (UnitLimits(bytes=35), [3, 3, 3, 1]),
        (UnitLimits(bytes=1), [1] * 10),
    ],
)
def test_units_respect_their_limits(tmp_path: object, limits: UnitLimits, sizes: list[int]) -> None:
    for i in range(10):
        storage.write(f"{tmp_path}/{i}.png", b"x" * 10)
    source = open_source(str(tmp_path), SourceOptions(), storage)
    units = list(source.units(limits))
    assert [u.n_images for u in units] == sizes
    assert [u.n_bytes for u in units] == [10 * n for n in sizes]
    assert len({u.unit for u in units}) == len(units)
    assert list(source.units(limits)) == units


def test_an_unreadable_object_does_not_affect_others(folder: str) -> None:
    for name in ("1-good.png", "2-empty.png", "3-large.png", "4-gone.png", "5-good.png"):
        storage.write(join(folder, name), b"x" * {"2": 0, "3": 50}.get(name[0], 10))
    options = SourceOptions(max_image_bytes=20)
    (unit,) = open_source(folder, options, storage).units(UnitLimits())
    storage.delete(join(folder, "4-gone.png"))
    samples = list(read_unit(unit, storage, options))
    assert [s.data for s in samples] == [b"x" * 10, b"", None, None, b"x" * 10]
    assert codes(samples) == {
        join(folder, "3-large.png"): "too_many_bytes",
        join(folder, "4-gone.png"): "not_found",
    }


def test_an_outage_raises_and_gives_no_failed_rows(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"):
        monkeypatch.setenv(name, "x")
    unreachable = Storage(StorageOptions(endpoint_url="http://127.0.0.1:9", retries=0))
    members = [Member(f"s3://b/{i}", f"s3://b/{i}", "", -1) for i in range(5)]
    unit = make_unit("objects", stop=5, n_images=5, n_bytes=0, members=members)
    with pytest.raises(StorageError, match="cannot be reached"):
        list(read_unit(unit, unreachable, SourceOptions()))


def test_one_read_error_is_one_failed_row(
    tmp_path: object, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in "abcd":
        storage.write(f"{tmp_path}/{name}.png", name.encode())
    read = Storage.read_version

    def flaky(self: Storage, uri: str, max_bytes: int | None = None) -> tuple[bytes, str]:
        if uri.endswith(("a.png", "c.png")):
            raise StorageError(f"{uri}: input/output error")
        return read(self, uri, max_bytes)

    monkeypatch.setattr(Storage, "read_version", flaky)
    _, samples = open_and_read(str(tmp_path), storage)
    assert [s.error.code if s.error else s.data for s in samples] == [
        ErrorCode.READ_ERROR, b"b", ErrorCode.READ_ERROR, b"d",
    ]  # fmt: skip


@pytest.mark.parametrize("failure_counts", [{0: 1}, {1: 1, 2: 1}, {3: 1}, {0: 1, 1: 1, 3: 1}])
def test_an_image_whose_request_failed_is_requested_once_more(
    tmp_path: object, monkeypatch: pytest.MonkeyPatch, failure_counts: dict[int, int]
) -> None:
    """In a short outage some requests fail with all of their retries, and others do not."""
    names = [f"{tmp_path}/{name}.png" for name in "abcd"]
    for name in names:
        storage.write(name, name.encode())
    failures_left = {names[i]: count for i, count in failure_counts.items()}
    read = Storage.read_version

    def flaky(self: Storage, uri: str, max_bytes: int | None = None) -> tuple[bytes, str]:
        if failures_left.get(uri):
            failures_left[uri] -= 1
            raise StorageError(f"{uri}: cannot be reached")
        return read(self, uri, max_bytes)

    monkeypatch.setattr(Storage, "read_version", flaky)
    _, samples = open_and_read(str(tmp_path), storage)
    assert [s.data for s in samples] == [name.encode() for name in names]


def test_an_outage_at_the_end_of_a_unit_gives_no_failed_rows(
    tmp_path: object, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in "abcd":
        storage.write(f"{tmp_path}/{name}.png", name.encode())
    read = Storage.read_version
    is_down = False

    def fail_from_last(self: Storage, uri: str, max_bytes: int | None = None) -> tuple[bytes, str]:
        nonlocal is_down
        is_down = is_down or uri.endswith("d.png")
        if is_down:
            raise StorageError(f"{uri}: cannot be reached")
        return read(self, uri, max_bytes)

    def fail_when_down(self: Storage, uri: str, start: int, length: int) -> bytes:
        assert is_down
        raise StorageError(f"{uri}: cannot be reached")

    monkeypatch.setattr(Storage, "read_version", fail_from_last)
    monkeypatch.setattr(Storage, "read_range", fail_when_down)
    with pytest.raises(StorageError, match="cannot be reached"):
        open_and_read(str(tmp_path), storage)


@pytest.mark.parametrize(("size", "max_ahead"), [(100, 4), (600, 1), (5000, 1), (-1, 1)])
def test_reading_ahead_is_bounded_in_bytes(
    monkeypatch: pytest.MonkeyPatch, size: int, max_ahead: int
) -> None:
    """At most 450 bytes are read ahead; by number it would be 8 images."""
    monkeypatch.setattr(objects, "_MAX_PREFETCH_BYTES", 450)
    requested: list[str] = []

    def read(self: Storage, uri: str, max_bytes: int | None = None) -> tuple[bytes, str]:
        requested.append(uri)
        return b"x", ""

    monkeypatch.setattr(Storage, "read_version", read)
    members = [Member(f"s3://b/{i:02}", f"s3://b/{i:02}", "", size) for i in range(20)]
    unit = make_unit("objects", stop=20, n_images=20, n_bytes=0, members=members)
    samples = read_unit(unit, storage, SourceOptions(read_threads=4))
    for n_taken, (sample, member) in enumerate(zip(samples, members, strict=True)):
        assert sample.image_id == member.image_id
        assert len(requested) <= n_taken + max_ahead
    assert len(requested) == 20


def test_more_images_are_read_concurrently_for_a_gpu() -> None:
    cpu, gpu = PoolSize(1, 1, 1, 0, "cpu"), PoolSize(1, 1, 1, 1, "cuda")
    assert source_options_for_pool(SourceOptions(), cpu).read_threads is None
    assert source_options_for_pool(SourceOptions(), gpu).read_threads == 64
    assert source_options_for_pool(SourceOptions(read_threads=3), gpu).read_threads == 3


@pytest.mark.s3
def test_losing_permission_raises_and_gives_no_failed_rows(
    s3_prefix: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in "ab":
        storage.write(f"{s3_prefix}/{name}.png", b"1")
    (unit,) = open_source(s3_prefix, SourceOptions(), storage).units(UnitLimits())
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "expired")
    with pytest.raises(AccessDenied):
        list(read_unit(unit, Storage(StorageOptions(retries=0)), SourceOptions()))


def test_links_that_lead_outside_are_failed_rows_unless_allowed(tmp_path: object) -> None:
    storage.write(f"{tmp_path}/secret/x.png", b"outside")
    storage.write(f"{tmp_path}/in/a.png", b"inside")
    os.symlink(f"{tmp_path}/in/a.png", f"{tmp_path}/in/b.png")
    os.symlink(f"{tmp_path}/secret/x.png", f"{tmp_path}/in/c.png")
    os.symlink(f"{tmp_path}/secret", f"{tmp_path}/in/d")
    root = f"{tmp_path}/in"
    source, samples = open_and_read(root, storage)
    assert [s.data for s in samples] == [b"inside", b"inside", None]
    assert codes(samples) == {f"{root}/c.png": "unsafe_uri"}
    assert "allow_outside" in str(samples[2].error)
    assert source.notes[0].startswith(f"Skipped 1 link to a folder in {root} ")
    source, samples = open_and_read(root, storage, allow_outside=True)
    assert [s.data for s in samples] == [b"inside", b"inside", b"outside", b"outside"]
    assert source.notes == []


def test_names_that_are_not_utf8_are_failed_rows(tmp_path: object) -> None:
    storage.write(f"{tmp_path}/good.png", b"1")
    with open(f"{tmp_path}".encode() + b"/bad\xff.png", "wb") as file:
        file.write(b"1")
    _, samples = open_and_read(str(tmp_path), storage)
    assert len(samples) == 2
    assert codes(samples) == {f"{tmp_path}/bad\\udcff.png": "unsafe_uri"}


def test_an_input_without_images_is_an_error(folder: str) -> None:
    with pytest.raises(ObjectNotFound, match="does not exist") as caught:
        open_source(join(folder, "*.png"), SourceOptions(), storage)
    assert "Wildcards" in caught.value.hint
    storage.write(join(folder, "a.xml"), b"1")
    storage.write(join(folder, "b.xml"), b"1")
    with pytest.raises(UsageError, match=r"No images found in .*\.jpg, .*found 2 x \.xml\."):
        open_source(folder, SourceOptions(), storage)
    with pytest.raises(UsageError, match="cannot be told from its name"):
        open_source(join(folder, "a.xml"), SourceOptions(), storage)


def test_an_empty_folder_is_an_error(tmp_path: object) -> None:
    with pytest.raises(UsageError, match=r"No images found .* found no files\."):
        open_source(str(tmp_path), SourceOptions(), storage)


def test_compressed_archives_are_refused(folder: str) -> None:
    storage.write(join(folder, "a.tar.gz"), b"1")
    with pytest.raises(UsageError, match="compressed"):
        open_source(join(folder, "a.tar.gz"), SourceOptions(), storage)


def test_a_mixture_of_kinds_needs_a_choice(folder: str) -> None:
    storage.write(join(folder, "a.png"), image_bytes())
    storage.write(join(folder, "b.tar"), tar_bytes([("c.png", image_bytes(1))]))
    storage.write(join(folder, "d.parquet"), parquet_bytes({"image": [image_bytes(2)]}))
    with pytest.raises(UsageError, match="mixture: 1 tar shard, 1 Parquet file, 1 image") as caught:
        open_source(folder, SourceOptions(), storage)
    assert "--set source.kind=tar" in caught.value.hint
    for kind, seed in (("images", 0), ("tar", 1), ("parquet", 2)):
        source, samples = open_and_read(folder, storage, kind=kind)
        assert source.kind == kind
        assert [s.data for s in samples] == [image_bytes(seed)]
    with pytest.raises(UsageError, match="needs the file itself"):
        open_source(folder, SourceOptions(kind="coco"), storage)


def test_other_extensions_can_be_set(folder: str) -> None:
    storage.write(join(folder, "a.IMG"), b"1")
    storage.write(join(folder, "b.png"), b"2")
    _, samples = open_and_read(folder, storage, extensions=(".img",))
    assert [s.data for s in samples] == [b"1"]
    with pytest.raises(ValueError, match="letters and digits"):
        SourceOptions(extensions=("*",))


def test_an_unsupported_scheme_is_an_error_without_secrets() -> None:
    with pytest.raises(UsageError, match="https:// is not supported") as caught:
        open_source("https://h/a?X-Amz-Signature=SECRET", SourceOptions(), storage)
    assert "SECRET" not in caught.value.message


def test_an_input_without_images_is_an_error_unless_allowed(tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    (tmp_path / "m.txt").write_text("# nothing\n")
    (tmp_path / "m.json").write_text('{"images": []}')
    for name in ("empty", "m.txt", "m.json"):
        with pytest.raises(NothingFound) as caught:
            open_source(str(tmp_path / name), SourceOptions(), storage)
        assert caught.value.exit_code == 1
        assert open_and_read(str(tmp_path / name), storage, allow_empty=True)[1] == []


def test_names_that_are_not_utf8_hide_no_other_file(tmp_path: Path) -> None:
    folder = tmp_path / "in"
    folder.mkdir()
    contents = {b"\xff.png": b"1", b"\\udcff.png": b"2", b"a\xfe.png": b"3", b"a.png": b"4"}
    for name, data in contents.items():
        with open(os.fsencode(folder) + b"/" + name, "wb") as file:
            file.write(data)
    _, samples = open_and_read(str(folder), Storage())
    read = {sample.image_id.removeprefix(f"{folder}/"): sample.data for sample in samples}
    expected = {"\\udcff.png": b"2", "\\udcff~.png": None, "a\\udcfe.png": None, "a.png": b"4"}
    assert read == expected
