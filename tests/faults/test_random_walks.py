"""Random walks over the commands that write into an output, and over changes of its archive.

Commands die before any change of storage, or another command runs there. What readers find is held
against a model of a few sets: which images a complete run listed, and which ones it has to keep.
"""

from __future__ import annotations

import os
import random
import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import duckdb
import pytest

from segcore.errors import SegcoreError, UsageError
from segcore.inspection.status import read_status
from segcore.inspection.verify import verify_output
from segcore.output.latest import read_published
from segcore.output.layout import OutputLayout
from segcore.output.report import COMPLETE, RunReport
from segcore.output.results import open_results
from segcore.run.compact import compact
from segcore.run.compact_plan import CompactOptions
from segcore.run.prune import prune
from segcore.run.publish import publish_edition
from segcore.run.segment import segment
from segcore.storage import Storage
from tests.faults.walked_archive import Version, WalkedArchive
from tests.support.jobs import job_config
from tests.support.nights import night
from tests.support.run_without_ray import ProcessKilled, changes_made_by, without_ray

_STEPS = 40
_CONFIDENCES = (0.25, 0.5)  # each is an edition
_DEATH, _OTHER_COMMAND = "death", "other command"
storage = Storage()


@dataclass
class Expected:
    """What an edition must hold.

    Attributes:
        listing: Of the last run that was seen to complete; None if none was, or some of it is gone.
        kept: Images that it lacked, and whose results must be there nevertheless.
        attempts: Listings of runs since then.
        is_torn: A command died or was not alone since then.
    """

    listing: dict[str, Version] | None = None
    kept: set[str] = field(default_factory=set)
    attempts: list[dict[str, Version]] = field(default_factory=list)
    is_torn: bool = False


class Walk:
    """One output and its archive."""

    def __init__(self, folder: Path, seed: int) -> None:
        self._rng = random.Random(seed)
        self._folder, self._output = folder, str(folder / "out")
        self._archive = WalkedArchive(folder / "in", self._rng, is_tar=seed % 2 == 1)
        self._editions: dict[str, Expected] = {}
        self._compact_options = CompactOptions(
            file_bytes=1, grace_s=self._rng.choice([0.0, 1e6]), lease_ttl_s=5.0
        )
        self._is_disturbed = False
        self.log: list[str] = []

    def step(self) -> None:
        """A change of the archive or a command; then readers are asked."""
        archive = self._archive
        changes = (archive.put, archive.remove, archive.restore)
        commands = (self._segment, self._compact, self._prune, self._publish, self._reprocess)
        action = self._rng.choices((*changes, *commands), [4, 3, 3, 10, 7, 1, 1, 2])[0]
        if action in changes:
            self.log.append(action())
            return
        how = self._rng.choices(["", _DEATH, _OTHER_COMMAND], [5, 3, 2])[0]
        self._is_disturbed = bool(how)
        self.log.append(f"{action.__name__} {how}")
        if how:
            with self._disturbed(how, int(self._rng.expovariate(1 / 12))):
                self._call(action)
        else:
            action()
        for name in list(self._editions):
            self._check_readers(name)

    def _call(self, command: Callable[[], None]) -> None:
        """Call a command that may die, or find that another one is at work."""
        try:
            command()
        except (ProcessKilled, SegcoreError) as error:
            self.log[-1] += f" -> {type(error).__name__}"

    @contextmanager
    def _disturbed(self, how: str, number: int) -> Iterator[None]:
        """Before the change of storage of this number, the process dies or another command runs."""
        n_changes, main = 0, threading.current_thread()

        def make(change: Callable[[], Any], name: str, uri: str) -> Any:
            nonlocal n_changes
            n_changes += 1
            if how == _DEATH and n_changes > number:
                raise ProcessKilled(uri)
            if n_changes > number and threading.current_thread() is main:
                n_changes = -(10**9)
                other = self._rng.choice([self._segment, self._compact, self._publish])
                self.log[-1] += f" {other.__name__}"
                self._call(other)
            return change()

        with changes_made_by(make):
            yield

    def _segment(self) -> None:
        options: dict[str, bool] = {
            "retry_failed": self._rng.random() < 0.3,
            "remove_unlisted": self._rng.random() < 0.2,
        }
        sets = [f"plan.images={self._rng.choice([2, 3, 5])}"]
        if self._rng.random() < 0.2:
            sets.append(f"run.max_images={self._rng.randint(1, 6)}")
        conf = self._rng.choice(_CONFIDENCES)
        sets += [f"model.conf={conf}", "run.max_failed_fraction=1", "run.lease_ttl_s=5",
                 "source.allow_shrunk_listing=true"]  # fmt: skip
        self.log[-1] += f" {options} {sets[:-3]}"
        config = job_config(self._folder / "in", self._output, *sets)
        before = self._begin(conf, removes=options["remove_unlisted"])
        report = segment(config, **options)
        if report.status not in COMPLETE:
            assert report.status == "budget_reached"
        elif not self._is_disturbed:
            self._complete(before, removes=options["remove_unlisted"])
            self._check_report(report)
            assert segment(config).nothing_to_do

    def _begin(self, conf: float, *, removes: bool) -> Expected:
        """Note that a run on the archive as it is now begins."""
        name = _edition_name(self._folder, conf)
        expected = self._editions.setdefault(name, Expected())
        expected.attempts.append(dict(self._archive.listing))
        if self._is_disturbed:
            expected.is_torn = True
            if removes:
                expected.kept, expected.listing = set(), None
        return expected

    def _complete(self, expected: Expected, *, removes: bool) -> None:
        listing = dict(self._archive.listing)
        kept = (expected.kept | set(expected.listing or ())) - listing.keys()
        expected.kept = set() if removes else kept
        expected.listing, expected.attempts, expected.is_torn = listing, [], False

    def _reprocess(self) -> None:
        conf = self._rng.choice(_CONFIDENCES)
        sets = [f"model.conf={conf}", "run.max_failed_fraction=1",
                "source.allow_shrunk_listing=true", "schedule.on_refusal=keep"]  # fmt: skip
        expected = self._begin(conf, removes=False)
        report = night(self._folder, *sets)
        if not self._is_disturbed:
            assert report.status in ("published", "nothing_to_do", "refused")
            self._complete(expected, removes=False)
            published = read_published(storage, OutputLayout(self._output))
            assert report.status == "refused" or published == (report.edition, report.run)

    def _compact(self) -> None:
        if not self._editions:
            return
        name = self._rng.choice(sorted(self._editions))
        options = self._compact_options
        if self._rng.random() < 0.2:  # mostly the same ones, with which a compaction is resumed
            options = replace(options, sort="category,score", file_bytes=1 << 20)
        expected = self._editions[name]
        self.log[-1] += f" {name} {options}"
        if self._is_disturbed or expected.is_torn or expected.attempts or not expected.listing:
            self._call(lambda: compact(storage, self._output, name, options))  # type: ignore[arg-type,return-value]
            return
        report = compact(storage, self._output, name, options)
        query = f"SELECT image_id, etag FROM read_parquet('{report.images}')"
        rows = self._read(name, include_unlisted=True)
        expected_rows = sorted((row["image_id"], row["etag"]) for row in rows.values())
        assert sorted(duckdb.sql(query).fetchall()) == expected_rows
        assert compact(storage, self._output, name, options, dry_run=True).nothing_to_do

    def _publish(self) -> None:
        if not self._editions:
            return
        name = self._rng.choice(sorted(self._editions))
        self._call(lambda: publish_edition(storage, self._output, name))  # type: ignore[arg-type,return-value]

    def _prune(self) -> None:
        if not self._editions:
            return
        try:
            planned = prune(storage, self._output, 0)
        except UsageError:  # there is none yet
            return
        chosen = {item.edition for item in planned.editions if item.deleted}
        assert planned.published not in chosen
        for name in chosen:  # if this dies, it is not known what is left of them
            del self._editions[name]
        prune(storage, self._output, 0, dry_run=False)

    def _read(self, name: str, *, include_unlisted: bool) -> dict[str, dict[str, Any]]:
        """What readers find, by name: no image twice, and each with the result of its version."""
        results = open_results(storage, self._output, name, include_unlisted=include_unlisted)
        rows = results.to_arrow("images").to_pylist()
        by_name = {row["image_id"].rpartition("/")[2]: row for row in rows}
        assert len(by_name) == len(rows)
        masks = results.to_arrow("instances", ["image_id"])["image_id"].to_pylist()
        for image, row in by_name.items():
            version = self._archive.versions[image, row["etag"]]
            assert row["status"] == ("ok" if version.kind in ("ok", "dark") else "failed")
            assert row["n_instances"] == masks.count(row["image_id"]) == (version.kind == "ok")
            assert row["status"] == "failed" or row["height"] == 40 + version.seed % 7
        assert len(masks) == sum(row["n_instances"] for row in rows)
        return by_name

    def _check_readers(self, name: str) -> None:
        if not storage.exists(OutputLayout(self._output).edition(name).edition_json):
            assert self._editions.pop(name).is_torn
            return
        expected = self._editions[name]
        listed = self._read(name, include_unlisted=False)
        if expected.attempts or expected.is_torn:  # the last complete run, or a newer one
            listings = [*expected.attempts, *([expected.listing] if expected.listing else [])]
            is_whole = [_etags(listing).items() <= _etags(listed).items() for listing in listings]
            assert any(is_whole) or expected.listing is None
            return
        assert expected.listing is not None
        assert _etags(listed) == _etags(expected.listing)
        kept = self._read(name, include_unlisted=True).keys() - listed.keys()
        assert expected.kept <= kept

    def _check_report(self, report: RunReport) -> None:
        """A run, `status` and `verify` say what readers find."""
        listed = self._read(report.edition, include_unlisted=False)
        n_all = len(self._read(report.edition, include_unlisted=True))
        assert report.images == len(listed) == len(self._archive.listing)
        assert report.failed == sum(row["status"] == "failed" for row in listed.values())
        assert report.images_unlisted == n_all - len(listed)
        status = read_status(storage, self._output, report.edition)
        assert (status.images_done, status.failed) == (report.images, report.failed)
        assert (status.images_unlisted, status.units_foreign) == (report.images_unlisted, 0)
        assert not verify_output(
            storage, self._output, report.edition, include_unlisted=True
        ).counts


def _etags(rows: dict[str, Any]) -> dict[str, str]:
    return {
        name: row.etag if isinstance(row, Version) else row["etag"] for name, row in rows.items()
    }


def _edition_name(folder: Path, conf: float) -> str:
    from segcore.models.registry import load_model
    from segcore.output.edition import make_edition

    config = job_config(folder / "in", folder / "out", f"model.conf={conf}")
    model = load_model(config.model.name, config.model.options())
    return make_edition(model.info, config.decode).name


def _walk(folder: Path, seeds: Sequence[int], n_steps: int = _STEPS) -> None:
    with without_ray(), pytest.MonkeyPatch.context() as patch:
        patch.setattr(os, "fsync", lambda file: None)
        patch.setattr("gc.collect", lambda *args: 0)  # after each image that the model refuses
        patch.setattr("segcore.run.reprocess._WAIT_S", 0.05)
        for seed in seeds:
            walk = Walk(folder / str(seed), seed)
            try:
                for _ in range(n_steps):
                    walk.step()
            except BaseException:
                print(f"Walk {seed}:", *walk.log, sep="\n")
                raise


@pytest.mark.slow
def test_short_walks(tmp_path: Path) -> None:
    _walk(tmp_path, range(2), n_steps=15)


@pytest.mark.faults
def test_walks(tmp_path: Path) -> None:
    _walk(tmp_path, range(2, 12))


@pytest.mark.chaos
@pytest.mark.timeout(6 * 3600)
def test_long_walks(tmp_path: Path) -> None:
    _walk(tmp_path, range(12, 1000))
