"""The JSON documents of an edition: what it is, its runs and executions, what is published."""

from __future__ import annotations

from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor

from segcore.errors import ObjectNotFound, SegcoreError, describe_error
from segcore.inspection.problems import Problem, Verification
from segcore.inspection.unit_checks import EditionFacts
from segcore.output.documents import read_document
from segcore.output.edition import document_of, fingerprint_of
from segcore.output.latest import read_latest
from segcore.output.layout import EditionLayout
from segcore.output.report import COMPLETE
from segcore.output.run_records import RunRecord, read_newest_run
from segcore.output.schema import SCHEMA_VERSION
from segcore.storage import Storage

_REQUEST_THREADS = 8
_EXECUTION_TEXTS = ("execution", "run", "status")


def check_edition(storage: Storage, layout: EditionLayout, result: Verification) -> EditionFacts:
    """What the edition says; its fingerprint must be that of its content."""
    uri = layout.edition_json
    try:
        edition = read_document(storage, uri)
        fingerprint = fingerprint_of(document_of(edition))
        if fingerprint != edition["fingerprint"]:
            message = (
                f"it states the fingerprint {edition['fingerprint']}, "
                f"but its content gives {fingerprint}."
            )
            result.add([Problem("bad_edition", uri, message)])
        if edition["edition"] != layout.name:
            message = f"it is the edition {edition['edition']}, not {layout.name}."
            result.add([Problem("bad_edition", uri, message)])
        version = int(edition["schema_version"])
        if not 1 <= version <= SCHEMA_VERSION:
            message = f"its schema version is {version}; this segcore knows 1 to {SCHEMA_VERSION}."
            result.add([Problem("bad_edition", uri, message)])
            version = SCHEMA_VERSION
        categories = {int(c["id"]): str(c["name"]) for c in edition["model"]["categories"]}
        return EditionFacts(categories, version)
    except (ValueError, KeyError, TypeError, AttributeError, SegcoreError) as error:
        result.add(
            [Problem("bad_edition", uri, f"it cannot be read: {describe_error(error, 200)}")]
        )
        return EditionFacts()


def check_newest_run(
    storage: Storage, layout: EditionLayout, result: Verification
) -> RunRecord | None:
    """The record of the newest run; None, with a problem added, where it cannot be read."""
    try:
        record = read_newest_run(storage, layout)
    except SegcoreError as error:
        result.add([Problem("bad_record", layout.runs_folder, error.message)])
        return None
    if record is None:
        result.add([Problem("bad_record", layout.runs_folder, "there is no run record.")])
        return None
    result.run = record.run
    return record


def check_history(storage: Storage, layout: EditionLayout) -> Iterator[Problem]:
    """Each file of the history is the record of the execution that its name says."""

    def check(uri: str) -> Problem | None:
        try:
            values = read_document(storage, uri)
        except ObjectNotFound:
            return None  # gone since it was listed
        except SegcoreError as error:
            return Problem("bad_record", uri, f"it cannot be read: {error.message[:200]}")
        for name in _EXECUTION_TEXTS:
            if not isinstance(values.get(name), str):
                return Problem("bad_record", uri, f"it does not say {name} as text.")
        execution = values["execution"]
        if layout.execution(execution) != uri:
            return Problem("bad_record", uri, f"it is the record of the execution {execution!r}.")
        return None

    with ThreadPoolExecutor(_REQUEST_THREADS) as pool:
        uris = [info.uri for info, _ in storage.list_folder(layout.history_folder)]
        yield from (problem for problem in pool.map(check, uris) if problem is not None)


def compare_with_record(record: RunRecord | None, result: Verification) -> Iterator[Problem]:
    """The counts of a finished run; one in progress has none yet."""
    if record is None or record.status not in COMPLETE:
        return
    for name in ("units", "images", "ok", "failed", "instances", "images_unlisted"):
        stated = record.values.get(name, 0 if name == "images_unlisted" else None)
        actual = getattr(result, name)
        if stated != actual:
            message = f"it states {name} {stated}, but the parts give {actual}."
            yield Problem("report_differs", record.uri, message)
    stated = record.values.get("warnings", {})  # records of schema 1 have none
    if stated != dict(result.warnings):
        message = f"it states the warnings {stated}, but the parts give {dict(result.warnings)}."
        yield Problem("report_differs", record.uri, message)


def check_latest(storage: Storage, layout: EditionLayout, result: Verification) -> None:
    """What is published must exist; if it is this edition, its run, too."""
    output = layout.output
    uri = output.latest_json
    try:
        latest = read_latest(storage, output)
        name, run = latest["edition"], latest.get("run")
        if name != layout.name:
            if not storage.exists(output.edition(name).edition_json):
                message = f"it points to the edition {name}, which does not exist."
                result.add([Problem("bad_latest", uri, message)])
        elif run is not None and not storage.exists(layout.run_record(run)):
            result.add([Problem("bad_latest", uri, f"its run {run} has no record.")])
    except ObjectNotFound:
        return  # nothing is published
    except (ValueError, KeyError, TypeError, AttributeError, SegcoreError) as error:
        result.add([Problem("bad_latest", uri, f"it cannot be read: {describe_error(error, 200)}")])
