"""An export from beginning to end.

Chunk by chunk: its files are written, each as a whole; then its images and their ids are recorded.
So an export that was stopped goes on behind the last recorded chunk, and one of a grown archive
adds chunks. What was written is never written again, but for the files of single images that have
changed and that nobody has edited.
"""

from __future__ import annotations

import hashlib
import time
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import replace
from functools import partial
from itertools import chain, islice

from segcore.errors import ImageError, NothingFound, ObjectNotFound, SegcoreError
from segcore.exports.archive import Archive, ArchivedImage
from segcore.exports.encoding import encode_images
from segcore.exports.formats import make_format
from segcore.exports.formats.base import Context, Encoded, ExportImage, Format, Tally
from segcore.exports.names import UniqueNames, extension_of
from segcore.exports.options import ExportOptions
from segcore.exports.pictures import (
    check_destination,
    check_template,
    has_no_link,
    link_of,
    needs_bytes,
    write_picture,
)
from segcore.exports.selection import NO_MASKS, ImageMasks, Selection, read_image_list
from segcore.exports.state import (
    DestLayout,
    ExportedImage,
    ExportState,
    chunk_name,
    open_dest,
    record_chunk,
)
from segcore.exports.summary import ExportSummary
from segcore.exports.tool_labels import read_tool_labels
from segcore.output.rankings import read_ranking
from segcore.output.results import Results
from segcore.storage import normalize
from segcore.text import json_text, plural, printable, redact

Notify = Callable[[str], None]
_PROGRESS_S = 10.0  # between two sentences
_WRITE_THREADS = 8
_MAX_WRITES_AHEAD = 64
_ALL_IOU_MASKS = 200_000  # beyond, the IoU is measured in one of eight images
_IOU_EVERY = 8


def export(
    results: Results, dest: str, options: ExportOptions, notify: Notify = lambda text: None
) -> ExportSummary:
    """Write the results of an edition as files of a format; continue what is there.

    Args:
        dest: Folder or prefix; empty, new, or an earlier export of the same edition.
        notify: Takes sentences for people while the export is in progress.

    Raises:
        UsageError: An option is wrong, DEST holds something else, or nothing is left to export.
        SegcoreError: Reading or writing failed; rerun to continue.
    """
    storage = results.storage
    layout = DestLayout(normalize(dest))
    check_destination(options, layout)
    tool = read_tool_labels(storage, options)
    options = options.model_copy(update=tool.options) if tool else options
    categories = results.categories
    listed = read_image_list(storage, options)
    ranking = read_ranking(results, options.ranking) if options.ranking else None
    ranked = frozenset(ranking.rows["image_id"][: options.top].to_pylist()) if ranking else None
    selection = Selection(options, categories, listed, ranked, tool)
    archive = Archive(results)
    check_template(options, archive.first_shard)
    context = replace(_context(archive, options, selection), tool=tool)
    manifest = {
        "format": str(options.format),
        "edition": results.name,
        "output": redact(results.layout.output.uri),
        "model": context.model,
        "labels": [{"id": label.id, "name": label.name} for label in selection.labels],
        "options": options.stated(),
    }
    state, is_continued = open_dest(storage, layout, manifest)
    run = _Export(archive, selection, state, make_format(context), layout, is_continued)
    summary = ExportSummary(str(options.format), layout.uri, results.name, context.model)
    run.write(summary, options.workers or 1, notify)
    summary.add(run.tally, selection.left_out, options.tolerance)
    remarks = [*results.remarks(), *filter(None, [ranking.remark(results) if ranking else ""])]
    summary.notes = (*remarks, *run.notes(listed is None and ranked is None))
    summary.edition_notes = results.edition_notes
    if not summary.images and not len(state):
        if not is_continued:
            storage.delete(layout.manifest)  # so that other options may follow
        raise NothingFound(
            f"No image of {results.prefix} is left to export.",
            "; ".join(f"{name}: {count:,}" for name, count in summary.counts.items()),
        )
    storage.write(layout.summary, json_text(summary.to_dict()).encode())
    return summary


def _context(archive: Archive, options: ExportOptions, selection: Selection) -> Context:
    results = archive.results
    name = results.model_text
    n_masks = 0
    for unit in results.units:
        part = results.read_rows("images", unit, ["n_instances"])
        n_masks += sum(part["n_instances"].to_pylist())
        if n_masks > _ALL_IOU_MASKS:
            break
    every = 1 if n_masks <= _ALL_IOU_MASKS else _IOU_EVERY
    return Context(options, selection.labels, name, results.name, every, archive.decoding)


class _Export:
    """One call of `export`.

    Attributes:
        tally: What happened to the masks and images that were written.
    """

    def __init__(
        self,
        archive: Archive,
        selection: Selection,
        state: ExportState,
        form: Format,
        layout: DestLayout,
        is_continued: bool,
    ) -> None:
        self.tally = Tally()
        self._archive = archive
        self._storage = archive.results.storage
        self._selection = selection
        self._options = selection.options
        self._state = state
        self._form = form
        self._layout = layout
        self._is_continued = is_continued
        self._writer = _FileWriter()
        self._next_number, self._next_annotation = state.next_number, state.next_annotation
        self._names = UniqueNames()
        self._digests: dict[
            int, tuple[ArchivedImage, str]
        ] = {}  # of images between read and written
        self._n_seen = 0
        for image in state.images():
            self._names.reserve(image.name)

    def write(self, summary: ExportSummary, workers: int, notify: Notify) -> None:
        """Write all chunks that are left."""
        with self._writer:
            encoded = encode_images(self._form, self._images(), workers)
            number, told = self._state.n_chunks, time.monotonic()
            for first in encoded:
                if number == self._state.n_chunks:
                    for name, data in self._form.extra_files().items():
                        # Somebody may have edited the one that is there.
                        self._storage.write_if_absent(self._layout.file(name), data)
                number += 1
                chunk = chain([first], islice(encoded, self._options.images_per_chunk - 1))
                rows = self._write_chunk(number, chunk)
                summary.images += len(rows)
                summary.files += 1
                if time.monotonic() - told > _PROGRESS_S:
                    told = time.monotonic()
                    notify(f"{plural(summary.images, 'image')} written so far.")
        written = self._writer.counts.pop("files_written", 0)
        summary.files = written if self._form.one_file_each else summary.files
        self.tally.counts.update(self._writer.counts)
        summary.images_before = self._n_seen

    def notes(self, is_whole: bool) -> Iterator[str]:
        """Sentences for people; `is_whole`: without a list of images."""
        gone = len(self._state) - self._n_seen - self.tally.counts["changed_images"]
        if is_whole and gone > 0:
            yield f"{plural(gone, 'image')} of earlier exports are not selected any more; kept."
        if lacking := list(self._selection.lacking.values()):
            yield (
                f"The tool has no label for {plural(len(lacking), 'class', 'classes')}, such as "
                f"{printable(lacking[0])!r}; --rename CLASS=NAME gives a class the name of one."
            )
        unmatched = self._selection.unmatched
        if unmatched:
            yield (
                f"{plural(len(unmatched), 'entry', 'entries')} of the image list match no image, "
                f"such as {unmatched[0]!r}."
            )

    def _write_chunk(
        self, number: int, chunk: Iterable[tuple[ExportImage, Encoded]]
    ) -> list[ExportedImage]:
        self._refuse_unknown_file(number)
        self._storage.write(self._layout.begun(number), b"")
        rows: list[ExportedImage] = []

        def pieces() -> Iterator[Encoded]:
            for image, encoded in chunk:
                self.tally.merge(encoded.tally)
                rows.append(self._row(image, encoded))
                yield encoded

        if self._form.one_file_each:
            for encoded in pieces():
                self._write_own_file(rows[-1], encoded)
        else:
            name = self._form.file_name(chunk_name(number))
            self._storage.write_with(
                self._layout.file(name), lambda file: self._form.write(file, pieces())
            )
            for name, data in self._form.side_files(chunk_name(number)).items():
                self._storage.write(self._layout.file(name), data)
        self._writer.finish()
        record_chunk(self._storage, self._layout, number, rows)
        return rows

    def _refuse_unknown_file(self, number: int) -> None:
        """Never write over a file of a chunk whose record is lost."""
        if not self._is_continued or self._form.one_file_each:
            return
        uri = self._layout.file(self._form.file_name(chunk_name(number)))
        if self._storage.exists(uri) and not self._storage.exists(self._layout.begun(number)):
            raise SegcoreError(
                f"{redact(uri)} exists, and {self._layout.state_folder} has no record of it.",
                "Restore the record, or export to another DEST: ids could be given twice.",
            )

    def _row(self, image: ExportImage, encoded: Encoded) -> ExportedImage:
        record, digest = self._digests.pop(image.number)
        has_file = self._form.one_file_each and encoded.body is not None
        file_digest = _digest([encoded.body]) if has_file else ""
        return ExportedImage(
            image.image_id, image.number, image.name, record.path, image.width, image.height,
            record.etag, digest, image.first_annotation, len(image.counts), file_digest,
        )  # fmt: skip

    def _write_own_file(self, row: ExportedImage, encoded: Encoded) -> None:
        """Write the file of an image, unless somebody has edited the one that is there."""
        if encoded.body is None:
            return
        uri = self._layout.file(self._form.file_name(row.name))
        if self._is_continued and (there := self._read(uri)) is not None:
            known = self._state.find(row.image_id)
            if _digest([there]) not in (row.file_digest, known.file_digest if known else ""):
                self.tally.counts["edited_files_kept"] += 1
                return
        self._writer.submit(partial(self._write_file, uri, encoded.body))

    def _write_file(self, uri: str, data: bytes) -> str:
        self._storage.write(uri, data)
        return "files_written"

    def _read(self, uri: str) -> bytes | None:
        try:
            return self._storage.read(uri)
        except ObjectNotFound:
            return None

    def _images(self) -> Iterator[ExportImage]:
        """The images that are new or have changed, with their masks."""
        for unit in self._archive.unit_ids:
            records = [r for r in self._archive.images(unit) if self._selection.takes(r)]
            new = [record for record in records if not self._is_known(record)]
            if not new:
                continue
            sizes = {r.image_id: (r.width or 0, r.height or 0) for r in new}
            masks = self._selection.choose(self._archive.masks(unit), sizes)
            for record, data in self._with_pictures(unit, new):
                image = self._make_image(record, masks.get(record.image_id, NO_MASKS), data)
                if image is not None:
                    yield image

    def _is_known(self, record: ArchivedImage) -> bool:
        known = self._state.find(record.image_id)
        is_same = known is not None and known.etag == record.etag
        self._n_seen += is_same
        return is_same

    def _with_pictures(
        self, unit: str, records: list[ArchivedImage]
    ) -> Iterator[tuple[ArchivedImage, bytes | None]]:
        """Images with their encoded bytes, as far as these are needed and there."""
        needed = [r for r in records if needs_bytes(self._options, self._form, r)]
        left = {record.image_id: record for record in records}
        if needed:
            for record, data in self._archive.pictures(unit, needed):
                if not isinstance(data, ImageError):
                    yield left.pop(record.image_id), data
        for record in left.values():
            yield record, None

    def _make_image(
        self, record: ArchivedImage, masks: ImageMasks, data: bytes | None
    ) -> ExportImage | None:
        known = self._state.find(record.image_id)
        facts = masks.labels, masks.scores, record.width, record.height
        digest = _digest([*masks.counts, repr(facts)])
        if known is not None and known.digest == digest:
            self._n_seen += 1  # its file has changed and its masks have not
            return None
        counts = self.tally.counts
        if not masks.counts:
            if self._options.skip_empty and known is None:
                counts["empty_images_skipped"] += 1
                return None
            counts["images_without_masks"] += 1
        if known is None:
            number, self._next_number = self._next_number, self._next_number + 1
            extension = extension_of(data) if data else ""
            name = self._names.assign(record.path, record.image_id, extension)
            counts["renamed_images"] += name != record.path
        else:
            number, name = known.number, known.name
            counts["changed_images"] += 1
        self._digests[number] = record, digest
        counts["images_without_link"] += has_no_link(self._options, record)
        self._write_picture(record, name, data)
        image = ExportImage(
            number=number,
            name=name,
            image_id=record.image_id,
            link=link_of(self._options, record, name),
            width=record.width or 0,
            height=record.height or 0,
            first_annotation=self._next_annotation,
            labels=masks.labels,
            scores=masks.scores,
            counts=masks.counts,
            boxes=masks.boxes,
            areas=masks.areas,
            picture=data if self._form.needs_pictures else None,
        )
        self._next_annotation += len(masks.counts)
        return image

    def _write_picture(self, record: ArchivedImage, name: str, data: bytes | None) -> None:
        is_needed = needs_bytes(self._options, self._form, record)
        if is_needed and data is None:
            self.tally.counts["pictures_missing"] += 1
        is_embedded = self._options.format == "hf"
        is_wanted = self._options.images in ("copy", "link") and not is_embedded
        if not is_wanted or (is_needed and data is None):
            return

        def write() -> str:
            is_there = write_picture(self._storage, self._layout, self._options, record, name, data)
            return "pictures_written" if is_there else "pictures_missing"

        self._writer.submit(write)


class _FileWriter:
    """Writes files in a few threads, with bounded memory; the first error is raised.

    Attributes:
        counts: How often each text was returned by what was submitted.
    """

    def __init__(self) -> None:
        self.counts: Counter[str] = Counter()
        self._pool = ThreadPoolExecutor(_WRITE_THREADS)
        self._pending: list[Future[str]] = []

    def __enter__(self) -> _FileWriter:
        return self

    def __exit__(self, *details: object) -> None:
        self._pool.shutdown(wait=True, cancel_futures=True)

    def submit(self, write: Callable[[], str]) -> None:
        self._pending.append(self._pool.submit(write))
        if len(self._pending) >= _MAX_WRITES_AHEAD:
            self.finish()

    def finish(self) -> None:
        """Wait until everything is written."""
        pending, self._pending = self._pending, []
        for future in pending:
            self.counts[future.result()] += 1


def _digest(pieces: Iterable[str | bytes]) -> str:
    digest = hashlib.blake2b(digest_size=12)
    for piece in pieces:
        digest.update(piece.encode() if isinstance(piece, str) else piece)
        digest.update(b"\0")
    return digest.hexdigest()
