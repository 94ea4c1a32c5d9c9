"""A Dockerfile read and its steps run by hand, by an unprivileged user in a folder."""

from __future__ import annotations

import fnmatch
import os
import re
import shutil
import subprocess
import sys
from dataclasses import dataclass, field
from pathlib import Path

from tests.support.paths import ROOT

NOBODY = 65534


@dataclass
class Stage:
    """One FROM and what follows it.

    Attributes:
        steps: (instruction, its arguments), in order.
    """

    name: str
    steps: list[tuple[str, str]] = field(default_factory=list)

    def arguments(self, instruction: str) -> list[str]:
        return [text for name, text in self.steps if name == instruction]


def read_stages(path: Path) -> list[Stage]:
    """The stages of a Dockerfile; what stands before the first FROM is left out."""
    lines = [line for line in path.read_text().splitlines() if not line.lstrip().startswith("#")]
    text = re.sub(r"\\\n\s*", "", "\n".join(lines))
    stages: list[Stage] = []
    for line in text.splitlines():
        instruction, _, arguments = line.strip().partition(" ")
        if instruction == "FROM":
            stages.append(Stage(arguments.partition(" AS ")[2]))
        elif instruction and stages:
            stages[-1].steps.append((instruction, arguments.strip()))
    return stages


def context_files() -> list[str]:
    """The files of the repository that .dockerignore lets into a build."""
    listed = subprocess.run(
        ["git", "ls-files", "--cached", "--others", "--exclude-standard"],
        cwd=ROOT, capture_output=True, text=True, check=True,
    ).stdout.splitlines()  # fmt: skip
    patterns = [
        line for line in (ROOT / ".dockerignore").read_text().splitlines() if line[:1] not in "# "
    ]
    return [path for path in listed if (ROOT / path).is_file() and not _ignored(path, patterns)]


def _ignored(path: str, patterns: list[str]) -> bool:
    """The last pattern that matches a file or one of its folders decides."""
    ignored = False
    folders = [str(one) for one in (Path(path), *Path(path).parents)][:-1]
    for pattern in patterns:
        name = pattern.removeprefix("!").removeprefix("**/")
        tried = folders if "**/" not in pattern else [Path(one).name for one in folders]
        if any(fnmatch.fnmatchcase(one, name) for one in tried):
            ignored = not pattern.startswith("!")
    return ignored


def _python_for_all(copy: Path) -> str:
    """A Python that any user may run; a copy of this one, if it lies in somebody's home."""
    program = os.path.realpath(sys._base_executable)
    try:
        subprocess.run([program, "-V"], user=NOBODY, check=True, capture_output=True)
    except PermissionError:
        shutil.copytree(
            sys.base_prefix, copy, symlinks=True,
            ignore=shutil.ignore_patterns("site-packages", "test", "__pycache__"),
        )  # fmt: skip
        program = str(copy / Path(program).relative_to(sys.base_prefix))
    return program


class HandBuild:
    """Runs the steps of stages below a folder, as a user without rights.

    The absolute paths of the Dockerfile lie below the folder instead.
    """

    PATHS = ("/opt/segcore", "/src", "/home/segcore")

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.directory = folder
        (folder / "bin").mkdir()
        (folder / "bin" / "python").symlink_to(_python_for_all(folder / "python"))
        for path in self.PATHS:
            self.place(path).mkdir(parents=True)
        self.variables = {
            name: value for name, value in os.environ.items() if name.startswith(("PIP_", "SSL_"))
        }
        self.variables |= {
            "PATH": f"{folder}/bin:/usr/bin:/bin",
            "HOME": self.below("/home/segcore"),
        }
        self._own()

    def place(self, path: str) -> Path:
        """Where an absolute path of the image is, or a relative one in the working directory."""
        return self.folder / path[1:] if path.startswith("/") else self.directory / path

    def below(self, text: str) -> str:
        """A text with the paths of the image moved below the folder."""
        for path in self.PATHS:
            text = re.sub(rf"(?<![\w.]){path}\b", f"{self.folder}{path}", text)
        return text

    def do(self, instruction: str, arguments: str) -> None:
        """One step.

        Raises:
            AssertionError: A command failed, or the step is one that is not known here.
        """
        if instruction == "WORKDIR":
            self.directory = self.place(arguments)
        elif instruction == "ENV":
            for name, value in re.findall(r"(\w+)=(\S+)", arguments):
                path = self.variables["PATH"]
                self.variables[name] = self.below(value.replace("$PATH", path))
        elif instruction == "COPY":
            *sources, target = arguments.split()
            for source in sources:
                self._copy(source, target)
            self._own()
        elif instruction == "RUN":
            self.run(arguments)
        else:
            assert instruction == "ARG", f"{instruction} is not known here"

    def run(self, command: str) -> str:
        """A command of a shell; returns what it printed."""
        done = subprocess.run(
            ["sh", "-c", self.below(command)],
            cwd=self.directory, env=self.variables, user=NOBODY, group=NOBODY, extra_groups=[],
            stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True,
            check=False,
        )  # fmt: skip
        assert done.returncode == 0, f"{command}\n{done.stdout[-4000:]}"
        return done.stdout

    def _copy(self, source: str, target: str) -> None:
        """What COPY does with a file or folder of the context."""
        files = [
            path for path in context_files() if path == source or path.startswith(f"{source}/")
        ]
        assert files, f"{source} is not in the context"
        for path in files:
            if path == source:
                into = self.place(target)
                place = into / Path(path).name if target.endswith("/") else into
            else:
                place = self.place(target) / Path(path).relative_to(source)
            place.parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(ROOT / path, place)

    def _own(self) -> None:
        for path in (self.folder, *self.folder.rglob("*")):
            if not path.is_symlink():
                os.chown(path, NOBODY, NOBODY)
