from __future__ import annotations

import pytest

from segcore.config import Config, load_config, yaml_lines
from segcore.config.loading import dotted_keys
from segcore.errors import UsageError
from tests.support.paths import ROOT


def test_the_commented_example_holds_every_key_with_its_default():
    path = ROOT / "configs" / "segment.yaml"
    assert load_config(path) == Config()
    _, lines = yaml_lines.load_yaml(path.read_text(), "segment.yaml")
    assert set(lines) == set(dotted_keys(Config))


def test_min_actors_may_not_exceed_max_actors():
    with pytest.raises(UsageError) as caught:
        load_config(sets=["ray.min_actors=3", "ray.max_actors=2"])
    assert "min_actors (3) is greater than max_actors (2)" in caught.value.message


def test_the_model_section_gives_the_options_of_load_model():
    config = load_config(sets=["model.name=x", "model.conf=0.4"])
    options = config.model.options()
    assert options.conf == 0.4
    assert not hasattr(options, "name")
