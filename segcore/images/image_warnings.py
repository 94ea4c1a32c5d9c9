"""What a person should know about the pixels of an image, as warnings of its row."""

from __future__ import annotations

from segcore.errors import ImageWarning, WarningCode
from segcore.images.options import DecodeOptions
from segcore.text import plural


def page_warnings(n_left_out: int) -> tuple[ImageWarning, ...]:
    """Of the pages of a TIFF after the first."""
    if not n_left_out:
        return ()
    message = f"{_more(n_left_out, 'page')} not read; decode.pages: all reads every page"
    return (ImageWarning(WarningCode.PAGES_LEFT_OUT, message),)


def frame_warnings(n_frames: int) -> tuple[ImageWarning, ...]:
    """Of the frames of an animation, the first included."""
    if n_frames < 2:
        return ()
    return (ImageWarning(WarningCode.FRAMES_LEFT_OUT, f"{_more(n_frames - 1, 'frame')} not read"),)


def range_warnings(is_narrow: bool, options: DecodeOptions) -> tuple[ImageWarning, ...]:
    """Of samples of more than 8 bits; a range that was chosen is no surprise."""
    if not is_narrow or options.wide_range != "high_byte":
        return ()
    message = (
        "99.8 % of the samples lie within an eighth of their range, so there is little contrast "
        "(decode.wide_range: percentile)"
    )
    return (ImageWarning(WarningCode.NARROW_RANGE, message),)


def _more(count: int, noun: str) -> str:
    return f"{plural(count, noun)} after the first {'is' if count == 1 else 'are'}"
