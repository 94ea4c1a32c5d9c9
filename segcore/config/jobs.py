"""The jobs that take a configuration, their configuration files, and the page of all options."""

from __future__ import annotations

from pydantic import BaseModel

from segcore.config.exports import ExportConfig, PrelabelConfig
from segcore.config.reference import to_markdown, to_yaml
from segcore.config.reprocess import ReprocessConfig
from segcore.config.schema import Config
from segcore.training.config import TrainConfig

_HEADINGS = {
    "segment": """Every option of `segcore segment` with its default (`segcore config`).

  segcore segment --config FILE INPUT OUTPUT

No file is needed, and one needs only the lines that you change. Precedence:
  defaults  <  this file  <  --set group.key=value  <  flags such as --model
`null` is an option that is not set. Relative paths start at the working directory.""",
    "train": """Every option of `segcore train` with its default (`segcore config train`).

  segcore train FILE

An option whose line is a comment has no default: it must be set. Precedence:
  defaults  <  this file  <  --set group.key=value
`null` is an option that is not set. Relative paths start at the working directory.""",
    "export": """Every option of `segcore export` with its default (`segcore config export`).

  segcore export --config FILE OUTPUT DEST

No file is needed, and one needs only the lines that you change. Precedence:
  defaults  <  this file  <  --set group.key=value  <  flags such as --format
`null` is an option that is not set. Relative paths start at the working directory.""",
    "prelabel": """Every option of `segcore prelabel` with its default (`segcore config prelabel`).

  segcore prelabel --config FILE INPUT DEST

No file is needed, and one needs only the lines that you change. Precedence:
  defaults  <  this file  <  --set group.key=value  <  flags such as --format
`null` is an option that is not set. Relative paths start at the working directory.""",
    "reprocess": """Every option of `segcore reprocess`, with defaults (`segcore config reprocess`).

  segcore reprocess FILE

`input` and `output` must be set; other options have defaults. Precedence:
  defaults  <  this file  <  --set group.key=value  <  flags such as --quiet
`null` is an option that is not set. Relative paths start at the working directory.""",
}
_PAGE_HEADING = """# Options

Every option that a configuration file or `--set key=value` takes. `segcore config > job.yaml`,
`segcore config train > train.yaml` and so on print files with all of them. A file needs only the
options that differ from their defaults; `--set` wins over the file, and a flag such as `--model`
over both. `segcore COMMAND --help` lists the flags.
"""
SCHEMAS: dict[str, type[BaseModel]] = {
    "segment": Config,
    "train": TrainConfig,
    "export": ExportConfig,
    "prelabel": PrelabelConfig,
    "reprocess": ReprocessConfig,
}


def config_file(job: str) -> str:
    """The YAML text with all options of a job.

    Args:
        job: A key of `SCHEMAS`.
    """
    return to_yaml(SCHEMAS[job], _HEADINGS[job])


def options_page() -> str:
    """All options of all jobs as a page of Markdown, ``docs/options.md``."""
    tables = [f"## segcore {job}\n\n{to_markdown(schema)}" for job, schema in SCHEMAS.items()]
    return "\n".join([_PAGE_HEADING, *tables])
