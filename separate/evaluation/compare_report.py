"""The report of a comparison: a table, compare.csv, compare.json and a picture."""

from __future__ import annotations

import csv
import io
import json
from collections.abc import Iterator
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

from separate.evaluation.compare import ALL, Comparison, Difference, Statistic
from separate.files import printable, replace_file

if TYPE_CHECKING:
    from matplotlib.figure import Figure

NAME = "compare"  # stem of compare.csv, compare.json and compare.png
FEW = 10  # tracks; with fewer, an interval is rough
SHOWN = 5  # names of tracks in a sentence


def write(comparison: Comparison, folder: Path) -> None:
    """Write compare.csv (both scores of each track), compare.json (the statistics) and compare.png."""
    picture = io.BytesIO()
    draw(comparison).savefig(picture, format="png", dpi=130)
    replace_file(folder / f"{NAME}.csv", printable(rows(comparison)).encode())
    replace_file(folder / f"{NAME}.json", printable(json.dumps(summary(comparison), indent=2)).encode() + b"\n")
    replace_file(folder / f"{NAME}.png", picture.getvalue())


def text(comparison: Comparison) -> str:
    """A table for each metric: mean and median difference from the first evaluation, each with its interval."""
    level = f"{100 * comparison.options.confidence:g}%"
    head = ["", "source", "tracks", f"mean difference [{level}]", f"median difference [{level}]", "better on"]
    blocks = []
    for metric in comparison.metrics:
        found = comparison.first.results.metrics[metric]
        better = "higher" if found.higher_is_better else "lower"
        title = f"{found.heading}, {better} is better: difference from {comparison.first.name}"
        lines = [head]
        for one in (one for one in comparison.differences if one.metric == metric):
            count = len(one.tracks)
            interval = [_interval(one.mean), _interval(one.median)]
            lines.append([one.other, one.source, str(count), *interval, f"{one.better} of {count}" if count else "-"])
        widths = [max(map(len, column)) for column in zip(*lines, strict=True)]
        aligned = ("  ".join(map(str.ljust, line, widths)).rstrip() for line in lines)
        blocks.append("\n".join([title, *aligned]))
    return printable("\n\n".join([*blocks, "\n".join(notes(comparison))]))


def _interval(statistic: Statistic) -> str:
    if statistic.value is None:
        return "-"
    if statistic.low is None or statistic.high is None:
        return f"{statistic.value:+.2f}"
    low, high = (f"{side:+.2f}" for side in (statistic.low, statistic.high))
    return f"{statistic.value:+.2f} [{low}, {high}]{' *' if statistic.apart else ''}"


def notes(comparison: Comparison) -> Iterator[str]:
    """Sentences below the table: what was compared, how, and what was left out."""
    methods = {entry.name: entry.method for entry in comparison.entries}
    compared = ", ".join(f"{name} ({method})" for name, method in methods.items())
    options = comparison.options
    yield f"Compared over {len(comparison.tracks)} tracks that all have: {compared}."
    yield (
        f"*: the interval excludes 0. Bootstrap over tracks with {options.resamples} resamples, seed {options.seed}: "
        f"BCa for the mean, percentiles for the median (Efron and Tibshirani 1993)."
    )
    if any(one.source == ALL for one in comparison.differences):
        yield f"{ALL}: the mean over the sources of each track."
    inner = {comparison.first.results.metrics[name].description.get("aggregate", "") for name in comparison.metrics}
    if any(inner):
        yield f"A track's score is the {', '.join(sorted(filter(None, map(str, inner))))} where a metric has frames."
    for name, tracks in comparison.unmatched.items():
        more = ", …" if len(tracks) > SHOWN else ""
        yield f"Left out, {len(tracks)} of {name} that others lack: {', '.join(tracks[:SHOWN])}{more}."
    if comparison.options.metrics is None:
        for entry in comparison.entries:
            if other := [name for name in entry.results.metrics if name not in comparison.metrics]:
                yield f"Metrics of {entry.name} that others lack: {', '.join(other)}."
    if len(comparison.tracks) < FEW:
        yield f"With fewer than {FEW} tracks the intervals are rough."


def rows(comparison: Comparison) -> str:
    """CSV with a row for each track, source, metric and other evaluation: both scores and their difference."""
    out = io.StringIO()
    writer = csv.writer(out, lineterminator="\n")
    writer.writerow(["track", "source", "metric", "first", "other", "first_score", "other_score", "difference"])
    for one in comparison.differences:
        for track, (a, b) in one.tracks.items():
            writer.writerow([track, one.source, one.metric, comparison.first.name, one.other, a, b, b - a])
    return out.getvalue()


def summary(comparison: Comparison) -> dict[str, Any]:
    """{first, evaluations, tracks, unmatched, options, metrics, differences: [{other, metric, source, ...}]}."""
    first = comparison.first
    return {
        "first": first.name,
        "evaluations": {entry.name: {"method": entry.method} for entry in comparison.entries},
        "tracks": comparison.tracks,
        "unmatched": comparison.unmatched,
        "confidence": comparison.options.confidence,
        "resamples": comparison.options.resamples,
        "seed": comparison.options.seed,
        "metrics": {name: first.results.metrics[name].description for name in comparison.metrics},
        "differences": [
            {
                "other": one.other,
                "metric": one.metric,
                "source": one.source,
                "tracks": len(one.tracks),
                "mean": asdict(one.mean),
                "median": asdict(one.median),
                "better": one.better,
            }
            for one in comparison.differences
        ],
    }


def draw(comparison: Comparison) -> Figure:
    """A row of panels for each metric, a panel for each source: the differences, their mean and its interval."""
    from matplotlib.figure import Figure

    sources = list(dict.fromkeys(one.source for one in comparison.differences))
    others = [entry.name for entry in comparison.entries[1:]]
    panels: dict[tuple[str, str], list[Difference]] = {}
    for one in comparison.differences:
        panels.setdefault((one.metric, one.source), []).append(one)
    height = 0.9 + 0.45 * len(others)
    figure = Figure(figsize=(1.5 + 2.6 * len(sources), 0.5 + height * len(comparison.metrics)), layout="constrained")
    axes: Any = figure.subplots(len(comparison.metrics), len(sources), squeeze=False, sharex="row", sharey=True)
    for row, metric in zip(axes, comparison.metrics, strict=True):
        found = comparison.first.results.metrics[metric]
        for axis, source in zip(row, sources, strict=True):
            _panel(axis, panels[metric, source])
            axis.set_title(printable(source), parse_math=False, fontsize=10)
        better = "right" if found.higher_is_better else "left"
        row[len(row) // 2].set_xlabel(f"{found.heading}: difference ({better} is better)", parse_math=False)
    axes[0, 0].set_yticks(range(len(others)), list(map(printable, others)), parse_math=False)
    axes[0, 0].set_ylim(len(others) - 0.5, -0.5)
    title = f"Difference from {comparison.first.name} on {len(comparison.tracks)} tracks; bar: mean and its interval"
    figure.suptitle(printable(title), parse_math=False, fontsize=10)
    return figure


def _panel(axis: Any, differences: list[Difference]) -> None:
    """A strip for each other evaluation: a dot for each track, the mean with its interval."""
    axis.axvline(0, color="0.3", linewidth=0.9)
    for place, one in enumerate(differences):
        heights = [place + 0.42 * ((7 * i % 11) / 10 - 0.5) for i in range(len(one.tracks))]
        axis.plot(one.values, heights, ".", color=f"C{place % 10}", alpha=0.4, markersize=4, markeredgewidth=0)
        if one.mean.value is not None and one.mean.low is not None and one.mean.high is not None:
            reach = [[one.mean.value - one.mean.low], [one.mean.high - one.mean.value]]
            axis.errorbar([one.mean.value], [place], xerr=reach, fmt="|", color="black", capsize=4, linewidth=1.6)
    axis.grid(axis="x", alpha=0.25)
    axis.spines[["top", "right"]].set_visible(False)
