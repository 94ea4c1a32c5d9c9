"""Read the results of a run: tables, data frames, pictures."""

from __future__ import annotations

from dataclasses import fields
from typing import TYPE_CHECKING

from segcore.api.storage import AnyStorage, open_storage
from segcore.errors import UsageError
from segcore.output import results

if TYPE_CHECKING:
    from PIL.Image import Image


class Results(results.Results):
    """One edition of an output: its tables, and pictures of its images."""

    def plot(
        self,
        image_id: str,
        scale: float | None = None,
        labels: bool | None = None,
        as_read: bool = False,
    ) -> Image:
        """The masks of one image over it; a notebook shows the result as a picture.

        The image is read from where the job read it.

        Args:
            image_id: As in the tables, or the end of it from a slash or # on, such as a file name.
            scale: Size of the picture relative to the image; None: that of the image, but small
                images are enlarged.
            labels: Write category and score beside each instance; None: where they leave the
                masks to be seen.
            as_read: Do not brighten a dark image.

        Raises:
            UsageError: There is no such image, or several; it failed; or it is gone from the
                archive or has changed.
        """
        from PIL.Image import fromarray

        from segcore.visualize.pictures import draw_picture, read_pictures
        from segcore.visualize.selection import Choice, Selection, select_images

        selected = select_images(self, Selection(Choice.FIRST, image_id, limit=2))
        if selected.n_matching > 1:
            ids = " and ".join(record.image_id for record in selected.records)
            raise UsageError(f"{image_id} is the end of several ids: {ids}.")
        picture = next(iter(read_pictures(self, selected.records)))
        if picture.image is None:
            raise UsageError(f"{picture.record.image_id} cannot be shown: {picture.reason}")
        return fromarray(draw_picture(picture, scale=scale, labels=labels, as_read=as_read))


def open_results(
    output: str,
    edition: str | None = None,
    *,
    storage: AnyStorage = None,
    include_unlisted: bool = False,
) -> Results:
    """The results in an output: tables by unit, one Arrow table, a DataFrame, or pictures::

        results = segcore.open_results("masks/")
        results.plot("photo7.jpg")
        masks = results.to_pandas("instances", columns=["image_id", "category", "score"])

    Args:
        output: The OUTPUT of a run, or the prefix of one edition in it.
        edition: Name of the edition; default the published one, else the only one.
        storage: How object stores are accessed.
        include_unlisted: Also the results of images that the newest listing lacked.

    Raises:
        UsageError: There is no output, no such edition, or there are several and none was chosen.
    """
    opened = results.open_results(
        open_storage(storage), output, edition, include_unlisted=include_unlisted
    )
    return Results(**{one.name: getattr(opened, one.name) for one in fields(opened)})
