"""The picture of a sweep: a panel for each swept key, its value against the monitored quantity."""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from separate.sweeps.results import Setting

COLUMNS = 3  # panels side by side
LOG_FROM = 9.0  # ratio of the largest to the smallest value from which an axis is logarithmic
LONGEST = 14  # characters of a category
FAR = 4.0  # a value this many times as far from the best as the median is drawn at the edge


def picture(settings: Sequence[Setting], quantity: str, upwards: bool, path: Path, metric: str | None = None) -> None:
    """Draw the settings that have a value.  settings: the best first; quantity: label of the vertical axis, which is
    the monitored metric or the score `metric`."""
    from matplotlib.figure import Figure

    drawn = [setting for setting in settings if setting.numbers(metric)]
    keys = list(drawn[0].values)
    columns = min(COLUMNS, len(keys))
    rows = math.ceil(len(keys) / columns)
    figure = Figure(figsize=(0.9 + 3.6 * columns, 0.7 + 3.2 * rows), layout="constrained")
    axes: Any = figure.subplots(rows, columns, sharey=True, squeeze=False)
    limits = _limits(drawn, metric, upwards)
    for axis, key in zip(axes.flat, keys, strict=False):
        _panel(axis, key, drawn, metric, limits)
    for axis in axes.flat[len(keys) :]:
        axis.set_visible(False)
    for row in axes:
        row[0].set_ylabel(f"{quantity} ({'higher' if upwards else 'lower'} is better)")
    _legend(figure, drawn, axes.flat[0])
    figure.savefig(path, dpi=130)


def _panel(axis: Any, key: str, settings: Sequence[Setting], metric: str | None, limits: tuple[float, float]) -> None:
    """A dot for each setting, a bar for its deviation over the seeds, and a line through the best at each value."""
    values = list(dict.fromkeys(setting.values[key] for setting in settings))
    numbers = [number for value in values if (number := _number(value)) is not None]
    numeric = len(numbers) == len(values)
    if numeric:
        places = dict(zip(values, numbers, strict=True))
        _scale(axis, sorted(numbers))
    else:
        values.sort()
        places = {value: float(place) for place, value in enumerate(values)}
        shown = [value if len(value) <= LONGEST else f"{value[: LONGEST - 1]}…" for value in values]
        many = max(map(len, shown)) * len(shown) > 30
        axis.set_xticks(range(len(values)), shown, rotation=30 if many else 0, ha="right" if many else "center")
        axis.set_xlim(-0.6, len(values) - 0.4)
    best = {}
    for rank, setting in reversed(list(enumerate(settings))):
        x, mean = places[setting.values[key]], setting.mean(metric)
        if not setting.pruned:
            best[x] = mean
        _dot(axis, x, setting, metric, rank == 0, limits)
    if numeric:
        axis.plot(sorted(best), [best[x] for x in sorted(best)], color="C0", alpha=0.5, zorder=1)
    else:
        for x, mean in best.items():
            axis.plot([x - 0.25, x + 0.25], [mean, mean], color="C0", alpha=0.5, zorder=1)
    axis.set_xlabel(key)
    axis.set_ylim(*limits)
    axis.grid(alpha=0.25)
    axis.spines[["top", "right"]].set_visible(False)


def _dot(axis: Any, x: Any, setting: Setting, metric: str | None, best: bool, limits: tuple[float, float]) -> None:
    mean, deviation = setting.mean(metric), setting.deviation(metric)
    color = "C3" if best else "0.6" if setting.pruned else "C0"
    if not limits[0] <= mean <= limits[1]:
        at, marker = (limits[1], "^") if mean > limits[1] else (limits[0], "v")
        axis.plot([x], [at], marker, color=color, clip_on=False, zorder=3)
        return
    fill = "none" if setting.pruned else color
    axis.errorbar(
        [x], [mean], [deviation] if deviation else None, fmt="*" if best else "o", color=color, mfc=fill,
        ms=13 if best else 6, capsize=3, elinewidth=1.2, alpha=1.0 if best else 0.75, zorder=4 if best else 2,
    )  # fmt: skip


def _scale(axis: Any, numbers: Sequence[float]) -> None:
    """A logarithmic axis for rates and other positive values that span a decade; ticks at few values."""
    from matplotlib.ticker import FixedLocator, FuncFormatter, NullLocator

    if numbers[0] > 0 and numbers[-1] / numbers[0] >= LOG_FROM:
        axis.set_xscale("log")
    if len(numbers) <= 6 and all(len(f"{value:g}") <= 6 for value in numbers):
        axis.xaxis.set_major_locator(FixedLocator(numbers))
        axis.xaxis.set_minor_locator(NullLocator())
        axis.xaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
    axis.margins(x=0.12)


def _limits(settings: Sequence[Setting], metric: str | None, upwards: bool) -> tuple[float, float]:
    """The range of the vertical axis; without far values on the worse side, which would squeeze the others."""
    ordered = sorted((setting.mean(metric) for setting in settings), reverse=upwards)
    best, median, worst = ordered[0], ordered[len(ordered) // 2], ordered[-1]
    edge = best + FAR * (median - best)
    if edge != best and len(ordered) >= 5:
        worst = max(worst, edge) if upwards else min(worst, edge)
    low, high = min(best, worst), max(best, worst)
    shown = [setting for setting in settings if low <= setting.mean(metric) <= high]
    bars = [(setting.mean(metric), setting.deviation(metric)) for setting in shown]
    low, high = min(mean - deviation for mean, deviation in bars), max(mean + deviation for mean, deviation in bars)
    margin = 0.08 * (high - low) or 0.05 * abs(high) or 1.0
    return low - margin, high + margin


def _legend(figure: Any, settings: Sequence[Setting], axis: Any) -> None:
    from matplotlib.lines import Line2D

    several = any(len(setting.numbers()) > 1 for setting in settings)
    mean = "mean and deviation over the seeds" if several else "setting"
    marks = [
        Line2D([], [], color="C3", marker="*", ls="", ms=11, label="best setting"),
        Line2D([], [], color="C0", marker="o", ls="", label=mean),
        Line2D([], [], color="C0", alpha=0.5, label="best at each value"),
    ]
    if any(setting.pruned for setting in settings):
        marks.append(Line2D([], [], color="0.6", marker="o", mfc="none", ls="", label="pruned"))
    low, high = axis.get_ylim()
    if any(not low <= setting.mean() <= high for setting in settings):
        marks.append(Line2D([], [], color="C0", marker="^", ls="", label="beyond the axis"))
    figure.legend(handles=marks, loc="outside upper center", ncols=len(marks), frameon=False, fontsize=8)


def _number(value: str) -> float | None:
    """The finite number that an override's value stands for."""
    try:
        number = float(value)
    except ValueError:
        return None
    return number if math.isfinite(number) else None
