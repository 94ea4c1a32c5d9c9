"""Names and text of metrics, read back by a reader of their own format."""

from __future__ import annotations

import re

from hypothesis import given
from hypothesis import strategies as st

from segcore.output.metrics import METRICS, Samples, merge, to_document, to_text
from tests.support.paths import ROOT

_LINE = re.compile(r'(\w+)\{((?:\w+="(?:[^"\\]|\\.)*",?)*)\} (\S+)', re.DOTALL)
_LABEL = re.compile(r'(\w+)="((?:[^"\\]|\\.)*)"')
LABELS = st.text(max_size=8)
KEYS = st.sampled_from(sorted(METRICS)).flatmap(
    lambda name: st.tuples(st.just(name), LABELS if METRICS[name].label else st.just(""))
)
_UNESCAPED = {r"\n": "\n", r"\"": '"', r"\\": "\\"}


def _parse(text: str) -> dict[tuple[str, frozenset[tuple[str, str]]], float]:
    series = {}
    for line in text.removesuffix("\n").split("\n"):
        if line.startswith("#"):
            continue
        found = _LINE.fullmatch(line)
        assert found, line
        labels = frozenset(
            (key, re.sub(r"\\.", lambda m: _UNESCAPED[m[0]], value))
            for key, value in _LABEL.findall(found[2])
        )
        assert (found[1], labels) not in series
        series[found[1], labels] = float(found[3])
    return series


@given(st.dictionaries(KEYS, st.integers(0, 10**9).map(float), max_size=12), st.text(max_size=6))
def test_a_reader_of_the_format_gets_the_same_back(samples: Samples, edition: str) -> None:
    text = to_text(samples, {"segcore_run_exit_code": ("x", {(): 3.0})}, edition)
    expected = {
        (
            name,
            frozenset(
                {("edition", edition)}
                | ({(METRICS[name].label, label)} if METRICS[name].label else set())
            ),
        ): value
        for (name, label), value in samples.items()
    }
    expected["segcore_run_exit_code", frozenset({("edition", edition)})] = 3.0
    assert _parse(text) == expected
    assert len(to_document(samples)) == len(samples)


def test_counters_add_up_gauges_are_replaced_peaks_grow() -> None:
    into: Samples = {}
    for value in (5.0, 3.0):
        merge(into, {("segcore_units_total", ""): value, ("segcore_workers", ""): value})
        merge(into, {("segcore_gpu_memory_peak_bytes", ""): value})
    assert into == {
        ("segcore_units_total", ""): 8.0,
        ("segcore_workers", ""): 3.0,
        ("segcore_gpu_memory_peak_bytes", ""): 5.0,
    }


def test_the_page_names_every_metric() -> None:
    page = (ROOT / "docs" / "metrics.md").read_text()
    named = set(re.findall(r"`(segcore_\w+)`", page))
    assert named >= set(METRICS)
    assert {name for name in named if not name.startswith("segcore_run_")} == set(METRICS)
