"""No secret and no control character leaves by the log, wherever in a record it is."""

from __future__ import annotations

import json
import logging

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from segcore.logs.cleaning import clean, clean_line
from segcore.logs.records import (
    ConsoleFormatter,
    JsonFormatter,
    TextFormatter,
    record_fields,
    record_of_fields,
)

SECRET = "S3cr3tS3cr3t"
HIDING_PLACES = [
    f"GET https://host/a.jpg?X-Amz-Signature={SECRET}&x=1 failed",
    f"s3://user:{SECRET}@bucket/a.jpg was refused",
    f"cannot read 'https://user:{SECRET}@host/b'",
    f"aws_secret_access_key={SECRET}",
    f'{{"token": "{SECRET}"}}',
    f"Authorization: Bearer {SECRET}",
    f"a?sig={SECRET}",
    f"password = {SECRET}",
    f"az://container/blob?sv=1&sig={SECRET}",
    f"the environment has {SECRET}-of-the-environment",
]
FORMATTERS = [TextFormatter(), JsonFormatter(), ConsoleFormatter(tracebacks=True)]


@pytest.fixture(autouse=True)
def _secret_in_environment(monkeypatch):
    monkeypatch.setenv("RAY_AUTH_TOKEN", f"{SECRET}-of-the-environment")


def _record(message: str, fault: BaseException | None = None, **extra: str) -> logging.LogRecord:
    exc_info = (type(fault), fault, fault.__traceback__) if fault else None
    record = logging.LogRecord("segcore.x", logging.ERROR, "x.py", 1, "%s", (message,), exc_info)
    record.__dict__.update(extra)
    return record


@pytest.mark.parametrize("text", HIDING_PLACES)
def test_secrets_are_left_out_of_every_part_of_a_record(text: str) -> None:
    try:
        raise ValueError(text)
    except ValueError as caught:
        error = caught
    records = [
        _record(text),
        _record("x", error),
        _record("x", image=text),
        _record("x", traceback=f"Traceback\n  {text}", error=text),
    ]
    for record in records:
        for formatter in FORMATTERS:
            assert SECRET not in formatter.format(record)
        assert SECRET not in str(record_fields(record))


def test_what_is_no_secret_stays() -> None:
    for text in (
        "Plan: 60 images in 6 units (5.6 KiB).",
        "s3://bucket/a b/c?d.jpg cannot be read: TypeError: no",
        "KeyError: 'token'",
    ):
        assert clean(text) == text


@given(st.text())
@example("\n")
def test_a_record_is_one_line_without_control_characters(text: str) -> None:
    record = _record(text, image=text, traceback=text)
    for formatter in FORMATTERS:
        lines = formatter.format(record).split("\n")
        assert all(line.isprintable() for line in lines)
        assert all(line.startswith("    ") for line in lines[1:])  # no line looks like a record
    assert "\n" not in clean_line(text)
    assert json.loads(JsonFormatter().format(record))["level"] == "error"


@pytest.mark.parametrize("word", ["x", "secret", "token=", "a://", "\x1b", "= ", "ä"])
def test_a_record_is_bounded_and_quickly_made(word: str) -> None:
    text = word * 100_000
    assert len(JsonFormatter().format(_record(text, traceback=text))) < 400_000


def test_a_record_travels_as_plain_values() -> None:
    record = _record("what happened", image="a.png", traceback="Traceback", error="E at x.py:1")
    again = record_of_fields(json.loads(json.dumps(record_fields(record))))
    assert record_fields(again) == record_fields(record)
    assert TextFormatter().format(again) == TextFormatter().format(record)
