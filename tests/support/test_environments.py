"""An environment that was made for something else than is wanted today is made anew."""

from __future__ import annotations

import subprocess
import venv
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.support import environments
from tests.support.environments import environment

PROJECT = "[project]\ndependencies = ['numpy']\noptional-dependencies.fast = ['{}']\n"


class Calls:
    """Of `venv` and pip, which do nothing here."""

    def __init__(self, root: Path) -> None:
        self.root = root
        self.made: list[str] = []
        self.installed: list[tuple[str, ...]] = []

    def take(self) -> tuple[list[str], list[tuple[str, ...]]]:
        """The calls since the last time."""
        made, installed = self.made, self.installed
        self.made, self.installed = [], []
        return made, installed


@pytest.fixture
def calls(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Calls:
    calls = Calls(tmp_path)

    def create(folder: Path, with_pip: bool, clear: bool) -> None:
        (folder / "complete").unlink(missing_ok=True)
        for packages in ("bin", *(f"lib/python3.{minor}/site-packages" for minor in range(11, 20))):
            (folder / packages).mkdir(parents=True, exist_ok=True)
        calls.made.append(folder.name)

    def run(command: list[str], check: bool) -> None:
        words = tuple(command[command.index("--disable-pip-version-check") + 1 :])
        if "broken" in words:
            raise subprocess.CalledProcessError(1, command)
        calls.installed.append(words)

    monkeypatch.setattr(environments, "ROOT", tmp_path)
    monkeypatch.setattr(venv, "create", create)
    monkeypatch.setattr(subprocess, "run", run)
    (tmp_path / "pyproject.toml").write_text(PROJECT.format("numba"))
    return calls


def test_it_is_made_once(calls: Calls) -> None:
    python = environment(".venv-x", ["a", "b"], ["c"])
    assert python == calls.root / ".venv-x" / "bin" / "python"
    assert calls.take() == ([".venv-x"], [("a", "b"), ("c",)])
    environment(".venv-x", ["a", "b"], ["c"])
    assert calls.take() == ([], [])


@pytest.mark.parametrize(
    "change",
    [
        lambda: environment(".venv-x", ["a", "b==2"]),
        lambda: environment(".venv-x", ["a"]),
        lambda: environment(".venv-x", ["a", "b"], sees_this_one=True),
    ],
)
def test_another_list_of_packages_makes_it_anew(calls: Calls, change: Callable[[], object]) -> None:
    environment(".venv-x", ["a", "b"])
    calls.take()
    change()
    assert calls.take()[0] == [".venv-x"]
    change()
    assert calls.take() == ([], [])


@pytest.mark.parametrize("text", ["", "('a', 'b')", "[]", "{}", '{"installs": [["a", "b"]]}'])
def test_one_of_which_nothing_is_known_is_made_anew(calls: Calls, text: str) -> None:
    (calls.root / ".venv-x").mkdir()
    (calls.root / ".venv-x" / "complete").write_text(text)
    environment(".venv-x", ["a", "b"])
    assert calls.take() == ([".venv-x"], [("a", "b")])


def test_one_of_another_python_or_place_is_made_anew(
    calls: Calls, monkeypatch: pytest.MonkeyPatch
) -> None:
    environment(".venv-x", ["a"])
    (calls.root / ".venv-x").rename(calls.root / ".venv-y")
    environment(".venv-y", ["a"])
    assert calls.take()[0] == [".venv-x", ".venv-y"]
    monkeypatch.setattr("sys.version_info", (3, 19, 0))
    environment(".venv-y", ["a"])
    assert calls.take()[0] == [".venv-y"]


def test_two_callers_share_one_and_a_call_of_pip_that_failed_is_made_again(calls: Calls) -> None:
    with pytest.raises(subprocess.CalledProcessError):
        environment(".venv-x", ["a"], ["broken"])
    environment(".venv-x", ["a"])
    environment(".venv-x", ["a"], ["b"])
    environment(".venv-x", ["a"])
    assert calls.take() == ([".venv-x"], [("a",), ("b",)])


def test_one_with_segcore_is_made_anew_where_segcore_requires_something_else(calls: Calls) -> None:
    words = ["--editable", f"{calls.root}[fast]"]
    environment(".venv-x", words)
    environment(".venv-other", ["a"])
    (calls.root / "pyproject.toml").write_text(PROJECT.format("numba>=1"))
    calls.take()
    environment(".venv-x", words)
    environment(".venv-other", ["a"])
    assert calls.take() == ([".venv-x"], [tuple(words)])


def test_it_sees_the_packages_of_this_one(calls: Calls) -> None:
    environment(".venv-x", ["a"], sees_this_one=True)
    (path,) = (calls.root / ".venv-x").rglob("outer.pth")
    assert "site-packages" in path.read_text()
