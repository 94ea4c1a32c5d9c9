"""Files of several pages as several images (`decode.pages: all`)."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace

from segcore.images import DecodeOptions, TiffPage, cut_page, find_pages
from segcore.sources import Sample, lone_page, page_image_id


def split_pages(samples: Iterator[Sample], options: DecodeOptions) -> Iterator[Sample]:
    """The samples, those of several pages as one for each page, in order.

    They share the bytes of their file. A page that cannot be found is a sample with an error.
    """
    for sample in samples:
        if options.pages != "all":
            yield sample
            continue
        pages = []
        if sample.data and len(sample.data) <= options.max_bytes:
            pages = find_pages(sample.data, options.max_pages)
        if len(pages) > 1:
            for page in pages:
                n_after = pages[-1].number - page.number
                yield replace(_as_page(sample, page.number, page), pages_after=n_after)
        else:
            yield _as_page(sample, lone_page(sample.image_id), pages[0] if pages else None)


def _as_page(sample: Sample, number: int | None, page: TiffPage | None) -> Sample:
    """The sample of one page; `page` is None for the whole file."""
    image_id = page_image_id(sample.image_id, number)
    sample = replace(sample, image_id=image_id, page=number)
    if page is None:
        return sample
    data = None if page.error else sample.data
    return replace(sample, data=data, error=page.error, page_offset=page.offset)


def image_bytes(sample: Sample) -> bytes:
    """The encoded image that a sample is: its file, or one page of that.

    Raises:
        ImageError: It has no bytes, or its page cannot be cut out of the file.
    """
    if sample.error is not None:
        raise sample.error
    data = sample.data or b""
    return data if sample.page_offset is None else cut_page(data, sample.page_offset)
