from __future__ import annotations

from pathlib import Path

import pytest

from segcore.config import Config, load_config
from segcore.errors import UsageError


def _write(folder: Path, text: str) -> Path:
    path = folder / "x.yaml"
    path.write_text(text)
    return path


def _error(path: Path | None = None, **arguments) -> UsageError:
    with pytest.raises(UsageError) as caught:
        load_config(path, **arguments)
    assert caught.value.exit_code == 2
    return caught.value


def _message(path: Path | None = None, **arguments) -> str:
    return _error(path, **arguments).message


def test_no_file_gives_defaults():
    config = load_config()
    assert config == Config()
    assert config.model.name == "nuclei-yolo11n"
    assert config.run.max_failed_fraction == 0.01


def test_an_empty_file_gives_defaults(tmp_path):
    assert load_config(_write(tmp_path, "# nothing\n")) == Config()


def test_precedence_is_defaults_file_set_flags(tmp_path):
    path = _write(tmp_path, "model:\n  conf: 0.1\n  iou: 0.1\n  max_det: 10\n")
    config = load_config(
        path,
        sets=["model.iou=0.2", "model.max_det=20"],
        flags={"--max-det": ("model.max_det", 30), "--model": ("model.name", None)},
    )
    assert (config.model.conf, config.model.iou, config.model.max_det) == (0.1, 0.2, 30)
    assert config.model.name == "nuclei-yolo11n"
    assert config.plan.images == 256


def test_set_values_have_the_types_of_yaml():
    config = load_config(
        sets=["ray.autoscaling=true", "source.extensions=[jpg, png]", "ray.address=null"]
    )
    assert config.ray.autoscaling is True
    assert config.source.extensions == ("jpg", "png")
    assert config.ray.address is None


def test_an_unknown_key_is_named_with_its_line_and_what_was_meant(tmp_path):
    path = _write(tmp_path, "# one\ninput: a\n\nmodel:\n  # two\n  name: x\n  cnof: 0.3\n")
    error = _error(path)
    assert error.message == f"{path} line 7: unknown key `model.cnof`; did you mean `model.conf`?"
    assert error.hint == "`segcore config` and docs/options.md explain every key."


def test_for_the_keys_of_an_unknown_group_known_ones_are_suggested(tmp_path):
    path = _write(tmp_path, "modle:\n  conf: 0.3\n  iou: 0.5\nplam: 3\n")
    assert _message(path).splitlines() == [
        f"{path} line 2: unknown key `modle.conf`; did you mean `model.conf`?",
        f"{path} line 3: unknown key `modle.iou`; did you mean `model.iou`?",
        f"{path} line 4: unknown key `plam`; did you mean `plan`?",
    ]


def test_every_wrong_value_is_listed_with_its_origin(tmp_path):
    path = _write(tmp_path, "model:\n  conf: 1.5\nplan:\n  images: none\n")
    message = _message(path, sets=["run.attempts=0"], flags={"--actors": ("ray.max_actors", 0)})
    first, second, *others = message.splitlines()
    assert first.startswith(f"{path} line 2: `model.conf`: ")
    assert "1.5" in first
    assert second.startswith(f"{path} line 4: `plan.images`: ")
    assert any(line.startswith("--set run.attempts: `run.attempts`") for line in others)
    assert any(line.startswith("--actors: `ray.max_actors`") for line in others)


def test_a_misspelt_set_names_the_set():
    assert _message(sets=["model.cnof=0.3"]) == (
        "--set model.cnof: unknown key `model.cnof`; did you mean `model.conf`?"
    )


@pytest.mark.parametrize("assignment", ["model.conf", "=3", ""])
def test_a_set_without_key_or_value_shows_the_form(assignment):
    assert "expected KEY=VALUE" in _message(sets=[assignment])


def test_the_value_of_a_malformed_set_is_not_shown():
    assert "hunter2" not in _message(sets=["storage.my key=hunter2"])


def test_of_many_problems_the_first_are_shown(tmp_path):
    path = _write(tmp_path, "".join(f"k{i}: 1\n" for i in range(200)))
    lines = _message(path).split("\n")
    assert lines[0].endswith("line 1: unknown key `k0`.")
    assert lines[50:] == ["And 150 problems more."]


def test_a_value_where_a_group_belongs_lists_the_keys_of_the_group(tmp_path):
    path = _write(tmp_path, "model: nuclei\n")
    message = _message(path)
    assert message.startswith(f"{path} line 1: `model` is a group of keys (")
    assert "conf" in message


def test_a_set_below_a_value_is_refused(tmp_path):
    path = _write(tmp_path, "model: nuclei\n")
    message = _message(path, sets=["model.conf=0.3"])
    assert message == "--set model.conf: `model` is a value, not a group of keys."


def test_an_invalid_file_is_named_with_the_line(tmp_path):
    path = _write(tmp_path, "model:\n  conf: 1\n  conf: 2\n")
    assert _message(path) == f"{path} line 3: duplicate key `model.conf` (first on line 2)."


def test_missing_and_binary_files_are_usage_errors(tmp_path):
    assert "does not exist" in _message(tmp_path / "no.yaml")
    path = tmp_path / "b.yaml"
    path.write_bytes(b"\xff\xfe\x00")
    assert "not UTF-8" in _message(path)
    assert "cannot be read" in _message(tmp_path)


def test_a_file_that_is_too_long_is_a_usage_error(tmp_path):
    path = _write(tmp_path, "x: '" + "a" * (1 << 20) + "'")
    assert _message(path) == f"{path} is too long: the limit is 1,048,576 characters."


SECRETS = ["token=SECRET", "https://user:SECRET@host/x.pt?Signature=SECRET", "[SECRET]", "SECRET"]


@pytest.mark.parametrize("value", SECRETS)
def test_values_of_unknown_keys_are_not_shown(tmp_path, value):
    path = _write(tmp_path, f"storage:\n  password: '{value}'\nkey: {{secret: '{value}'}}\n")
    message = _message(path, sets=[f"storage.secret_key={value}", f"modle={value}"])
    assert len(message.splitlines()) == 4
    assert "SECRET" not in message


def test_what_is_secret_in_links_is_not_shown():
    link = "https://user:SECRET@host/x.pt?Signature=SECRET"
    for arguments in ([f"model.imgsz={link}"], [link], [f"run.publish={link}"], [f"plan={link}"]):
        message = _message(sets=arguments)
        assert "SECRET" not in message, arguments
