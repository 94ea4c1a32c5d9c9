"""No line of a manifest is lost without a word, and none reaches further than it may."""

from __future__ import annotations

import csv
import io
import json
import os
import random
from contextlib import suppress
from pathlib import Path

import pyarrow as pa
import pytest

from segcore.errors import UsageError
from segcore.sources import SourceOptions, open_source
from segcore.storage import Storage, StorageOptions, join
from tests.support.archives import codes, image_bytes, open_and_read, parquet_bytes
from tests.support.paths import SHARED

storage = Storage(StorageOptions(retries=1))


def _names(path: str, **options: object) -> tuple[list[str], list[str]]:
    """(the images of a manifest, relative to its folder; its notes)."""
    source, samples = open_and_read(path, storage, **options)
    assert codes(samples) == {}
    folder = path.rpartition("/")[0] + "/"
    return [s.uri.removeprefix(folder) for s in samples], source.notes


def test_a_name_with_a_hash_is_not_a_comment(folder: str) -> None:
    for name in ("#1.jpg", "2.jpg", "# 3.png"):
        storage.write(join(folder, name), image_bytes())
    lines = ["#1.jpg", "2.jpg", "# 3.png", "#4.jpg", "# a comment", "#", ""]
    storage.write(join(folder, "m.txt"), "\n".join(lines).encode())
    names, notes = _names(join(folder, "m.txt"))
    assert names == ["# 3.png", "#1.jpg", "2.jpg"]
    assert notes == [
        f"{folder}/m.txt: 3 x comment (a line that begins with '#' and names no file)."
    ]


@pytest.mark.parametrize("form", ["txt", "csv", "json"])
def test_backslashes_of_windows_are_separators(folder: str, form: str) -> None:
    storage.write(join(folder, "img/a.jpg"), b"a")
    storage.write(join(folder, "img/sub/b.jpg"), b"b")
    references = ["img\\a.jpg", ".\\img\\sub\\b.jpg"]
    uri = join(folder, f"m.{form}")
    if form == "json":
        document = {"images": [{"file_name": name} for name in references]}
        storage.write(uri, json.dumps(document).encode())
    else:
        storage.write(uri, "\n".join(["path"] * (form == "csv") + references).encode())
    assert _names(uri)[0] == ["img/a.jpg", "img/sub/b.jpg"]


def test_backslashes_that_help_nothing_are_the_reason_of_the_row(tmp_path: Path) -> None:
    (tmp_path / "in").mkdir()
    (tmp_path / "in" / "a\\b.png").write_bytes(b"a name with a backslash")
    (tmp_path / "secret.png").write_bytes(b"secret")
    lines = [
        "a\\b.png",
        "C:\\data\\1.jpg",
        "none\\x.jpg",
        "..\\secret.png",
        "\\\\host\\share\\x.jpg",
    ]
    (tmp_path / "in" / "m.txt").write_text("\n".join(lines))
    _, samples = open_and_read(str(tmp_path / "in" / "m.txt"), storage)
    assert [s.data for s in samples if s.error is None] == [b"a name with a backslash"]
    assert codes(samples) == {
        f"{tmp_path}/in/C:\\data\\1.jpg": "not_found",
        f"{tmp_path}/in/none\\x.jpg": "not_found",
        "../secret.png": "unsafe_uri",
        "//host/share/x.jpg": "unsafe_uri",
    }
    assert any("backslashes" in str(s.error) for s in samples)


@pytest.mark.parametrize("separator", [",", ";", "\t", "|"])
@pytest.mark.parametrize("extension", ["csv", "tsv"])
def test_the_separator_is_recognised(tmp_path: Path, separator: str, extension: str) -> None:
    (tmp_path / "a b.jpg").write_bytes(b"a")
    path = tmp_path / f"m.{extension}"
    for first in ("", f"sep={separator}\r\n", "\n\n"):
        path.write_text(f"{first}label{separator}path\r\n1{separator}a b.jpg\r\n", newline="")
        assert _names(str(path))[0] == ["a b.jpg"]
    path.write_text(f"label{separator}where\n1{separator}a b.jpg\n")
    assert _names(str(path), uri_column="where")[0] == ["a b.jpg"]
    with pytest.raises(UsageError, match=r"the columns are 'label.*where'"):
        open_source(str(path), SourceOptions(), storage)


def test_rows_without_a_value_are_counted(tmp_path: Path) -> None:
    (tmp_path / "a.jpg").write_bytes(b"a")
    (tmp_path / "m.csv").write_text("n,uri\n1,a.jpg\n2,\n\n3, \n")
    (tmp_path / "m.parquet").write_bytes(parquet_bytes({"uri": ["a.jpg", "", None]}))
    for name in ("m.csv", "m.parquet"):
        names, notes = _names(f"{tmp_path}/{name}")
        assert names == ["a.jpg"]
        assert notes == [f"{tmp_path}/{name}: 2 x row without a value in column 'uri'."]


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ('n,uri,text\n1,a.jpg,"open\n2,b.jpg,x\n3,c.jpg,close"\n', "line 2.*line 3 looks like"),
        ('n,text,uri\n1,"open,a.jpg\n2,b,b.jpg\n3,close",c.jpg\n', "line 2.*line 2 looks like"),
        ('n,text,uri\n1,"open,a.jpg\n2,close",b.jpg\n', "line 2.*line 2 looks like"),
        ('uri\n"a.jpg\nb.jpg"\nc.jpg\n', "line 2.*looks like a row"),
        ('uri\na.jpg\n"b.jpg\nc.jpg\n', "line 3: not valid CSV"),
        ('n,uri\n1,a.jpg\n2,"b"x.jpg\n', "line 3: not valid CSV"),
        ("uri,text\na.jpg,one, two\n", "line 2: 3 cells, but the header has 2 columns"),
    ],
)
def test_a_quote_that_swallows_lines_is_refused_with_the_line(
    tmp_path: Path, text: str, message: str
) -> None:
    (tmp_path / "m.csv").write_text(text)
    with pytest.raises(UsageError, match=message):
        open_source(str(tmp_path / "m.csv"), SourceOptions(), storage)


def _write_random_table(rng: random.Random, sink: io.StringIO) -> list[str]:
    """A well-formed table with awkward cells; returns its URIs."""
    separator = rng.choice(",;\t|")
    columns = ["caption", "n", "uri"]
    rng.shuffle(columns)
    writer = csv.writer(
        sink,
        delimiter=separator,
        quoting=rng.choice([csv.QUOTE_MINIMAL, csv.QUOTE_ALL]),
        lineterminator=rng.choice(["\n", "\r\n"]),
    )
    writer.writerow(columns)
    uris = []
    for index in range(rng.randint(1, 9)):
        uri = rng.choice(["", "d é/", "a,b;c|d/", '"q"/']) + f"{index}.jpg"
        caption = rng.choice(["", "x", 'say "hi"', "two\nlines, and more", "a;b\tc|d,", "\r\n"])
        row = {"caption": caption, "n": str(index), "uri": uri}
        writer.writerow([row[name] for name in columns])
        uris.append(uri)
    return uris


@pytest.mark.parametrize("seed", range(40))
def test_well_formed_tables_are_read_like_by_the_writer(tmp_path: Path, seed: int) -> None:
    sink = io.StringIO(newline="")
    uris = _write_random_table(random.Random(seed), sink)
    (tmp_path / "m.csv").write_text(sink.getvalue(), newline="")
    source = open_source(str(tmp_path / "m.csv"), SourceOptions(), storage)
    entries = [row["uri"] for b in source.entries().to_batches(100) for row in b.to_pylist()]
    assert sorted(entries) == sorted(f"{tmp_path}/{uri}" for uri in uris)


@pytest.mark.parametrize("seed", range(40))
def test_a_stray_quote_never_loses_a_row(tmp_path: Path, seed: int) -> None:
    """Each line is an entry, or the table is refused, or a note says that a row has more lines."""
    rng = random.Random(seed)
    lines = [f"{i},text {i},{i}.jpg" for i in range(20)]
    for _ in range(rng.randint(1, 3)):
        line = rng.randrange(20)
        at = rng.randrange(len(lines[line]) + 1)
        lines[line] = lines[line][:at] + '"' + lines[line][at:]
    (tmp_path / "m.csv").write_text("n,caption,uri\n" + "\n".join(lines) + "\n")
    with suppress(UsageError):
        source = open_source(str(tmp_path / "m.csv"), SourceOptions(), storage)
        assert source.entries().num_rows == 20


@pytest.mark.parametrize(
    "kind",
    [
        pa.string(),
        pa.large_string(),
        pa.string_view(),
        pa.binary(),
        pa.large_binary(),
        pa.binary_view(),
        pa.binary(5),
        pa.dictionary(pa.int8(), pa.string()),
        pa.dictionary(pa.int32(), pa.large_string()),
    ],
    ids=str,
)
def test_every_type_of_text_is_read_from_parquet(tmp_path: Path, kind: pa.DataType) -> None:
    names = ["a.jpg", "b.jpg"]
    for name in names:
        (tmp_path / name).write_bytes(b"x")
    values = [name.encode() for name in names]
    table = pa.table({"uri": pa.array(values, pa.binary()).cast(pa.string()), "n": [1, 2]})
    column = pa.array(values if "binary" in str(kind) and "dict" not in str(kind) else names, kind)
    table = table.set_column(0, "uri", column)
    (tmp_path / "m.parquet").write_bytes(parquet_bytes(table))
    assert _names(str(tmp_path / "m.parquet"), kind="manifest")[0] == names
    if "binary" not in str(kind):
        assert _names(str(tmp_path / "m.parquet"))[0] == names


def test_lists_reach_only_their_own_folder(tmp_path: Path) -> None:
    """What lies elsewhere is neither read nor looked up, and no byte of it lands in a row."""
    for place in ("in", "in/sub", "other", "in2"):
        storage.write(f"{tmp_path}/{place}/x.png", place.encode())
    os.symlink(tmp_path / "other", tmp_path / "in" / "link")
    os.symlink(tmp_path / "other" / "x.png", tmp_path / "in" / "link.png")
    inside = ["x.png", f"{tmp_path}/in/sub/x.png", f"file://{tmp_path}/in/sub/../x.png"]
    outside = [
        "/etc/hostname",
        f"{tmp_path}/other/x.png",
        f"{tmp_path}/in2/x.png",
        f"{tmp_path}/in/../other/x.png",
        f"file://{tmp_path}/other/x.png",
        f"{tmp_path}/in/link/x.png",
        f"{tmp_path}/in/link.png",
        "link/x.png",
        "link.png",
        "../other/x.png",
        "s3://bucket/x.png",
    ]
    text = "\n".join([*inside, *outside])
    document = json.dumps({"images": [{"file_name": name} for name in [*inside, *outside]]})
    storage.write(f"{tmp_path}/in/m.txt", text.encode())
    storage.write(f"{tmp_path}/in/m.json", document.encode())
    for name in ("m.txt", "m.json"):
        source, samples = open_and_read(f"{tmp_path}/in/{name}", storage)
        assert [s.data for s in samples if s.error is None] == [b"in/sub", b"in"]
        assert set(codes(samples).values()) == {"unsafe_uri"}
        assert len(codes(samples)) == len(outside)
        assert not any(f"{entry}" in repr(samples) for entry in (b"other", b"in2"))
        assert any("outside the folder or bucket" in note for note in source.notes)
        _, samples = open_and_read(f"{tmp_path}/in/{name}", storage, allow=(f"{tmp_path}/other",))
        assert set(codes(samples)) == {
            "/etc/hostname",
            f"{tmp_path}/in2/x.png",
            "s3://bucket/x.png",
        }
    storage.write(f"{tmp_path}/in/only.txt", b"/etc/hostname\n/etc/passwd\n")
    with pytest.raises(UsageError, match=r"names only images outside .* such as /etc/hostname"):
        open_source(f"{tmp_path}/in/only.txt", SourceOptions(), storage)


@pytest.mark.s3
def test_lists_reach_only_their_own_bucket(s3_prefix: str) -> None:
    storage.write(f"{s3_prefix}/x.png", b"x")
    bucket = s3_prefix.split("/")[2]
    entries = ["x.png", f"s3://{bucket}/elsewhere.png", "s3://other-bucket/x.png", "gs://g/x.png"]
    storage.write(f"{s3_prefix}/m.txt", "\n".join(entries).encode())
    _, samples = open_and_read(f"{s3_prefix}/m.txt", storage)
    assert codes(samples) == {
        f"s3://{bucket}/elsewhere.png": "not_found",
        "s3://other-bucket/x.png": "unsafe_uri",
        "gs://g/x.png": "unsafe_uri",
    }


@pytest.mark.skipif(not SHARED.exists(), reason="the shared folder with the cases is not here")
@pytest.mark.parametrize(
    ("name", "n_rows"),
    [
        ("manifest-hash-name/list.txt", 2),
        ("manifest-backslash/back.csv", 2),
        ("manifest-backslash/back.txt", 3),
        ("manifest-semicolon/semi.csv", 2),
        ("parquet-view-types/manifest_string_view.parquet", None),
        ("parquet-view-types/manifest_categorical.parquet", None),
    ],
)
def test_the_cases_that_came_out_wrong(name: str, n_rows: int | None) -> None:
    options = SourceOptions(allow=("s3://",))
    source = open_source(str(SHARED / "cases" / name), options, storage)
    assert source.kind == "manifest"
    assert source.entries().num_rows > 0 if n_rows is None else source.entries().num_rows == n_rows
