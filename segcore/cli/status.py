"""segcore status: where a run stands, from its output alone."""

from __future__ import annotations

from segcore.cli.console import JsonFlag, NewestEdition, RunOutput, notify, print_json, print_text

EPILOG = """
[bold]Examples[/bold]

  segcore status out/

  segcore status s3://bucket/masks --json

Works on any machine that can read the output, while the job runs elsewhere or after it died.
"""


def command(output: RunOutput, edition: NewestEdition = None, as_json: JsonFlag = False) -> None:
    """Show what is done, what is left, what failed and why, and how long the rest will take."""
    from segcore.inspection.status import DIED, STOPPED, read_status
    from segcore.storage import Storage

    status = read_status(Storage(), output, edition)
    print_json(status.to_dict()) if as_json else print_text(status.summary())
    notify(*status.edition_notes)
    if status.state in (DIED, STOPPED):
        notify("No run is active; rerun the same `segcore segment` command to resume.")
    if status.unreadable:
        notify("Some parts cannot be read; `segcore verify` says why.")
