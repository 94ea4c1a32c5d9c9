"""SECURITY.md names options that exist, and bounds that the code has."""

from __future__ import annotations

import re

from segcore.config import Config
from segcore.config.loading import dotted_keys
from segcore.images.jpeg import _MAX_SCANS
from segcore.models.downloads import MAX_BYTES
from segcore.models.pickle_machine import MAX_STEPS
from segcore.output.documents import MAX_DOCUMENT_BYTES
from segcore.plain_yaml import MAX_CHARACTERS
from segcore.sources.manifest import _MAX_LINE_CHARS
from segcore.sources.tar_members import _MAX_DEPTH, _MAX_HEADER_BYTES
from tests.support.paths import ROOT

PAGE = (ROOT / "SECURITY.md").read_text()
GROUPS = {name for name in dotted_keys(Config) if "." not in name}


def test_options_exist() -> None:
    named = set(re.findall(r"`([a-z]+\.[a-z_]+)`", PAGE))
    options = {name for name in named if name.partition(".")[0] in GROUPS}
    assert len(options) >= 10
    assert options <= set(dotted_keys(Config))


def test_bounds_are_those_of_the_code() -> None:
    assert (_MAX_SCANS, _MAX_HEADER_BYTES, _MAX_DEPTH) == (500, 1 << 20, 3)
    assert (MAX_CHARACTERS, _MAX_LINE_CHARS, MAX_DOCUMENT_BYTES) == (1 << 20, 1 << 20, 16 << 20)
    assert (MAX_BYTES, MAX_STEPS) == (4 << 30, 1_000_000)


def test_the_readme_links_to_it() -> None:
    assert "(SECURITY.md)" in (ROOT / "README.md").read_text()
