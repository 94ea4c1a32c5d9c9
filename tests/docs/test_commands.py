"""Every command line on a page has options, keys and values that the command takes."""

from __future__ import annotations

import re
import shlex
from collections.abc import Iterator, Sequence
from importlib.util import find_spec
from typing import Any

import pytest
import typer
import typer.main

from segcore.cli import main
from segcore.config import Config, load_config
from segcore.config.jobs import SCHEMAS
from segcore.config.loading import dotted_keys
from segcore.config.reference import list_options
from segcore.errors import SegcoreError
from tests.support import markdown
from tests.support.markdown import Block
from tests.support.paths import ROOT

SHELLS = ("console", "bash")
LANGUAGES = {*SHELLS, "python", "yaml", ""}  # "": a drawing or a table of files
# Which test runs the Python of a page.
PYTHON_TESTS = {
    "README.md": "tests/docs/test_readme.py",
    "docs/models.md": "tests/cli/test_models.py",
    "docs/output.md": "tests/docs/test_output_page.py",
    "docs/python.md": "tests/docs/test_python_page.py",
    "docs/quickstart.md": "tests/docs/test_quickstart.py",
}
SHELL_TESTS = {
    "docs/loop.md": "tests/docs/test_loop_page.py",
    "docs/quickstart.md": "tests/docs/test_quickstart.py",
}
# Programs of others; what follows their names is not ours to check.
OTHER_PROGRAMS = frozenset(
    (
        ".",
        "airflow",
        "argo",
        "cat",
        "cd",
        "cp",
        "cvat-cli",
        "docker",
        "export",
        "git",
        "kubectl",
        "labelme",
        "mkdir",
        "pip",
        "pre-commit",
        "ray",
        "sbatch",
        "scancel",
        "tar",
    )
)
CLICK_ERROR: Any = typer.BadParameter.__mro__[2]  # of whichever click typer uses
SEGCORE = typer.main.get_command(main.app)
KEYS = {key for schema in SCHEMAS.values() for key in dotted_keys(schema)}
GROUPS = {key.partition(".")[0] for key in KEYS if "." in key}
NOT_KEYS = {"storage.key", "ray.init", "ray.data", "model.predict"}
FILES = (".json", ".jsonl", ".parquet", ".png", ".pt", ".pth", ".safetensors", ".yaml")

ALL_BLOCKS = [block for page in markdown.PAGES for block in markdown.blocks(page)]


def _id(block: Block) -> str:
    return f"{block.page}:{block.line}"


class WrongCommand(Exception):
    """A command line that would be refused."""


def _descend(words: Sequence[str]) -> tuple[Any, list[str]]:
    """The command that a line calls, and the words behind its name."""
    command: Any = SEGCORE
    rest = list(words)
    while hasattr(command, "commands"):
        if command.name == "bench" and rest[:1] and rest[0] not in command.commands:
            rest = ["images", *rest]  # see segcore.cli.bench.BenchGroup
        if not rest or rest[0].startswith("--"):
            return command, rest
        if rest[0] not in command.commands:
            raise WrongCommand(f"there is no command {rest[0]!r}")
        command, rest = command.commands[rest[0]], rest[1:]
    return command, rest


def check_segcore(words: Sequence[str]) -> None:
    """Refuse the words behind ``segcore`` if the command would before it starts; runs nothing."""
    command, rest = _descend(words)
    if hasattr(command, "commands"):  # options of the program itself; they act when parsed
        check_mention(words)
        return
    try:
        context = command.make_context(command.name, list(rest))
    except CLICK_ERROR as error:
        raise WrongCommand(error.format_message()) from error
    _check_sets(command.name, context.params.get("sets") or ())


def check_mention(words: Sequence[str]) -> None:
    """Refuse a command line in a sentence, where values may be left out, if a name is unknown."""
    command, rest = _descend(words)
    known = {flag for option in command.params for flag in option.opts + option.secondary_opts}
    for word in rest:
        if word.startswith("--") and word.partition("=")[0] not in {*known, "--help"}:
            raise WrongCommand(f"{command.name} has no option {word}")


def _check_sets(command: str, sets: Sequence[str]) -> None:
    schema = SCHEMAS.get(command, Config)
    required = [option.key for option in list_options(schema) if option.default is None]
    filled = [f"{key}=x" for key in required if not any(s.startswith(f"{key}=") for s in sets)]
    try:
        load_config(sets=[*filled, *sets], schema=schema)
    except SegcoreError as error:
        raise WrongCommand(error.message) from error


def check_line(line: str) -> None:
    """Refuse a line of a shell block that names a command, target, script or module wrongly."""
    words = shlex.split(line, comments=True)
    if ">" in words:
        words = words[: words.index(">")]
    program = words[0]
    if program == "segcore":
        check_segcore(words[1:])
    elif program == "make":
        targets = re.findall(r"^([\w-]+):", (ROOT / "Makefile").read_text(), re.MULTILINE)
        if unknown := [word for word in words[1:] if "=" not in word and word not in targets]:
            raise WrongCommand(f"make has no target {unknown[0]}")
    elif program in ("python", "python3"):
        _check_python(words[1:])
    elif program == "pytest":
        _check_pytest(words[1:])
    elif program not in OTHER_PROGRAMS and not (ROOT / program).is_file():
        raise WrongCommand(f"{program} is not a program that the pages use")


def _check_python(words: Sequence[str]) -> None:
    if words[0] == "-c":
        compile(words[1], "-c", "exec")
    elif words[:2] == ["-m", "pytest"]:
        _check_pytest(words[2:])
    elif words[0] == "-m":
        if find_spec(words[1]) is None:
            raise WrongCommand(f"there is no module {words[1]}")
    elif not (ROOT / words[0]).is_file():
        raise WrongCommand(f"there is no script {words[0]}")


def _check_pytest(words: Sequence[str]) -> None:
    paths = [word.partition("::")[0] for word in words if word.startswith("tests/")]
    if missing := [path for path in paths if not (ROOT / path).exists()]:
        raise WrongCommand(f"there is no {missing[0]}")


@pytest.mark.parametrize("block", ALL_BLOCKS, ids=_id)
def test_a_block_is_run_or_says_why_not(block: Block) -> None:
    assert block.language in LANGUAGES
    is_shell = re.search(r"^(?:\$ )?segcore ", block.text, re.MULTILINE)
    assert block.language or not is_shell, "name its language: console or bash"
    tests = {"python": PYTHON_TESTS} | dict.fromkeys(SHELLS, SHELL_TESTS)
    if block.language in tests and not block.not_run:
        test = tests[block.language].get(block.page, "")
        assert test, "run it in a test, or put <!-- not run: WHY --> before it"
        assert block.page.rpartition("/")[2] in (ROOT / test).read_text()


@pytest.mark.parametrize("block", [b for b in ALL_BLOCKS if b.language in SHELLS], ids=_id)
def test_commands_of_a_block_would_be_accepted(block: Block) -> None:
    lines = list(block.commands())
    assert lines
    for line in lines:
        check_line(line)


@pytest.mark.parametrize("block", [b for b in ALL_BLOCKS if b.language == "yaml"], ids=_id)
def test_configurations_would_be_accepted(block: Block, tmp_path: Any) -> None:
    schema = SCHEMAS[block.info.removeprefix("yaml ")] if " " in block.info else Config
    (tmp_path / "job.yaml").write_text(block.text)
    load_config(tmp_path / "job.yaml", schema=schema)


def _mentions(page: str) -> Iterator[list[str]]:
    """Command lines of segcore within sentences."""
    for code in markdown.inline_code(page):
        if code.startswith("segcore ") and "(" not in code:
            words = [word for word in code.split()[1:] if word not in ("...", "…", "COMMAND")]
            if words and not words[0].isupper():
                yield words


@pytest.mark.parametrize("page", markdown.PAGES)
def test_commands_within_sentences_exist(page: str) -> None:
    for words in _mentions(page):
        check_mention(words)


@pytest.mark.parametrize("page", markdown.PAGES)
def test_options_within_sentences_exist(page: str) -> None:
    flags = {
        flag
        for command in (SEGCORE, *_commands(SEGCORE))
        for parameter in command.params
        for flag in (*parameter.opts, *parameter.secondary_opts)
    }
    unknown = []
    for code in markdown.inline_code(page):
        for word in re.findall(r"(?<![\w/.-])--[a-z][\w-]*", code):
            if code.startswith(("--", "segcore")) and word not in (*flags, "--help"):
                unknown.append(word)
        named = re.match(r"(?:--set '?)?([a-z]+\.[a-z_.]+)(?=[=: ']|$)", code)
        key = named[1] if named and not named[1].endswith(FILES) else ""
        if key.partition(".")[0] in GROUPS and key not in (*KEYS, *NOT_KEYS):
            unknown.append(key)
    assert unknown == []


def _commands(group: Any) -> Iterator[Any]:
    for command in group.commands.values():
        yield command
        if hasattr(command, "commands"):
            yield from _commands(command)


@pytest.mark.parametrize(
    "line",
    [
        "segcore segment in out --retry",
        "segcore segment in out more",
        "segcore segment in out --actors many",
        "segcore sement in out",
        "segcore evaluate out",
        "segcore segment in out --set model.confidence=0.4",
        "segcore segment in out --set model.conf=high",
        "segcore train a.yaml --set epoch=3",
        "segcore status out --set",
        "make everything",
        "python jobs/none.py",
        "python -m tests.measure.none",
        "pytest -m faults tests/none.py",
        "segcor segment in out",
    ],
)
def test_wrong_lines_are_noticed(line: str) -> None:
    with pytest.raises(WrongCommand):
        check_line(line)


@pytest.mark.parametrize(
    "line",
    [
        "segcore",
        "segcore --install-completion",
        "segcore bench photos/ --images 100",
        "segcore bench scale --units 100",
        "segcore config train > train.yaml",
        "segcore segment s3://a/b s3://c/d --set 'source.suffixes=[jpg]' # why",
        "segcore train a.yaml --set epochs=3 --set optimizer.lr=0.1",
        "make test",
    ],
)
def test_right_lines_pass(line: str) -> None:
    check_line(line)
