"""The typed configurations of the export and prelabel jobs."""

from __future__ import annotations

from pydantic import BaseModel, ConfigDict, Field

from segcore.config.schema import Config
from segcore.exports.options import ExportOptions
from segcore.storage import StorageOptions

_DEST = "Folder or prefix for the files of the export: new, empty, or an earlier export to add to."


class ExportConfig(BaseModel):
    """The whole configuration of an export; ``configs/export.yaml`` explains each key."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    output: str | None = Field(
        None, min_length=1, description="The OUTPUT of `segcore segment`: a folder or prefix."
    )
    dest: str | None = Field(None, min_length=1, description=_DEST)
    edition: str | None = Field(
        None, description="Edition in the output. By default the one that latest.json names."
    )
    include_unlisted: bool = Field(
        False, description="Also images that the newest run's listing lacks."
    )
    export: ExportOptions = Field(ExportOptions(), description="What is exported, and how.")
    storage: StorageOptions = Field(StorageOptions(), description="How object stores are accessed.")


class PrelabelConfig(Config):
    """The whole configuration of a prelabel job; ``configs/prelabel.yaml`` explains each key."""

    dest: str | None = Field(None, min_length=1, description=_DEST)
    export: ExportOptions = Field(ExportOptions(), description="What is exported, and how.")
