from __future__ import annotations

import pytest

from segcore.text import (
    align_columns,
    format_bytes,
    format_duration,
    parse_json,
    plural,
    printable,
    redact,
    redact_link,
)


@pytest.mark.parametrize(
    ("count", "text"),
    [
        (0, "0 units"),
        (1, "1 unit"),
        (2, "2 units"),
        (1_234_567, "1,234,567 units"),
        (1.0, "1 unit"),
        (0.25, "0.25 units"),
        (4.0, "4 units"),
    ],
)
def test_one_is_singular_and_every_other_count_is_plural(count, text):
    assert plural(count, "unit") == text


def test_irregular_plurals_are_given():
    assert [plural(count, "box", "boxes") for count in (1, 3)] == ["1 box", "3 boxes"]


@pytest.mark.parametrize(
    ("n_bytes", "text"),
    [
        (0, "0 bytes"),
        (1, "1 byte"),
        (1023, "1,023 bytes"),
        (1024, "1.0 KiB"),
        (1536, "1.5 KiB"),
        (128 << 20, "128.0 MiB"),
        (3 << 30, "3.0 GiB"),
        (5 << 40, "5.0 TiB"),
        (2048 << 40, "2,048.0 TiB"),
    ],
)
def test_bytes_are_given_in_the_largest_unit_that_fits(n_bytes, text):
    assert format_bytes(n_bytes) == text


@pytest.mark.parametrize(
    ("seconds", "text"), [(0, "0:00"), (59.6, "1:00"), (3599, "59:59"), (3600, "1:00:00")]
)
def test_durations_are_minutes_and_seconds_or_with_hours(seconds, text):
    assert format_duration(seconds) == text


def test_columns_are_aligned_without_trailing_spaces():
    assert align_columns([("images", "12"), ("ok", "")]) == "images  12\nok"


def test_characters_that_steer_a_terminal_are_replaced():
    assert printable("run\x1b[2J\nnäher") == "run?[2J?näher"


@pytest.mark.parametrize(
    "uri",
    [
        "https://host/path/a.png?X-Amz-Credential=SECRET&X-Amz-Signature=SECRET",
        "https://host/path/a.png?any=SECRET",
        "https://host/path/a.png#access=SECRET",
        "HTTPS://host/path/a.png#SECRET?SECRET",
        "https://user:SECRET@host/path/a.png",
        "https://user:SECRET?SECRET#SECRET@host/path/a.png",
        "https://SECRET@host/path/a.png?x",
        "ftp://user:SECRET@host/path/a.png?any=SECRET",
        "s3://key:SECRET@bucket/path/a.png",
        "s3://bucket/path/a.png?X-Amz-Security-Token=SECRET",
        "az://container/path/a.png?sv=2020&sig=SECRET",
        "/local/path/a.png?AWSAccessKeyId=SECRET&Signature=SECRET",
    ],
)
def test_secrets_of_links_are_hidden_and_the_rest_is_kept(uri: str) -> None:
    for shown in (redact(uri), redact_link(uri)):
        assert "SECRET" not in shown
        assert "path/a.png" in shown
        assert redact(shown) == shown


@pytest.mark.parametrize(
    "uri",
    [
        "s3://bucket/what?.png", "/a/b?c=d.png", "s3://bucket/a@b.png", "s3://bucket/a#1.png",
        "https://host/a@b.pt", "file:///a#b?c", "yolo11n-seg", "a.module:Class",
    ],
)  # fmt: skip
def test_harmless_names_stay(uri: str) -> None:
    assert redact(uri) == redact_link(uri) == uri


def test_a_shown_link_cannot_steer_a_terminal() -> None:
    assert redact_link("https://host/\x1b[31m.pt?x") == "https://host/?[31m.pt?…"
    assert redact("s3://bucket/\x1b.png") == "s3://bucket/\x1b.png"  # the name of an object


@pytest.mark.parametrize("text", ["[" * 100_000, '{"a":' * 100_000, "", "{", b"\xff", "1" * 5000])
def test_json_that_cannot_be_read_is_one_kind_of_error(text):
    with pytest.raises(ValueError, match=r"nested too deeply|Expecting|decode|Exceeds the limit"):
        parse_json(text)
