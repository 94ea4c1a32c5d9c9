"""segcore submit: run a command on a Ray cluster, from anywhere that reaches its job server."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from segcore.cli.console import JsonFlag, notify, print_json
from segcore.errors import ClusterError, UsageError
from segcore.exit_codes import EXIT_CODES, ExitCode
from segcore.text import printable_lines

if TYPE_CHECKING:
    from segcore.cli.submitted_command import SubmittedCommand
    from segcore.distributed.job_following import JobEnd
    from segcore.distributed.job_server import JobServer

EPILOG = f"""
[bold]Examples[/bold]

  segcore submit segment s3://bucket/shards s3://bucket/masks --address http://head:8265

  segcore submit job.yaml --address http://head:8265 --set model.conf=0.4

  segcore submit reprocess nightly.yaml --address http://head:8265 --no-wait

  segcore submit --attach segcore-segment-1a2b3c4d --address http://head:8265

The job can be segment, reprocess, prelabel, train or evaluate, with its own options; a
configuration file alone is one of segment. The file and the local files that it names are sent.
segcore must be installed on the cluster.

Ends with the job's own exit code. Ctrl-C stops the job, so that submitting it again resumes; a
second Ctrl-C leaves it alone.

{EXIT_CODES}
"""
SETTINGS = {"ignore_unknown_options": True}


def command(
    words: Annotated[
        list[str] | None,
        typer.Argument(
            metavar="JOB OPTIONS...",
            help="The command to run, as behind `segcore`.",
            show_default=False,
        ),
    ] = None,
    address: Annotated[
        str,
        typer.Option(
            envvar="RAY_API_SERVER_ADDRESS",
            help="Ray's job server (its dashboard), such as http://head:8265.",
            show_default=False,
        ),
    ] = "",
    attach: Annotated[
        str, typer.Option(metavar="ID", help="Follow a job that was submitted before.")
    ] = "",
    no_wait: Annotated[
        bool, typer.Option("--no-wait", help="Print the job's id and leave it to itself.")
    ] = False,
    job_id: Annotated[
        str, typer.Option("--id", metavar="ID", help="The job's id; refused if there is one.")
    ] = "",
    working_dir: Annotated[
        Path | None,
        typer.Option(
            help="Folder to send, such as one with the module of your own model; without links "
            "and names that begin with a dot.",
            show_default=False,
        ),
    ] = None,
    image: Annotated[
        str,
        typer.Option(
            help="Container image to run in, where Ray's nodes have podman. Nothing is sent then: "
            "all paths are those of the image."
        ),
    ] = "",
    ship_code: Annotated[
        bool, typer.Option("--ship-code", help="Send segcore's own code, not what it depends on.")
    ] = False,
    shared_paths: Annotated[
        bool,
        typer.Option("--shared-paths", help="The cluster sees the same local files as you."),
    ] = False,
    driver_cpus: Annotated[
        float, typer.Option(min=0, help="CPUs of the node that runs the command itself.")
    ] = 0.0,
    driver_gpus: Annotated[
        float | None,
        typer.Option(
            min=0, help="GPUs of it. Default: 1 for train on cuda, otherwise 0.", show_default=False
        ),
    ] = None,
    as_json: JsonFlag = False,
) -> None:
    """Run a job on a Ray cluster: follow its output, end with its exit code."""
    from segcore.distributed import job_server, job_submission

    if not address:
        raise UsageError(
            "--address is missing.",
            hint="Ray's job server is the dashboard of the head, such as http://head:8265.",
        )
    if attach:
        if words or job_id or no_wait:
            raise UsageError(
                "--attach follows a job that exists; it takes no command, no --id, no --no-wait."
            )
        _follow(job_server.connect(address), attach, as_json)
    if image and (working_dir or ship_code):
        raise UsageError("--image cannot be combined with --working-dir or --ship-code.")
    if working_dir is not None and not working_dir.is_dir():
        raise UsageError(f"--working-dir {working_dir} is no folder.")
    prepared = _prepare(words or [], in_image=bool(image))
    server = job_server.connect(address)
    _check_places(prepared, server, shared_paths or bool(image))
    if driver_gpus is None:
        driver_gpus = 1.0 if prepared.wants_gpu else 0.0
    request = job_submission.JobRequest(
        words=_words_there(prepared, shared_paths),
        files=prepared.files,
        working_dir=working_dir,
        image=image,
        ship_code=ship_code,
        driver_cpus=driver_cpus,
        driver_gpus=driver_gpus,
        job_id=job_id or job_submission.new_job_id(prepared.words[0]),
    )
    started = job_submission.submit(server, request)
    notify(f"Submitted {started} to {server.address} (Ray {server.ray_version}).")
    if no_wait:
        notify(_attach_hint(server, started))
        if as_json:
            print_json({"job": started, "address": server.address, "status": "SUBMITTED"})
        else:
            print(started)
        sys.exit(ExitCode.DONE)
    _follow(server, started, as_json)


def _prepare(words: list[str], *, in_image: bool) -> SubmittedCommand:
    from segcore.cli import submitted_command

    prepare = submitted_command.plain_command if in_image else submitted_command.prepare_command
    return prepare(words)


def _check_places(prepared: SubmittedCommand, server: JobServer, shared: bool) -> None:
    """Refuse local paths that the cluster does not see.

    Raises:
        UsageError: There is one.
        ClusterError: The cluster has no nodes yet.
    """
    if not prepared.places or shared or prepared.shares_paths:
        return
    if not server.nodes:
        raise ClusterError(
            f"The cluster at {server.address} has no node yet, so it cannot be told whether it "
            "sees local paths.",
            hint="Try again in a minute, or add --shared-paths if it does.",
        )
    others = server.elsewhere()
    if not others:
        return
    what, path = prepared.places[0]
    raise UsageError(
        f"{path} ({what}) is a local path, and the cluster at {server.address} has other "
        f"machines, such as {others[0].label()}.",
        hint="Use s3:// URIs, or --shared-paths when every machine sees the same files there.",
    )


def _words_there(prepared: SubmittedCommand, shared_paths: bool) -> list[str]:
    """The command line; the job checks its paths once more, against the nodes of then."""
    words = prepared.words
    if shared_paths and prepared.places and words[0] in ("segment", "reprocess", "prelabel"):
        return [words[0], "--set", "ray.shared_paths=true", *words[1:]]
    return words


def _attach_hint(server: JobServer, job_id: str) -> str:
    return f"To follow it: segcore submit --attach {job_id} --address {server.address}"


def _follow(server: JobServer, job_id: str, as_json: bool) -> None:
    """Show the output of a job, and exit as it does."""
    end = _follow_to_end(server, job_id, as_json)
    if end is None:
        notify(f"Left {job_id} to itself. {_attach_hint(server, job_id)}")
        sys.exit(ExitCode.INTERRUPTED)
    notify(end.message)
    if as_json:
        document = {"job": job_id, "address": server.address, "status": end.status}
        print_json({**document, "exit_code": int(end.exit_code), "message": end.message})
    else:
        notify(f"{job_id} ended: {end.status}, exit code {int(end.exit_code)}.")
    sys.exit(end.exit_code)


def _follow_to_end(server: JobServer, job_id: str, as_json: bool) -> JobEnd | None:
    """How the job ended; None where a second Ctrl-C left it alone."""
    from segcore.distributed.job_following import ask_to_stop, follow

    stream = sys.stderr if as_json else sys.stdout

    def show(text: str) -> None:
        encoding = getattr(stream, "encoding", None) or "utf-8"
        stream.write(
            printable_lines(text.expandtabs()).encode(encoding, "backslashreplace").decode(encoding)
        )
        stream.flush()

    try:
        return follow(server, job_id, show)
    except KeyboardInterrupt:
        pass
    try:
        notify("Asking the job to stop; it ends what is in progress. Ctrl-C again leaves it alone.")
        ask_to_stop(server, job_id)
        return follow(server, job_id, lambda text: None)
    except KeyboardInterrupt:
        return None
