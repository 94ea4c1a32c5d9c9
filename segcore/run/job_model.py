"""The model of a run: what it is, in which precision it computes, and the edition that gives."""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass, field, replace

from segcore.config import Config
from segcore.distributed import cluster
from segcore.distributed.cluster import NodeResources
from segcore.distributed.pool import uses_gpus
from segcore.errors import CheckpointError
from segcore.models.base import Model, ModelInfo, ModelOptions, Precision
from segcore.models.bundled_weights import bundled_names
from segcore.models.downloads import MAX_BYTES
from segcore.models.torch_runtime import cuda_device_count
from segcore.output.edition import Edition, make_edition
from segcore.output.latest import read_published
from segcore.output.layout import OutputLayout
from segcore.output.run_records import RunRecord, read_run_records
from segcore.storage import Storage
from segcore.worker.preprocessing import Preprocessor
from segcore.worker.weights import read_object_weights


@dataclass(frozen=True)
class JobModel:
    """The model of a job, as this process has probed it; it need not be able to run it.

    Attributes:
        weights: Bytes of the checkpoint when the model is a file or an object, so that every
            worker has the same; None when its name is enough.
        options: Those of the configuration, with the precision that was chosen.
        precision_reason: Why it was chosen, as a sentence for people; "" where there was no choice.
        is_loaded: False if what it is was recalled, see `segcore.run.recalled_model`; then it has
            to be opened before it is used.
        records: The runs of the edition, where the choice had to read them.
    """

    weights: bytes | None = field(repr=False)
    info: ModelInfo
    edition: Edition
    options: ModelOptions
    precision_reason: str = ""
    is_loaded: bool = True
    records: tuple[RunRecord, ...] | None = None


@dataclass(frozen=True)
class _Choice:
    """A precision, why, and the runs of the editions that were looked at, by name."""

    precision: Precision
    reason: str = ""
    records: Mapping[str, tuple[RunRecord, ...]] = field(default_factory=dict)


def open_model(config: Config, storage: Storage, output: OutputLayout, input_uri: str) -> JobModel:
    """Load the model once, to learn what it is and that its weights can be used.

    Raises:
        UsageError: It cannot take images as they are to be decoded.
        SegcoreError: It cannot be loaded.
    """
    # Here, because it imports PyTorch: what is wrong with a command is said before that.
    from segcore.models.registry import open_probe

    name, options = config.model.name, config.model.options()
    weights = None if name in bundled_names() else read_weights(name, storage)
    probe = open_probe(name, weights)
    model = probe(options)
    Preprocessor(model.preprocess, config.decode)  # raises if the two do not fit together
    choice = _choose_precision(config, storage, output, input_uri, model)
    if choice.precision != options.precision:
        options = options.model_copy(update={"precision": choice.precision})
        try:
            model = probe(options)
        except CheckpointError as error:  # weights beyond the range of float16
            options = options.model_copy(update={"precision": "float32"})
            choice = replace(
                choice, precision="float32", reason=f"Precision float32: {error.message}"
            )
    edition = make_edition(model.info, config.decode)
    records = choice.records.get(edition.name)
    return JobModel(weights, model.info, edition, options, choice.reason, records=records)


def _choose_precision(
    config: Config, storage: Storage, output: OutputLayout, input_uri: str, model: Model
) -> _Choice:
    """What ``auto`` means for this run.

    In this order: that of the results which the output holds of this input, the device that was
    asked for, and what the cluster has.
    """
    on_cuda: Precision | None = getattr(model, "cuda_precision", None)
    if config.model.precision != "auto" or on_cuda is None:
        return _Choice(config.model.precision)
    found = []
    records_of: dict[str, tuple[RunRecord, ...]] = {}
    for precision in ("float32", on_cuda):
        parameters = {**model.info.parameters, "precision": precision}
        edition = make_edition(replace(model.info, parameters=parameters), config.decode)
        records = tuple(read_run_records(storage, output.edition(edition.name)))
        records_of[edition.name] = records
        if records and records[-1].input == input_uri:
            found.append((edition.name, precision))
    if len(found) == 2:
        published = read_published(storage, output).edition
        found = [entry for entry in found if entry[0] == published]
    for name, precision in found[:1]:
        reason = f"Precision {precision}, as the results in {name} have it."
        reason = reason if precision == on_cuda or _may_have_gpu(config) else ""
        return _Choice(precision, reason, records_of)
    if _has_gpu(config):
        return _Choice(on_cuda, f"Precision {on_cuda}, since the workers have GPUs.", records_of)
    return _Choice("float32", records=records_of)


def _has_gpu(config: Config) -> bool:
    """Whether the workers will have GPUs; a cluster is asked only where no option tells."""
    device, ray = config.model.device, config.ray
    if device != "auto" or ray.gpus_per_actor is not None:
        return uses_gpus(ray, device, ())
    if cluster.find_target(ray).is_local:
        return uses_gpus(ray, device, [NodeResources(cpus=0, gpus=cuda_device_count())])
    with cluster.connected(ray):
        return uses_gpus(ray, device, cluster.live_nodes())


def _may_have_gpu(config: Config) -> bool:
    """As `_has_gpu`; true for a cluster that would have to be asked."""
    is_local = cluster.find_target(config.ray).is_local
    return _has_gpu(config) if is_local or config.model.device != "auto" else True


def read_weights(name: str, storage: Storage) -> bytes | None:
    """The checkpoint's bytes when `name` is a file or an object; see `JobModel.weights`."""
    if os.path.isfile(name):
        return storage.read(name, MAX_BYTES)
    return read_object_weights(name, storage)
