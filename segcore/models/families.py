"""What the registry asks of a family of models, such as YOLO11-seg or Mask R-CNN.

A new family is a package with a `ModelFamily`, and one entry in `segcore.models.registry.FAMILIES`.
"""

from __future__ import annotations

from collections.abc import Callable, Collection
from dataclasses import dataclass
from pathlib import Path

from segcore.models import downloads
from segcore.models.base import Model, ModelOptions
from segcore.models.checkpoints import Checkpoint, CheckpointFile, CheckpointMeta
from segcore.models.wrappers import Mark


@dataclass(frozen=True)
class PublishedModel:
    """Weights published by others; they are never part of this package.

    Attributes:
        name: What `load_model` takes.
        url: Where they are fetched from, once.
        licence: Of the weights.
        published_ap: Mask AP on COCO val2017 as published, percent.
        sha256: As the publisher states it, or its first digits; None: the publisher states none.
            What is not known whole is pinned on first use, beside the cached file.
    """

    name: str
    url: str
    licence: str
    published_ap: float
    sha256: str | None = None

    @property
    def file_name(self) -> str:
        """Name of the file in the cache."""
        return self.url.rsplit("/", 1)[1]

    @property
    def cached_path(self) -> Path:
        """Where the file is once it has been fetched."""
        return downloads.cache_dir() / self.file_name


@dataclass(frozen=True)
class ModelFamily:
    """Architectures that share a network, a layout of checkpoints and an adapter.

    Attributes:
        architectures: Values of `CheckpointMeta.architecture` that belong to it.
        marks: Tensors of which each file of this family has at least one. Relatives that cannot be
            used, such as detectors without masks, are marked, too: `describe` then says why.
        describe: Metadata of a file that comes without. Raises CheckpointError if the family
            cannot use it.
        load: Checkpoint and options -> a model, ready to run on its device. Raises CheckpointError
            if the weights do not fit, UsageError if an option does not.
        published: Its published weights.
    """

    architectures: tuple[str, ...]
    marks: tuple[Mark, ...]
    describe: Callable[[CheckpointFile], CheckpointMeta]
    load: Callable[[Checkpoint, ModelOptions], Model]
    published: tuple[PublishedModel, ...] = ()

    def recognises(self, names: Collection[str]) -> bool:
        """Whether tensors with these names in the network are of this family."""
        return any(mark.root + mark.name in names for mark in self.marks)
