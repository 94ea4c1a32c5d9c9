from __future__ import annotations

import os

import pytest
from hypothesis import given
from hypothesis import strategies as st

from segcore.errors import UsageError
from segcore.storage.uris import basename, is_remote, join, normalize, parent


@pytest.mark.parametrize(
    ("given_uri", "expected"),
    [
        ("/a/../b/", "/b"),
        ("file:///a%20b/c", "/a b/c"),
        ("s3://bucket", "s3://bucket"),
        ("s3://bucket/", "s3://bucket"),
        ("S3A://bucket/a b/c%20/", "s3://bucket/a b/c%20"),
        ("gcs://bucket/x", "gs://bucket/x"),
    ],
)
def test_normalize_returns_the_canonical_form(given_uri: str, expected: str) -> None:
    assert normalize(given_uri) == expected


def test_relative_paths_start_at_the_working_directory() -> None:
    assert normalize("x/y") == os.path.join(os.getcwd(), "x", "y")
    assert normalize("~/y") == os.path.expanduser("~/y")


@pytest.mark.parametrize(
    ("uri", "reason"),
    [
        ("", "empty"),
        ("http://host/x", "http:// is not supported"),
        ("ftp://host/x", "ftp:// is not supported"),
        ("s3:///x", "names no bucket"),
        ("s3://b/a/../c", "'..'"),
        ("s3://b/a//c", "empty"),
        ("s3://KEY:SECRETVALUE@b/c", "credentials do not belong"),
        ("file://other/c", "other hosts"),
        ("/a\0b", "NUL"),
    ],
)
def test_errors_say_why_a_uri_is_refused(uri: str, reason: str) -> None:
    with pytest.raises(UsageError, match=reason) as caught:
        normalize(uri)
    assert "SECRETVALUE" not in caught.value.message


@pytest.mark.parametrize("part", ["..", "a/../b", "/etc", "s3://x/y", "", "a//b", "."])
def test_join_refuses_to_leave_its_base(part: str) -> None:
    for base in ("/base", "s3://bucket/base"):
        with pytest.raises(UsageError, match="not a plain relative path"):
            join(base, part)


@given(st.lists(st.text("ab./: ~", min_size=1), max_size=4))
def test_join_stays_below_its_base_or_refuses(parts: list[str]) -> None:
    for base in ("/base", "s3://bucket/base"):
        try:
            joined = join(base, *parts)
        except UsageError:
            continue
        assert joined == "/".join([base, *parts])
        assert normalize(joined).startswith(base)


def test_parent_basename_and_is_remote() -> None:
    assert parent("s3://b/a/c.json") == "s3://b/a"
    assert parent("s3://b/c.json") == "s3://b"
    assert parent("/x/c.json") == "/x"
    assert basename("s3://b/a/c.json") == "c.json"
    assert is_remote("s3://b/a")
    assert not is_remote("/b/a")
    assert not is_remote("file:///b/a")
