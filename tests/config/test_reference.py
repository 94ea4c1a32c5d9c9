from __future__ import annotations

import inspect

import pytest
import yaml

from segcore.config import load_config
from segcore.config.jobs import SCHEMAS, config_file, options_page
from segcore.config.loading import dotted_keys
from segcore.config.reference import list_options, option_text
from segcore.config.schema import Config
from segcore.training.config import TrainConfig
from tests.support.paths import ROOT


@pytest.mark.parametrize("job", SCHEMAS)
def test_the_file_in_configs_is_the_one_that_segcore_config_prints(job):
    assert (ROOT / "configs" / f"{job}.yaml").read_text() == config_file(job), "run `make options`"


def test_the_page_of_all_options_is_current():
    assert (ROOT / "docs" / "options.md").read_text() == options_page(), "run `make options`"


@pytest.mark.parametrize("job", SCHEMAS)
def test_every_option_says_what_it_does_in_whole_sentences(job):
    options = list(list_options(SCHEMAS[job]))
    assert {option.key for option in options} == set(dotted_keys(SCHEMAS[job]))
    for option in options:
        text = option.text
        assert text.endswith("."), option.key
        assert text[0].isupper() or text.split(":")[0].split(",")[0].islower(), option.key
        assert len(text) >= 10, option.key


@pytest.mark.parametrize("job", SCHEMAS)
def test_the_file_holds_every_default(job):
    schema = SCHEMAS[job]
    values = yaml.safe_load(config_file(job))
    required = [option.key for option in list_options(schema) if option.default is None]
    for option in list_options(schema):
        value = values
        *groups, last = option.key.split(".")
        for group in groups:
            value = value[group]
        assert (last in value) == (option.key not in required), option.key
    sets = [f"{key}=x" for key in required]
    filled = load_config(ROOT / "configs" / f"{job}.yaml", sets, schema=schema)
    assert filled == load_config(sets=sets, schema=schema)


def test_the_training_file_names_what_has_to_be_set():
    assert {"name", "output", "licence", "data.images", "data.train", "data.val"} == {
        option.key for option in list_options(TrainConfig) if option.default is None
    }
    assert "\n# name:\n" in config_file("train")


@pytest.mark.parametrize(
    ("key", "kind", "default"),
    [
        ("model.imgsz", "integer, 32 to 8,192, a multiple of 32", "null"),
        ("model.iou", "number, more than 0, at most 1", "null"),
        ("decode.scale", "full | reduced", "full"),
        ("decode.wide_range", "high_byte | min_max | percentile | [integer, integer]", "high_byte"),
        ("source.extensions", "list of text", None),
        ("ray.autoscaling", "true or false", "false"),
        ("run.publish", "true or false", "null"),
        ("storage.timeout_s", "number, more than 0", "60.0"),
    ],
)
def test_types_and_bounds_are_said(key, kind, default):
    option = next(option for option in list_options(Config) if option.key == key)
    assert option.kind == kind
    assert default is None or option.default == default


def test_flags_show_the_text_of_their_option(monkeypatch):
    from segcore.cli import bench, segment
    from tests.support.commands import call_segcore

    monkeypatch.setenv("COLUMNS", "200")
    monkeypatch.setenv("TERMINAL_WIDTH", "200")  # typer's own
    for module, name in ((segment, "segment"), (bench, "bench")):
        shown = " ".join(call_segcore(name, "--help").stdout.replace("│", " ").split())
        for parameter, key in module.KEYS.items():
            assert parameter in inspect.signature(module.command).parameters
            assert option_text(Config, key).split()[-1] in shown, key


def test_an_unknown_architecture_is_a_usage_error():
    from segcore.errors import UsageError

    with pytest.raises(UsageError) as caught:
        load_config(
            ROOT / "configs/train-nuclei.yaml", ["architecture=yolo11n"], schema=TrainConfig
        )
    assert "--set architecture" in caught.value.message
    assert "'yolo11n-seg'" in caught.value.message
