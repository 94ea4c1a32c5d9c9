"""cluster/docker: what a build copies, and its steps run by hand as an unprivileged user."""

from __future__ import annotations

import os
import re
import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

import segcore
from tests.cluster.dockerfile import HandBuild, context_files, read_stages
from tests.cluster.manifests import kubernetes_files
from tests.support.paths import ROOT

DOCKERFILE = ROOT / "cluster" / "docker" / "Dockerfile"
BUILD, FINAL = read_stages(DOCKERFILE)
_PINS = (ROOT / ".ci" / "constraints.txt", ROOT / "cluster" / "docker" / "constraints.txt")


def test_the_context_is_what_the_wheel_is_made_of() -> None:
    files = context_files()
    assert {path.partition("/")[0] for path in files} == {
        ".ci", "LICENSE", "README.md", "cluster", "pyproject.toml", "segcore",
    }  # fmt: skip
    assert sorted(path for path in files if path.startswith(("cluster", ".ci"))) == [
        ".ci/constraints.txt",
        "cluster/docker/constraints.txt",
    ]


def test_packages_are_pinned() -> None:
    lines = [line for path in _PINS for line in path.read_text().splitlines()]
    pins = [line for line in lines if not line.startswith("#")]
    assert all(re.fullmatch(r"[\w.-]+==[\w.!+]+", pin) for pin in pins)
    names = [re.sub(r"[-_.]+", "-", pin.partition("==")[0]).lower() for pin in pins]
    assert len(set(names)) == len(names)
    for command in BUILD.arguments("RUN"):
        assert command.count("pip install") == command.count("pip install -c tests.txt")


def test_the_final_stage_runs_unprivileged_and_builds_nothing() -> None:
    assert FINAL.arguments("USER") == ["10001:10001"]
    (command,) = FINAL.arguments("RUN")
    installed = re.search(r"apt-get install -y --no-install-recommends ([\w -]+?) ?&&", command)
    assert installed is not None
    assert installed[1].split() == ["wget"]
    assert "pip" not in command
    # A login shell takes its PATH from /etc/profile, and KubeRay starts Ray in one.
    assert "export PATH=/opt/segcore/bin:$PATH' > /etc/profile.d/segcore.sh" in command
    user = re.search(r"--uid (\d+)", command)
    assert user is not None
    for path in kubernetes_files():
        assert set(re.findall(r"runAsUser: (\d+)", path.read_text())) <= {user[1]}


def test_manifests_name_images_of_this_version() -> None:
    tags = [
        tag
        for path in kubernetes_files()
        for tag in re.findall(r"/segcore:(\S+)", path.read_text())
    ]
    assert set(tags) == {f"{segcore.__version__}-cpu", f"{segcore.__version__}-cuda"}


@pytest.fixture(scope="module")
def built() -> Iterator[HandBuild]:
    if os.geteuid() != 0:
        pytest.skip("root is needed to become an unprivileged user")
    folder = Path(tempfile.mkdtemp(prefix="image", dir="/tmp"))
    try:
        build = HandBuild(folder)
        for step in BUILD.steps:
            build.do(*step)
        # As in the image, its user may not write there.
        for path in ((folder / "opt"), *(folder / "opt").rglob("*")):
            os.chown(path, 0, 0, follow_symlinks=False)
        for step in FINAL.steps:
            if step[0] in ("ENV", "WORKDIR"):
                build.do(*step)
        yield build
    finally:
        shutil.rmtree(folder, ignore_errors=True)


@pytest.mark.cluster
@pytest.mark.ray
@pytest.mark.timeout(3600)
def test_the_steps_give_a_segcore_that_works(built: HandBuild) -> None:
    assert built.run("segcore --version").split()[-1] == segcore.__version__
    assert "2.60" in built.run("ray --version")
    built.run("python -c 'import ray.dashboard.modules.job.sdk, aiohttp'")
    assert "AP50" in built.run("segcore demo --images 8 --out demo")
    assert built.run("id -u").strip() == "65534"
