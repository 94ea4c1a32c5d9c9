from __future__ import annotations

import pytest

from segcore.config.yaml_lines import load_yaml, parse_scalar
from segcore.errors import UsageError


def test_each_key_has_its_line_from_1():
    values, lines = load_yaml("# one\ninput: a\nmodel:\n  name: x\nlist: [{a: 1}]\n", "x.yaml")
    assert values == {"input": "a", "model": {"name": "x"}, "list": [{"a": 1}]}
    assert lines == {"input": 2, "model": 3, "model.name": 4, "list": 5, "list.0.a": 5}


@pytest.mark.parametrize("text", ["", "# nothing\n"])
def test_a_document_without_keys_is_empty(text):
    assert load_yaml(text, "x.yaml") == ({}, {})


@pytest.mark.slow
@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("model:\n  conf: 1\n  conf: 2\n", "line 3: duplicate key `model.conf` (first on line 2)"),
        ("a: &x 1\nb: *x\n", "line 2: not valid YAML: aliases are not allowed"),
        ("input: !!python/object/apply:os.system [ls]\n", "line 1: not valid YAML"),
        ("input: [a\n", "not valid YAML"),
        ("- a\n- b\n", "line 1: expected `key: value`"),
        ("input: 'a\n", "not valid YAML"),
        ("x: " + "[" * 2000 + "]" * 2000, "nested too deeply"),
        ("x: '" + "a" * (1 << 20) + "'", "too long"),
    ],
)
def test_what_is_wrong_with_a_document_is_one_line(text, message):
    with pytest.raises(UsageError) as caught:
        load_yaml(text, "x.yaml")
    assert caught.value.message.startswith("x.yaml")
    assert message in caught.value.message
    assert "\n" not in caught.value.message


@pytest.mark.parametrize(
    ("text", "value"),
    [("3", 3), ("0.5", 0.5), ("true", True), ("[a, b]", ["a", "b"]), ("null", None), ("x", "x")],
)
def test_a_scalar_has_the_type_of_yaml(text, value):
    assert parse_scalar(text, "--set a") == value


def test_a_scalar_that_is_not_yaml_is_refused():
    with pytest.raises(UsageError, match=r"--set a: what follows the = is not a YAML value") as e:
        parse_scalar("[hunter2", "--set a")
    assert "hunter2" not in e.value.message + e.value.hint


WRONG_VALUES = [
    "2001-99-99", "2001-01-01 99:99:99", "0x_", "0b_", "1" * 5000, "!!int abc", "!!float abc",
    "!!bool abc", "!!timestamp abc", "!!binary abc", "1" + ":00" * 300_000, "a\0b",
    "1" + ":00" * 2000 + ".5", "{? [a]: 1}",
]  # fmt: skip


@pytest.mark.parametrize("value", WRONG_VALUES, ids=lambda value: value[:12].replace("\0", "0"))
def test_whatever_yaml_cannot_read_is_an_error_of_the_user(value):
    with pytest.raises(UsageError, match=r"x\.yaml( line 2)?: not valid YAML: "):
        load_yaml(f"a:\n  b: {value}\n", "x.yaml")
    with pytest.raises(UsageError, match="not a YAML value"):
        parse_scalar(value, "--set a")
