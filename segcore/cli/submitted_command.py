"""A command line that is to run on a cluster: checked here, with the files that it needs there."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from types import ModuleType
from typing import Any

import typer
import typer.main
from pydantic import BaseModel

from segcore.cli import evaluate, prelabel, reprocess, segment, train
from segcore.cli.console import new_app
from segcore.errors import UsageError
from segcore.text import redact

_CONFIG_ENDINGS = (".yaml", ".yml")


@dataclass(frozen=True)
class _Job:
    """A command that can be submitted.

    Attributes:
        module: Has its `command`, and the class of that as `Command` if it is not typer's.
        schema: Gives the schema of its configuration; None where it takes none.
        keys: Parameter -> the key of the configuration that it sets.
        files: Keys of files that are sent if they are here.
        places: Keys of what the cluster itself reads and writes.
    """

    module: ModuleType
    schema: Callable[[], type[BaseModel]] | None
    keys: Mapping[str, str]
    files: tuple[str, ...]
    places: tuple[str, ...]


def _segment_schema() -> type[BaseModel]:
    from segcore.config import Config

    return Config


def _train_schema() -> type[BaseModel]:
    from segcore.training.config import TrainConfig

    return TrainConfig


_JOBS = {
    "segment": _Job(segment, _segment_schema, segment.KEYS, ("model.name",), ("input", "output")),
    "reprocess": _Job(
        reprocess,
        reprocess.schema,
        {},
        ("model.name", "schedule.published_model", "gates.golden"),
        ("input", "output"),
    ),
    "prelabel": _Job(
        prelabel,
        prelabel.schema,
        prelabel.KEYS,
        ("model.name", "export.image_list"),
        ("input", "dest", "output"),
    ),
    "train": _Job(
        train, _train_schema, {}, ("init", "data.train", "data.val"), ("data.images", "output")
    ),
    "evaluate": _Job(
        evaluate,
        None,
        {"output": "output", "ground_truth": "ground_truth"},
        ("ground_truth",),
        ("output",),
    ),
}
JOBS = tuple(_JOBS)


@dataclass(frozen=True)
class SubmittedCommand:
    """A command line as the cluster runs it.

    Attributes:
        words: Its words behind `segcore`.
        files: Path in the job's working directory -> the local file that is sent.
        places: (what it is, path) of what the cluster reads and writes and what is no URI.
        wants_gpu: It computes on a GPU in the process of the command itself.
        shares_paths: Its configuration says that local paths are the same files everywhere.
    """

    words: list[str]
    files: dict[str, Path] = field(default_factory=dict)
    places: list[tuple[str, str]] = field(default_factory=list)
    wants_gpu: bool = False
    shares_paths: bool = False


def prepare_command(words: Sequence[str]) -> SubmittedCommand:
    """Check a command line and find the files that it names here.

    Args:
        words: A command and its options; a single configuration file is one of `segment`.

    Raises:
        UsageError: It is no command that can be submitted, its configuration is wrong, or it holds
            what must not be read by everyone on the cluster.
    """
    words = _with_command(words)
    name, job = words[0], _JOBS[words[0]]
    _refuse_secrets("a word of the command line", words)
    context = _parse(name, words[1:])
    given = _given(context)
    values = _values(job, given)
    for key, text in values.items():
        _refuse_secrets(f"`{key}`", [text])
    files: dict[str, Path] = {}
    if isinstance(config := given.get("config"), str):
        given["config"] = _send(files, Path(config))
    for key in job.files:
        path = Path(values.get(key, ""))
        if values.get(key) and path.is_file():
            _replace(job, given, key, _send(files, path))
    places = []
    for key in job.places:
        place = values.get(key, "")
        if place and "://" not in place:
            places.append((key, place))
            _replace(job, given, key, str(Path(place).absolute()))
    return SubmittedCommand(
        words=[name, *_to_words(context.command, given)],
        files=files,
        places=places,
        wants_gpu=name == "train" and values.get("device", "").startswith("cuda"),
        shares_paths=values.get("ray.shared_paths") == "True",
    )


def plain_command(words: Sequence[str]) -> SubmittedCommand:
    """A command line whose paths are those of the cluster: nothing is read here.

    Raises:
        UsageError: See `prepare_command`.
    """
    words = _with_command(words)
    _refuse_secrets("a word of the command line", words)
    _parse(words[0], words[1:])
    return SubmittedCommand(words=list(words))


def _with_command(words: Sequence[str]) -> list[str]:
    """The words with the name of the command in front.

    Raises:
        UsageError: There is none.
    """
    if words and words[0] in _JOBS:
        return list(words)
    if words and words[0].endswith(_CONFIG_ENDINGS):
        return ["segment", "--config", *words]
    known = ", ".join(JOBS)
    what = f"{redact(words[0])!r} cannot be submitted" if words else "What is to be submitted?"
    raise UsageError(
        f"{what}: expected one of {known}, or the configuration file of a segment job.",
        hint="For example: segcore submit segment s3://bucket/shards s3://bucket/masks "
        "--address http://HEAD:8265",
    )


def _parse(name: str, words: Sequence[str]) -> Any:
    """The words as the command takes them; what is wrong with them is said as the command does."""
    module = _JOBS[name].module
    app = new_app()
    app.command(name, cls=getattr(module, "Command", None))(module.command)
    command: Any = typer.main.get_command(app)
    return command.make_context(f"segcore {name}", list(words))


def _given(context: Any) -> dict[str, Any]:
    """Parameter -> value, of those that the command line sets."""
    return {
        name: value
        for name, value in context.params.items()
        if value is not None and context.get_parameter_source(name).name == "COMMANDLINE"
    }


def _values(job: _Job, given: Mapping[str, Any]) -> dict[str, str]:
    """Key -> text, of all that is set: by the file, by --set or by parameters.

    Raises:
        UsageError: The configuration is wrong.
    """
    if job.schema is None:
        return {key: str(given[name]) for name, key in job.keys.items() if name in given}
    from segcore.config import load_config

    flags = {
        name: (key, given[name])
        for name, key in job.keys.items()
        if name in given and key in (*job.files, *job.places)
    }
    config = load_config(given.get("config"), given.get("sets") or (), flags, schema=job.schema())
    values: dict[str, str] = {}
    _flatten(config.model_dump(), "", values)
    return values


def _flatten(document: Mapping[str, Any], prefix: str, values: dict[str, str]) -> None:
    for name, value in document.items():
        if isinstance(value, Mapping):
            _flatten(value, f"{prefix}{name}.", values)
        elif value is not None:
            values[prefix + name] = str(value)


def _refuse_secrets(what: str, texts: Sequence[str]) -> None:
    """Refuse what would show in the dashboard, in the job's metadata or in its files.

    Raises:
        UsageError: A text holds a user, a password or a signature.
    """
    for text in texts:
        value = text.partition("=")[2] if "=" in text and "://" in text.partition("=")[2] else text
        if "://" in value and redact(value) != value:
            raise UsageError(
                f"{what} holds a user, a password or a signed query: {redact(value)}. Everyone who "
                "can read the jobs of the cluster would see it.",
                hint="Give the nodes of the cluster a role or credentials of their own, and name "
                "the object without them.",
            )


def _send(files: dict[str, Path], path: Path) -> str:
    """Have a local file sent; returns its path on the cluster."""
    name = path.name
    while files.get(name, path).absolute() != path.absolute():
        name = f"other-{name}"  # of another folder
    files[name] = path
    return name


def _replace(job: _Job, given: dict[str, Any], key: str, value: str) -> None:
    """Set a key to another value, where it was set or by one more --set."""
    for name, known in job.keys.items():
        if known == key and name in given:
            given[name] = value
            return
    given["sets"] = [*(given.get("sets") or ()), f'{key}="{value}"']


def _to_words(command: Any, given: Mapping[str, Any]) -> list[str]:
    """The command line that sets these parameters."""
    options: list[str] = []
    arguments: list[str] = []
    for parameter in command.params:
        if parameter.name not in given:
            continue
        value = given[parameter.name]
        if parameter.param_type_name == "argument":
            arguments.append(str(value))
        elif parameter.is_flag:
            options.append(parameter.opts[0] if value else parameter.secondary_opts[0])
        else:
            for one in value if parameter.multiple else [value]:
                options += [parameter.opts[0], str(one)]
    return [*options, *arguments]
