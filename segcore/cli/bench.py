"""segcore bench: how fast this machine segments, where the time goes, and what it costs."""

from __future__ import annotations

from typing import Annotated, Any, Literal

import typer
from typer.core import TyperGroup

from segcore.cli.console import JsonFlag, new_app, notify, print_json, print_text
from segcore.cli.option_help import command_class

EPILOG = """
[bold]Examples[/bold]

  segcore bench

  segcore bench photos/ --images 1000 --price-per-hour 1.2 --plot bench.png

  segcore bench --size 640x480 --seconds 240

  segcore bench --size 12mp --stages-only --json

[bold]Other measurements[/bold]

  segcore bench scale   what many units cost: the driver, resuming, the account, status

  segcore bench feed    how fast a GPU could be fed, without a GPU

An archive is only read; everything is written to a temporary folder. With an archive, the job runs
on a local copy of its first images; the stage `read` is timed on the archive itself.
"""

# The options of `segcore segment` that parameters of `command` set.
KEYS = {
    "model": "model.name",
    "imgsz": "model.imgsz",
    "device": "model.device",
    "batch_size": "model.batch_size",
    "scale": "decode.scale",
}
Command = command_class(KEYS)
_DEFAULT = "images"


class BenchGroup(TyperGroup):
    """`segcore bench ...` is `segcore bench images ...`, unless another measurement is named."""

    def parse_args(self, ctx: Any, args: list[str]) -> list[str]:
        """Name the default command where none is named."""
        named = args and args[0] in self.commands
        is_completed_here = ctx.resilient_parsing and not args
        added = [] if named or is_completed_here else [_DEFAULT]
        return super().parse_args(ctx, [*added, *args])

    def shell_complete(self, ctx: Any, incomplete: str) -> list[Any]:
        """The measurements, and what the default one takes."""
        default: Any = self.commands[_DEFAULT]
        offered = super().shell_complete(ctx, incomplete)
        values = {item.value for item in offered}
        more = default.shell_complete(default.context_class(default, parent=ctx), incomplete)
        return [*offered, *(item for item in more if item.value not in values)]


def command(
    input: Annotated[
        str | None,
        typer.Argument(
            metavar="INPUT",
            help="Archive whose images are used, as for segment. Default: synthetic images.",
            show_default=False,
        ),
    ] = None,
    model: Annotated[str, typer.Option()] = "nuclei-yolo11n",
    size: Annotated[
        list[str] | None,
        typer.Option(
            metavar="WIDTHxHEIGHT",
            help="Size of synthetic images, or vga, 1080p, 12mp. Repeatable; the job runs on the "
            "first. Default: all three.",
            show_default=False,
        ),
    ] = None,
    images: Annotated[
        int | None,
        typer.Option(
            min=48,
            help="Images that the job runs on. Default: as many as --seconds allow.",
            show_default=False,
        ),
    ] = None,
    seconds: Annotated[
        float | None,
        typer.Option(
            min=1,
            help="What the three passes of the whole job may take, besides their starts: the plain "
            "loop, the job, the plain loop. Default: 45, for at most 2,000 images.",
            show_default=False,
        ),
    ] = None,
    imgsz: Annotated[
        int | None,
        typer.Option(
            min=32,
            max=8192,
            show_default=False,
        ),
    ] = None,
    scale: Annotated[Literal["full", "reduced"], typer.Option()] = "full",
    device: Annotated[str, typer.Option()] = "auto",
    batch_size: Annotated[int | None, typer.Option(min=1, show_default=False)] = None,
    stages_only: Annotated[
        bool, typer.Option("--stages-only", help="Skip the whole job; takes only seconds.")
    ] = False,
    price_per_hour: Annotated[
        float | None,
        typer.Option(min=0, help="Price of this machine; adds the cost of a million images."),
    ] = None,
    plot: Annotated[
        str | None, typer.Option(metavar="FILE.png", help="Draw the stages. Needs matplotlib.")
    ] = None,
    as_json: JsonFlag = False,
) -> None:
    """Measure this machine: stages, the whole job against a plain loop, memory, cost."""
    from segcore.bench import plot as plotting
    from segcore.bench.run import BenchOptions, run_bench
    from segcore.errors import UsageError
    from segcore.images import DecodeOptions
    from segcore.models.base import ModelOptions

    if plot is not None:
        plotting.require_matplotlib()
    if input is not None and size:
        raise UsageError("--size is for synthetic images; leave it out when INPUT is given.")
    if imgsz is not None and imgsz % 32:
        raise UsageError(f"--imgsz {imgsz}: expected a multiple of 32.")
    options = BenchOptions(
        model=model,
        model_options=ModelOptions(device=device, batch_size=batch_size, imgsz=imgsz),
        decode=DecodeOptions(scale=scale),
        input=input,
        sizes=tuple(size) if size else BenchOptions.sizes,
        images=images,
        seconds=seconds,
        whole_job=not stages_only,
        price_per_hour=price_per_hour,
    )
    report = run_bench(options, notify)
    print_json(report.to_dict()) if as_json else print_text(report.summary())
    if plot is not None:
        plotting.draw_plot(plot, report.model, report.stages)
        notify(f"Wrote {plot}.")


SCALE_EPILOG = """
[bold]Examples[/bold]

  segcore bench scale --units 10000

  segcore bench scale --units 100000 --output s3://bucket/empty-prefix --json

Each unit is one small image, and a model that finds nothing takes the place of the network: what is
measured is the driver, Ray, and the commits. Each unit takes some 10 ms of a core.
"""


def scale_command(
    units: Annotated[int, typer.Option(min=10, max=1_000_000, help="Units of one image.")] = 1000,
    output: Annotated[
        str | None,
        typer.Option(
            metavar="URI",
            help="Empty folder or prefix to commit to; what is written there stays. Default: a "
            "temporary folder on the local disk.",
            show_default=False,
        ),
    ] = None,
    as_json: JsonFlag = False,
) -> None:
    """Measure what many units cost: the driver, resuming, the account, status."""
    from segcore.bench.scale import bench_scale

    report = bench_scale(units, output, notify)
    print_json(report.to_dict()) if as_json else print_text(report.summary())


FEED_EPILOG = """
[bold]Examples[/bold]

  segcore bench feed

  segcore bench feed --images 20000 --size 1080p --hold-ms 8 --json

A model that holds each batch of 32 for a stated time takes the place of the network and the GPU:
what is measured is what reads, decodes and hands images over, against decoding alone on all cores.
"""


def feed_command(
    images: Annotated[int, typer.Option(min=64, help="Images to feed.")] = 4096,
    size: Annotated[
        str, typer.Option(metavar="WIDTHxHEIGHT", help="Their size, or vga, 1080p, 12mp.")
    ] = "640x480",
    hold_ms: Annotated[
        float, typer.Option(min=0, help="Time in ms for which the model holds a batch.")
    ] = 5.0,
    unit_images: Annotated[int, typer.Option(min=1, help="Images of a unit.")] = 256,
    as_json: JsonFlag = False,
) -> None:
    """Measure how fast a GPU could be fed, without a GPU."""
    from segcore.bench.feed import bench_feed

    report = bench_feed(images, size, hold_ms, unit_images, notify)
    print_json(report.to_dict()) if as_json else print_text(report.summary())


app = new_app(
    cls=BenchGroup,
    help="Measure this machine; `segcore bench scale`: many units; `segcore bench feed`: feeding a "
    "GPU.",
)
app.command(_DEFAULT, cls=Command, epilog=EPILOG)(command)
app.command("scale", epilog=SCALE_EPILOG)(scale_command)
app.command("feed", epilog=FEED_EPILOG)(feed_command)
