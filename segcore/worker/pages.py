"""Files of several pages as several images (`decode.pages: all`)."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace

from segcore.images import DecodeOptions, cut_page, find_pages
from segcore.sources import Sample, page_image_id


def split_pages(samples: Iterator[Sample], options: DecodeOptions) -> Iterator[Sample]:
    """The samples, those of several pages as one for each page, in order.

    They share the bytes of their file. A page that cannot be found is a sample with an error.
    """
    for sample in samples:
        pages = []
        if options.pages == "all" and sample.data and len(sample.data) <= options.max_bytes:
            pages = find_pages(sample.data, options.max_pages)
        if not pages:
            yield sample
        for page in pages:
            number = page.number if len(pages) > 1 else None
            yield replace(
                sample,
                image_id=page_image_id(sample.image_id, number),
                data=None if page.error else sample.data,
                error=page.error,
                page=number,
                page_offset=page.offset,
            )


def image_bytes(sample: Sample) -> bytes:
    """The encoded image that a sample is: its file, or one page of that.

    Raises:
        ImageError: It has no bytes, or its page cannot be cut out of the file.
    """
    if sample.error is not None:
        raise sample.error
    data = sample.data or b""
    return data if sample.page_offset is None else cut_page(data, sample.page_offset)
