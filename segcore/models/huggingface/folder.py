"""A folder in which Hugging Face `transformers` saved a model: what it says, read without trust.

Nothing here needs `transformers`, and nothing in the folder is executed: JSON is parsed, weights
are hashed, and two lines of the model card are looked for.
"""

from __future__ import annotations

import hashlib
import json
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator

from segcore.errors import CheckpointError
from segcore.text import parse_json, printable

MODEL_TYPES = ("mask2former", "maskformer")
BACKBONES = ("swin", "maskformer-swin", "resnet")
MAX_JSON_BYTES = 4 << 20  # an index of shards is the largest
MAX_WEIGHTS_BYTES = 4 << 30
_MAX_CARD_BYTES = 64 << 10  # of the model card that are read
_CHUNK_BYTES = 1 << 20
_MAX_NUMBER = 1_000_000  # no width or count of a known model comes near
_LAYERS = re.compile(r"layers|depths")  # keys of numbers of layers, each of which takes time
_MAX_LAYERS = 1000
_MAX_DEPTH = 20  # of a config, nested
_PICKLED = ("pytorch_model.bin", "pytorch_model.bin.index.json")
_SHARD = re.compile(r"[A-Za-z0-9][\w.-]{0,200}\.safetensors")
_CARD_LINE = re.compile(r"""(license|license_name):\s*["']?([A-Za-z0-9][\w.+ -]{0,99}?)["']?\s*""")

Side = Annotated[int, Field(ge=1, le=8192)]  # pixels
SizeKey = Literal["shortest_edge", "longest_edge", "height", "width", "max_height", "max_width"]
Rgb = Annotated[list[float], Field(min_length=3, max_length=3)]
PositiveRgb = Annotated[list[Annotated[float, Field(gt=0)]], Field(min_length=3, max_length=3)]


class Preprocessing(BaseModel):
    """What `preprocessor_config.json` asks for; fields that it leaves out are unset here."""

    model_config = ConfigDict(extra="ignore", frozen=True)

    image_processor_type: str
    do_resize: bool = True
    size: dict[SizeKey, Side] = Field(default_factory=dict)
    size_divisor: int = Field(32, ge=0, le=1024)
    resample: int = Field(2, ge=0, le=5)
    do_rescale: bool = True
    rescale_factor: float = Field(1 / 255, gt=0, le=1)
    do_normalize: bool = True
    image_mean: Rgb = [0.485, 0.456, 0.406]
    image_std: PositiveRgb = [0.229, 0.224, 0.225]

    @model_validator(mode="before")
    @classmethod
    def _convert_old_releases(cls, document: Any) -> Any:
        if not isinstance(document, dict):
            return document
        document = dict(document)
        document.setdefault("image_processor_type", document.get("feature_extractor_type"))
        size = document.get("size")
        if isinstance(size, int) and not isinstance(size, bool):
            max_size = document.get("max_size")
            limit = {"longest_edge": max_size} if max_size else {}
            document["size"] = {"shortest_edge": size} | limit
        if document.get("pad_size") is not None:
            raise ValueError("pad_size is set, and masks of padded images would be misplaced")
        return document

    @property
    def family(self) -> str:
        """``Mask2Former`` or ``MaskFormer``, whose rules turn queries into masks; "" for others."""
        match = re.fullmatch(
            r"(Mask2Former|MaskFormer)(ImageProcessor(Fast|Pil)?|FeatureExtractor)",
            self.image_processor_type,
        )
        return match[1] if match else ""

    def explicit_fields(self) -> dict[str, Any]:
        """The fields that the file gives, without the type."""
        return self.model_dump(exclude_unset=True, exclude={"image_processor_type"})

    def resized(self, imgsz: int, source: str) -> Preprocessing:
        """The same for another size: `imgsz` is the shorter side, or both sides of a square.

        Raises:
            CheckpointError: The preprocessing has no size.
        """
        shortest_edge = self.size.get("shortest_edge")
        if self.do_resize and shortest_edge and "longest_edge" in self.size:
            longest_edge = round(self.size["longest_edge"] * imgsz / shortest_edge)
            size: dict[SizeKey, int] = {"shortest_edge": imgsz, "longest_edge": longest_edge}
        elif self.do_resize and "height" in self.size:
            size = {"height": imgsz, "width": imgsz}
        else:
            raise CheckpointError(
                f"model.imgsz does not apply to {source}: its preprocessing has no size to set.",
                "Leave model.imgsz out.",
            )
        return self.model_copy(update={"size": size})


@dataclass(frozen=True)
class ModelFolder:
    """What a folder holds.

    Attributes:
        path: The folder.
        config: `config.json`; its numbers are bounded, and model and backbone are supported;
            nothing else in it is checked.
        preprocessing: `preprocessor_config.json`.
        weights_bytes: Of the files with the weights.
        weights_sha256: Of `model.safetensors`; for shards, of the index and then of each shard in
            the order of their names, as one.
        config_sha256: Of both documents.
        licence: From the header of the model card (README.md), or ``unknown``.
    """

    path: Path
    config: dict[str, Any]
    preprocessing: Preprocessing
    weights_bytes: int
    weights_sha256: str
    config_sha256: str
    licence: str

    @property
    def model_type(self) -> str:
        """One of `MODEL_TYPES`."""
        return str(self.config["model_type"])


def read_folder(path: str | Path) -> ModelFolder:
    """Reads and checks a folder; hashes its weights.

    Raises:
        CheckpointError: The model cannot be used here; one sentence with the reason.
    """
    path = Path(path).absolute()
    if not (path / "config.json").is_file():
        raise CheckpointError(
            f"{path} is a folder without config.json, not a model.",
            "Give a checkpoint file, or a folder as transformers' save_pretrained writes it.",
        )
    config = _read_json(path / "config.json")
    _check_config(config, path)
    weights = _find_weights(path)
    document = _read_json(path / "preprocessor_config.json")
    preprocessing = _parse_preprocessing(document, path / "preprocessor_config.json")
    documents = json.dumps([config, document], sort_keys=True).encode()
    return ModelFolder(
        path=path,
        config=config,
        preprocessing=preprocessing,
        weights_bytes=sum(file.stat().st_size for file in weights),
        weights_sha256=_sha256(weights),
        config_sha256=hashlib.sha256(documents).hexdigest(),
        licence=read_licence(path / "README.md"),
    )


def read_licence(card: Path) -> str:
    """The licence in the YAML header of a model card, or ``unknown``.

    Only two plain lines are looked for, in the first 64 KiB: no YAML is interpreted.
    """
    try:
        with card.open("rb") as file:
            text = file.read(_MAX_CARD_BYTES).decode(errors="replace")
    except OSError:
        return "unknown"
    lines = text.splitlines()
    if not lines or lines[0].strip() != "---":
        return "unknown"
    values: dict[str, str] = {}
    for line in lines[1:]:
        if line.strip() == "---":
            break
        if match := _CARD_LINE.fullmatch(line):
            values.setdefault(match[1], match[2])
    else:
        return "unknown"  # without an end it is not a header
    licence = values.get("license", "unknown")
    return values.get("license_name", licence) if licence == "other" else licence


def _read_json(path: Path) -> dict[str, Any]:
    try:
        with path.open("rb") as file:
            data = file.read(MAX_JSON_BYTES + 1)
    except FileNotFoundError:
        raise CheckpointError(f"There is no {path.name} in {path.parent}.") from None
    except OSError as error:
        raise CheckpointError(f"Cannot read {path}: {error.strerror}.") from None
    if len(data) > MAX_JSON_BYTES:
        raise CheckpointError(
            f"{path} has over {MAX_JSON_BYTES} bytes, more than that of any known model."
        )
    try:
        document = parse_json(data)
    except ValueError as error:
        raise CheckpointError(f"{path} is not valid JSON: {error}.") from None
    if not isinstance(document, dict):
        raise CheckpointError(f"{path} is not a JSON object.")
    return document


def _check_config(config: dict[str, Any], path: Path) -> None:
    model_type = config.get("model_type")
    if model_type not in MODEL_TYPES:
        raise CheckpointError(
            f"{path} holds a model of type {str(model_type)[:100]!r}, which is not supported.",
            f"Supported for instance segmentation are {' and '.join(MODEL_TYPES)}.",
        )
    backbone = config.get("backbone_config")
    backbone_type = (
        backbone.get("model_type") if isinstance(backbone, dict) else config.get("backbone")
    )
    if not isinstance(backbone, dict) or backbone_type not in BACKBONES:
        raise CheckpointError(
            f"{path} has the backbone {str(backbone_type)[:100]!r}, which is not supported.",
            f"Supported are {', '.join(BACKBONES)}, with their configuration in config.json.",
        )
    if (path / "adapter_config.json").exists():
        raise CheckpointError(
            f"{path} holds an adapter (adapter_config.json), which is not supported.",
            "Merge it into the model, and save the merged model.",
        )
    for key in ("quantization_config", "auto_map"):
        if config.get(key):
            raise CheckpointError(
                f"{path}/config.json asks for {key}, which is not supported: it would run code "
                "that is not part of transformers."
            )
    _check_numbers(config, path)


def _check_numbers(config: dict[str, Any], path: Path) -> None:
    """Numbers, nesting and text of a config are such as models have."""
    values: list[tuple[Any, int, str]] = [(config, 0, "")]
    while values:
        value, depth, key = values.pop()
        if depth > _MAX_DEPTH:
            raise CheckpointError(f"{path}/config.json is nested too deeply.")
        if isinstance(value, dict):
            values += [(child, depth + 1, name) for name, child in value.items()]
        elif isinstance(value, list):
            values += [(child, depth + 1, key) for child in value]
        elif isinstance(value, str) and not value.isascii() and not _is_unicode(value):
            raise CheckpointError(f"{path}/config.json holds text that is not valid Unicode.")
        elif isinstance(value, int | float):
            limit = _MAX_LAYERS if _LAYERS.search(key) else _MAX_NUMBER
            if not abs(value) <= limit:  # so NaN is refused
                raise CheckpointError(
                    f"{path}/config.json holds the number {value!r:.40} ({printable(key)[:50]}), "
                    "which no known model needs."
                )


def _is_unicode(text: str) -> bool:
    """JSON can hold halves of characters, which no table can."""
    try:
        text.encode()
    except UnicodeEncodeError:
        return False
    return True


def _parse_preprocessing(document: dict[str, Any], path: Path) -> Preprocessing:
    try:
        preprocessing = Preprocessing.model_validate(document)
    except ValidationError as error:
        first = error.errors()[0]
        field_name = ".".join(map(str, first["loc"]))
        message = first["msg"].removeprefix("Value error, ")
        raise CheckpointError(
            f"{path} cannot be used: {field_name + ': ' if field_name else ''}{message}."
        ) from None
    if not preprocessing.family:
        raise CheckpointError(
            f"{path} asks for the image processor {preprocessing.image_processor_type[:100]!r}, "
            "which is not supported.",
            "Supported are those of Mask2Former and MaskFormer.",
        )
    return preprocessing


def _find_weights(path: Path) -> list[Path]:
    """The files to hash, all in the folder, in order."""
    single, index = path / "model.safetensors", path / "model.safetensors.index.json"
    if single.is_file():
        files = [single]
    elif index.is_file():
        shards = _read_json(index).get("weight_map")
        names = sorted({str(name) for name in shards.values()}) if isinstance(shards, dict) else []
        if not names:
            raise CheckpointError(f"{index} names no files.")
        for name in names:
            if not _SHARD.fullmatch(name):
                raise CheckpointError(
                    f"{index} names {name[:200]!r}, which is not a file beside it."
                )
            if not (path / name).is_file():
                raise CheckpointError(f"There is no {name} in {path}, though its index names it.")
        files = [index, *(path / name for name in names)]
    elif any((path / name).exists() for name in _PICKLED):
        raise CheckpointError(
            f"{path} holds its weights only as a pickle (pytorch_model.bin), which can run code.",
            "If you trust it, load it and save it again: transformers writes model.safetensors.",
        )
    else:
        raise CheckpointError(f"There is no model.safetensors in {path}.")
    size = sum(file.stat().st_size for file in files)
    if size > MAX_WEIGHTS_BYTES:
        raise CheckpointError(
            f"{path} has {size} bytes of weights, over the limit of {MAX_WEIGHTS_BYTES}."
        )
    return files


def _sha256(files: list[Path]) -> str:
    digest = hashlib.sha256()
    for file in files:
        try:
            with file.open("rb") as stream:
                while chunk := stream.read(_CHUNK_BYTES):
                    digest.update(chunk)
        except OSError as error:
            raise CheckpointError(f"Cannot read {file}: {error.strerror}.") from None
    return digest.hexdigest()
