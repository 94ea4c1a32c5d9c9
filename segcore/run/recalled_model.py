"""The model of the published edition, known by the hash of its weights without loading it.

A night with nothing to do needs no more of the model than the name of its edition. It follows from
the weights, the options and this version of segcore; where all of them are those with which the
published edition was made, what the model said then is what it would say now.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from dataclasses import asdict
from typing import Any

from segcore.config import Config
from segcore.models.base import Category, ModelInfo, ModelOptions
from segcore.models.bundled_weights import BUNDLED, bundled_names
from segcore.output.edition import make_edition
from segcore.output.layout import OutputLayout
from segcore.output.reprocess_records import read_model_options
from segcore.run.job_model import JobModel, read_weights
from segcore.storage import Storage
from segcore.text import redact_link
from segcore.version import __version__


def model_facts(config: Config, model: JobModel) -> dict[str, Any] | None:
    """What `recall_model` takes, JSON values, to be kept; None if the link is a secret."""
    name = config.model.name
    if redact_link(name) != name:
        return None
    options = config.model.model_copy(update={"precision": model.options.precision})
    return {
        "model": options.model_dump(mode="json"),
        "decode": config.decode.model_dump(mode="json"),
        "info": asdict(model.info),
        "segcore": __version__,
    }


def recall_model(
    config: Config, storage: Storage, output: OutputLayout, edition: str
) -> JobModel | None:
    """The model of the configuration if it is that of this edition; None if that takes loading it.

    Args:
        edition: The published one; "" for none.

    Raises:
        StorageError: The weights cannot be read.
    """
    facts = read_model_options(storage, output, edition) if edition else None
    try:
        if facts is None or not _are_same(facts, config):
            return None
        info = _info(facts["info"])
        options = ModelOptions(**{k: v for k, v in facts["model"].items() if k != "name"})
    except (KeyError, TypeError, ValueError):
        return None  # of an older version, or damaged
    made = make_edition(info, config.decode)
    if made.name != edition:
        return None
    name = config.model.name
    is_bundled = name in bundled_names()
    weights = None if is_bundled else read_weights(name, storage)
    data = (BUNDLED / f"{name}.safetensors").read_bytes() if is_bundled else weights
    if data is None or hashlib.sha256(data).hexdigest() != info.weights_sha256:
        return None
    options = options.model_copy(update={"device": config.model.device})
    return JobModel(weights, info, made, options, is_loaded=False)


def _are_same(facts: Mapping[str, Any], config: Config) -> bool:
    """Whether these are the options, and this version, with which the edition was made."""
    before, now = dict(facts["model"]), config.model.model_dump(mode="json")
    if now["precision"] == "auto":  # results that exist decide
        now["precision"] = before["precision"]
    before["device"] = now["device"]
    decode = config.decode.model_dump(mode="json")
    return (before, facts["decode"], facts["segcore"]) == (now, decode, __version__)


def _info(values: Mapping[str, Any]) -> ModelInfo:
    categories = tuple(Category(**category) for category in values["categories"])
    return ModelInfo(**{**values, "categories": categories})
