"""A chart of the stages: one bar for each size of image."""

from __future__ import annotations

import importlib.util
from collections.abc import Sequence

from segcore.bench.stages import STAGES, StageTimes
from segcore.errors import UsageError

# The palette of Okabe and Ito, which colour-blind people can tell apart. One for each stage.
_COLOURS = ("#999999", "#56B4E9", "#009E73", "#0072B2", "#F0E442", "#D55E00", "#CC79A7")
_MIN_LABELLED_PERCENT = 6  # narrower pieces have no room for their number


def require_matplotlib() -> None:
    """Check, before anything is measured, that a plot can be drawn.

    Raises:
        UsageError: matplotlib is not installed.
    """
    if importlib.util.find_spec("matplotlib") is None:
        raise UsageError(
            "--plot needs matplotlib, which is not installed.",
            hint="pip install 'segcore[plot]', or leave --plot out: --json has all numbers.",
        )


def draw_plot(path: str, model: str, stages: Sequence[StageTimes]) -> None:
    """Write a PNG to `path`.

    Args:
        model: Its name, for the title.
        stages: One bar each.

    Raises:
        UsageError: matplotlib is missing, or the file cannot be written.
    """
    require_matplotlib()
    from matplotlib.figure import Figure

    figure = Figure(figsize=(9, 1.6 + 0.7 * len(stages)), layout="constrained")
    axes = figure.subplots()
    for row, times in enumerate(stages):
        left = 0.0
        for stage, colour in zip(STAGES, _COLOURS, strict=True):
            percent = times.percent[stage]
            label = stage if row == 0 else None
            axes.barh(row, percent, left=left, color=colour, label=label, edgecolor="white")
            if percent >= _MIN_LABELLED_PERCENT:
                text = f"{times.ms[stage]:.1f}"
                axes.text(left + percent / 2, row, text, ha="center", va="center", fontsize=9)
            left += percent
    names = [f"{t.label}\n{t.total_ms:.1f} ms, {t.instances_per_image:.0f} masks" for t in stages]
    axes.set_yticks(range(len(stages)), names)
    axes.invert_yaxis()
    axes.set_xlim(0, 100)
    axes.set_xlabel("% of the time for one image on one thread; the numbers are milliseconds")
    axes.set_title(f"segcore bench: {model}")
    figure.legend(loc="outside lower center", ncols=len(STAGES), frameon=False)
    try:
        figure.savefig(path, dpi=150, format="png")
    except OSError as error:
        raise UsageError(f"--plot {path}: {error.strerror}.") from None
