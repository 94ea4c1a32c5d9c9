"""The typed configuration of a reprocess job."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, field_validator

from segcore.config.schema import Config

_SHARE = "a larger share of all objects of both (a matched pair is one)"


class GateOptions(BaseModel):
    """What keeps a new edition from being published in place of another one."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    max_vanished: float | None = Field(
        0.2, ge=0, le=1, description=f"Refuse if {_SHARE} is in the published edition alone."
    )
    max_appeared: float | None = Field(
        0.2, ge=0, le=1, description=f"Refuse if {_SHARE} is in the new edition alone."
    )
    max_changed: float | None = Field(
        None, ge=0, le=1, description=f"Refuse if {_SHARE} is not the same."
    )
    match_iou: float = Field(0.5, ge=0.01, le=1, description="IoU that makes two masks one object.")
    same_iou: float = Field(0.9, ge=0.01, le=1, description="From this IoU on it has not moved.")
    max_category_change: float | None = Field(
        None,
        ge=0,
        description="Refuse if the number of objects of a category changes by a larger share, in "
        "either direction.",
    )
    max_change_by_category: dict[str, Annotated[float, Field(ge=0)]] = Field(
        {}, description="The same for categories by their names; wins over max_category_change."
    )
    golden: str | None = Field(
        None,
        min_length=1,
        description="COCO instances file with the true masks of some images of the archive.",
    )
    min_ap: float | None = Field(
        None, ge=0, le=1, description="Refuse if the mask AP on golden is lower."
    )
    max_ap_drop: float | None = Field(
        0.02,
        ge=0,
        le=1,
        description="Refuse if the mask AP on golden is lower than that of the published edition "
        "by more than this.",
    )
    max_listing_loss: float = Field(
        0.1,
        ge=0,
        le=1,
        description="Refuse if the listing of a new edition is smaller than that of the published "
        "one by a larger share: images, or bytes where images are counted only when they are read.",
    )

    @field_validator("*", mode="before")
    @classmethod
    def _refuse_yes_and_no(cls, value: Any) -> Any:
        """A gate that is set to `yes` would be open: that is 1 to pydantic.

        Raises:
            ValueError: It is a truth value, or one of its numbers is.
        """
        numbers = value.values() if isinstance(value, dict) else [value]
        if any(isinstance(number, bool) for number in numbers):
            raise ValueError("yes and no are no limits: give a number, or null for none")
        return value


class ScheduleOptions(BaseModel):
    """What one call of a scheduler does besides segmenting."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    on_refusal: Literal["update_published", "keep"] = Field(
        "update_published",
        description="update_published: segment new images with the published model all the same; "
        "keep: do not.",
    )
    removed: Literal["keep", "prune"] = Field(
        "keep",
        description="Results of images that the input lacks today. keep: they stay, and readers "
        "leave them out; prune: they are deleted.",
    )
    published_model: str | None = Field(
        None,
        min_length=1,
        description="The model of the published edition, if it is not any more where it was when "
        "that edition was made, or if `segcore segment` made it.",
    )
    if_busy: Literal["fail", "skip", "wait"] = Field(
        "fail",
        description="While another call or run is at work. fail: exit code 1; skip: exit code 0; "
        "wait: until it has ended.",
    )
    table: str | None = Field(
        None,
        min_length=1,
        description="Tables that hold the published edition, too, before latest.json names it: "
        "iceberg://CATALOG/NAMESPACE.NAME, or delta for those in the folder delta of the output.",
    )
    verify: bool = Field(
        True, description="Check all results as `segcore verify` does before they are published."
    )


class ReprocessConfig(Config):
    """The whole configuration of a reprocess job; ``configs/reprocess.yaml`` explains each key."""

    gates: GateOptions = Field(
        GateOptions(),
        description="What keeps a new edition from being published. The share of failed images is "
        "run.max_failed_fraction.",
    )
    schedule: ScheduleOptions = Field(
        ScheduleOptions(), description="What one call does besides segmenting."
    )
