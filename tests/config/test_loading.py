from __future__ import annotations

from pathlib import Path

import pytest

from segcore.config import Config, load_config, yaml_lines
from segcore.config.loading import _keys
from segcore.errors import UsageError
from tests.support.paths import ROOT


def _file(folder: Path, text: str) -> Path:
    path = folder / "x.yaml"
    path.write_text(text)
    return path


def _message(path: Path | None = None, **given) -> str:
    with pytest.raises(UsageError) as caught:
        load_config(path, **given)
    assert caught.value.exit_code == 2
    return caught.value.message


def test_no_file_gives_defaults():
    config = load_config()
    assert config == Config()
    assert config.model.name == "nuclei-yolo11n"
    assert config.run.max_failed_fraction == 0.01


def test_precedence_is_defaults_file_set_flags(tmp_path):
    path = _file(tmp_path, "model:\n  conf: 0.1\n  iou: 0.1\n  max_det: 10\n")
    config = load_config(
        path,
        sets=["model.iou=0.2", "model.max_det=20"],
        flags={"--max-det": ("model.max_det", 30), "--model": ("model.name", None)},
    )
    assert (config.model.conf, config.model.iou, config.model.max_det) == (0.1, 0.2, 30)
    assert config.model.name == "nuclei-yolo11n"
    assert config.plan.images == 256


def test_set_values_are_typed_as_yaml():
    config = load_config(
        sets=["ray.autoscaling=true", "source.extensions=[jpg, png]", "ray.address=null"]
    )
    assert config.ray.autoscaling is True
    assert config.source.extensions == ("jpg", "png")
    assert config.ray.address is None


def test_unknown_key_names_its_line_and_what_was_meant(tmp_path):
    path = _file(tmp_path, "# one\ninput: a\n\nmodel:\n  # two\n  name: x\n  cnof: 0.3\n")
    assert _message(path) == f"{path} line 7: unknown key `model.cnof`; did you mean `model.conf`?"


def test_keys_of_an_unknown_group_suggest_known_ones(tmp_path):
    path = _file(tmp_path, "modle:\n  conf: 0.3\n  iou: 0.5\nplam: 3\n")
    assert _message(path).splitlines() == [
        f"{path} line 2: unknown key `modle.conf`; did you mean `model.conf`?",
        f"{path} line 3: unknown key `modle.iou`; did you mean `model.iou`?",
        f"{path} line 4: unknown key `plam`; did you mean `plan`?",
    ]


def test_every_wrong_value_is_listed_with_its_origin(tmp_path):
    path = _file(tmp_path, "model:\n  conf: 1.5\nplan:\n  images: none\n")
    message = _message(path, sets=["run.attempts=0"], flags={"--actors": ("ray.max_actors", 0)})
    first, second, *rest = message.splitlines()
    assert first.startswith(f"{path} line 2: `model.conf`: ")
    assert "1.5" in first
    assert second.startswith(f"{path} line 4: `plan.images`: ")
    assert any(line.startswith("--set run.attempts=0: `run.attempts`") for line in rest)
    assert any(line.startswith("--actors: `ray.max_actors`") for line in rest)


def test_misspelt_set_is_blamed_on_the_set():
    assert _message(sets=["model.cnof=0.3"]) == (
        "--set model.cnof=0.3: unknown key `model.cnof`; did you mean `model.conf`?"
    )


@pytest.mark.parametrize("item", ["model.conf", "=3", ""])
def test_set_without_key_or_value_says_the_form(item):
    assert "expected KEY=VALUE" in _message(sets=[item])


def test_value_where_a_group_belongs(tmp_path):
    path = _file(tmp_path, "model: nuclei\n")
    message = _message(path)
    assert message.startswith(f"{path} line 1: `model` is a group of keys (")
    assert "conf" in message


def test_actors_must_be_ordered(tmp_path):
    path = _file(tmp_path, "ray:\n  min_actors: 3\n  max_actors: 2\n")
    assert "min_actors (3) is over max_actors (2)" in _message(path)


@pytest.mark.parametrize(
    ("text", "part"),
    [
        ("model:\n  conf: 1\n  conf: 2\n", "line 3: key `model.conf` stands a second time"),
        ("a: &x 1\nb: *x\n", "line 2: not valid YAML: aliases are not allowed"),
        ("input: !!python/object/apply:os.system [ls]\n", "line 1: not valid YAML"),
        ("input: [a\n", "not valid YAML"),
        ("- a\n- b\n", "expected `key: value`"),
        ("input: 'a\n", "not valid YAML"),
        ("x: " + "[" * 2000 + "]" * 2000, "nested too deeply"),
        ("x: '" + "a" * (1 << 20) + "'", "characters; at most"),
    ],
)
def test_bad_yaml_is_one_sentence(tmp_path, text, part):
    assert part in _message(_file(tmp_path, text))


def test_missing_and_binary_files_are_usage_errors(tmp_path):
    assert "does not exist" in _message(tmp_path / "no.yaml")
    path = tmp_path / "b.yaml"
    path.write_bytes(b"\xff\xfe\x00")
    assert "not UTF-8" in _message(path)
    assert "cannot be read" in _message(tmp_path)


def test_empty_file_is_no_configuration(tmp_path):
    assert load_config(_file(tmp_path, "# nothing\n")) == Config()


def test_the_commented_example_holds_every_key_with_its_default():
    path = ROOT / "configs" / "segment.yaml"
    assert load_config(path) == Config()
    _, lines = yaml_lines.load_yaml(path.read_text(), "segment.yaml")
    assert set(lines) == set(_keys(Config))
