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
    with pytest.raises(UsageError, match=r"--set a: `\[1` is not a YAML value"):
        parse_scalar("[1", "--set a")
