"""The pages of cluster/ name commands that segcore takes, and files that are there."""

from __future__ import annotations

import re
import shlex
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.cluster.manifests import CLUSTER
from tests.docs.test_commands import check_segcore
from tests.support import markdown
from tests.support.paths import ROOT

PAGES = [page for page in markdown.PAGES if page.startswith("cluster/")]
MAX_LINES = 70  # one screen


def inner_commands() -> Iterator[tuple[str, list[str]]]:
    """(page, words behind `segcore`) of the commands that other programs are given."""
    for page in PAGES:
        for block in markdown.blocks(page):
            for line in block.commands():
                words = shlex.split(line)
                if words[0] == "sbatch":
                    script = next(i for i, word in enumerate(words) if word.endswith(".sbatch"))
                    yield page, words[script + 1 :]
                elif words[:2] == ["ray", "exec"]:
                    yield page, shlex.split(words[3])[1:]
                elif words[:2] == ["docker", "run"]:
                    yield page, words[words.index("segcore") + 1 :]


@pytest.mark.parametrize(("page", "words"), list(inner_commands()))
def test_commands_for_other_programs_are_taken(page: str, words: list[str]) -> None:
    check_segcore(words)


def test_each_way_has_such_a_command() -> None:
    pages = {page for page, _ in inner_commands()}
    assert pages == {f"cluster/{name}/README.md" for name in ("aws", "docker", "slurm")}


def test_comments_of_the_batch_script_are_taken() -> None:
    text = (CLUSTER / "slurm" / "segcore.sbatch").read_text()
    lines = re.findall(r"^#     sbatch .*?segcore\.sbatch (.+)$", text, re.MULTILINE)
    assert len(lines) == 2
    for line in lines:
        check_segcore(shlex.split(line))


@pytest.mark.parametrize("page", [page for page in PAGES if page != "cluster/README.md"])
def test_a_page_is_one_screen_and_names_each_file_beside_it(page: str) -> None:
    text = markdown.read(page)
    assert len(text.splitlines()) <= MAX_LINES
    folder = (ROOT / page).parent
    files = {path.name for path in folder.iterdir() if path.is_file()} - {"README.md"}
    assert {name for name in files if name not in text} == set()
    named = re.findall(r"(?<![\w:])cluster/[\w./-]+\w", text)
    assert [name for name in named if not Path(ROOT / name).exists()] == []
