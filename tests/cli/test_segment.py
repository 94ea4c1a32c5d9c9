"""`segcore segment`: how its flags become a configuration."""

from __future__ import annotations

from dataclasses import dataclass

import pytest
from typer.testing import CliRunner

from segcore.cli.main import app
from segcore.config import Config
from segcore.errors import UsageError


@dataclass
class _EmptyPreview:
    nothing_to_do = False
    units_left = 0

    def notes(self) -> list[str]:
        return []

    def summary(self) -> str:
        return ""


def _config_of(monkeypatch: pytest.MonkeyPatch, *args: str) -> Config:
    """The configuration that `segcore segment` makes of its arguments."""
    configs: list[Config] = []

    def preview(config: Config, **options: bool) -> _EmptyPreview:
        configs.append(config)
        return _EmptyPreview()

    monkeypatch.setattr("segcore.run.segment.preview", preview)
    result = CliRunner().invoke(app, ["segment", "in", "out", "--dry-run", *args])
    assert result.exit_code == 0, result.output
    return configs[0]


def test_actors_sets_the_fewest_and_the_most(monkeypatch: pytest.MonkeyPatch) -> None:
    ray = _config_of(monkeypatch, "--actors", "3", "--set", "ray.max_actors=7").ray
    assert (ray.min_actors, ray.max_actors) == (3, 3)


def test_flags_that_are_not_used_leave_the_defaults(monkeypatch: pytest.MonkeyPatch) -> None:
    config = _config_of(monkeypatch)
    assert config == Config(input="in", output="out")


def test_a_bench_is_for_a_dry_run() -> None:
    result = CliRunner().invoke(app, ["segment", "in", "out", "--bench", "bench.json"])
    assert isinstance(result.exception, UsageError)
    assert "--bench is for --dry-run" in str(result.exception)
