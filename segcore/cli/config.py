"""segcore config: all options of a job as a commented YAML file."""

from __future__ import annotations

from typing import Annotated, Literal

import typer

EPILOG = """
[bold]Examples[/bold]

  segcore config > job.yaml

  segcore config train > train.yaml

  segcore segment --config job.yaml photos/ out/

Delete the lines that you do not change: what a file does not set keeps its default.
"""

Job = Literal["segment", "train", "export", "prelabel", "reprocess"]


def command(
    job: Annotated[
        Job, typer.Argument(metavar="[JOB]", help="segment, train, export, prelabel or reprocess.")
    ] = "segment",
) -> None:
    """Print a configuration file with every option of a job, its default, and what it does."""
    from segcore.config.jobs import config_file

    print(config_file(job), end="")
