"""The report of an evaluation: a table for the terminal, CSV, JSON and an HTML page."""

from __future__ import annotations

import base64
import csv
import html
import io
import json
import math
import statistics
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from separate.evaluation.recordings import METHODS, Results, Row
from separate.files import printable, replace_file

if TYPE_CHECKING:
    from matplotlib.figure import Figure

STATISTICS = ("mean", "median")
STYLE = """
body { font: 15px/1.5 system-ui, sans-serif; max-width: 70em; margin: 2em auto; padding: 0 1em; color: #222 }
table { border-collapse: collapse } td, th { padding: .2em .8em; text-align: right; border-bottom: 1px solid #ddd }
td:nth-child(-n+2) { text-align: left } img { max-width: 100% }
dt { float: left; clear: left; width: 14em; color: #666 } dd { margin-left: 14em }
"""


def summarise(results: Results, about: Mapping[str, Any]) -> dict[str, Any]:
    """{**about, tracks, sources_left_out, metrics: {metric: {label, unit, higher_is_better}}, scores}.

    scores: {method: {source or all: {metric: {mean, median}}}}, over the tracks with a score for the source; None
    without any.  `all` gives every source of every track the same weight.
    """
    scores: dict[str, Any] = {}
    for method in METHODS:
        rows = [row for row in results.rows if row["method"] == method]
        scores[method] = {
            source: {
                metric: _mean_and_median([r for r in rows if source in ("all", r["source"])], metric)
                for metric in results.metrics
            }
            for source in [*results.sources, "all"]
        }
    model = [row for row in results.rows if row["method"] == "model"]
    return {
        **about,
        "tracks": len(model) // max(1, len(results.sources)),
        "sources_left_out": sum(math.isnan(float(row["si_sdr"])) for row in model),
        "metrics": {name: metric.description for name, metric in results.metrics.items()},
        "scores": scores,
    }


def _mean_and_median(rows: list[Row], metric: str) -> dict[str, float | None]:
    """{mean, median} of the scores without NaN; None without any."""
    values = [float(row[metric]) for row in rows if not math.isnan(float(row[metric]))]
    if not values:
        return dict.fromkeys(STATISTICS)
    return {"mean": statistics.fmean(values), "median": statistics.median(values)}


def table(summary: Mapping[str, Any]) -> str:
    """Format a summary for the terminal: a row for each method and source, with mean and median of each metric."""
    metrics = summary["metrics"]
    headings = [", ".join(filter(None, (metric["label"], metric["unit"]))) for metric in metrics.values()]
    lines = [
        f"{'':30}" + "".join(f"{heading:>24}" for heading in headings),
        f"{summary['tracks']} tracks".ljust(30) + f"{'mean':>15}{'median':>9}" * len(metrics),
    ]
    for method, sources in summary["scores"].items():
        for source, found in sources.items():
            cells = "".join(f"{_rounded(found[m]['mean']):>15}{_rounded(found[m]['median']):>9}" for m in metrics)
            lines.append(f"{method:20}{source:10}" + cells)
    if summary["sources_left_out"]:
        lines.append(
            f"{summary['sources_left_out']} sources without scores are left out: they are silent or the whole mixture"
        )
    return "\n".join(lines)


def _rounded(value: float | None) -> str:
    return "-" if value is None else f"{value:.2f}"


def write(results: Results, about: Mapping[str, Any], folder: Path) -> dict[str, Any]:
    """Write scores.csv, summary.json and report.html to `folder` and return the summary."""
    summary = summarise(results, about)
    rows = io.StringIO()
    writer = csv.DictWriter(rows, ["track", "source", "method", *results.metrics])
    writer.writeheader()
    writer.writerows(
        {k: "" if isinstance(v, float) and math.isnan(v) else v for k, v in row.items()} for row in results.rows
    )
    text = {
        "scores.csv": rows.getvalue(),
        "summary.json": json.dumps(summary, indent=2) + "\n",
        "report.html": _page(results, summary),
    }
    for name, content in text.items():
        replace_file(folder / name, printable(content).encode())
    return summary


def _page(results: Results, summary: Mapping[str, Any]) -> str:
    """The HTML page, with embedded figures."""
    facts = "".join(
        f"<dt>{html.escape(key)}</dt><dd>{html.escape(str(value))}</dd>"
        for key, value in summary.items()
        if key not in ("scores", "metrics")
    )
    columns = [(name, kind) for name in results.metrics for kind in STATISTICS]
    head = "".join(f"<th>{html.escape(results.metrics[name].heading)}, {kind}</th>" for name, kind in columns)
    body = "".join(
        f"<tr><td>{html.escape(method)}</td><td>{html.escape(source)}</td>"
        + "".join(f"<td>{_rounded(found[name][kind])}</td>" for name, kind in columns)
        + "</tr>"
        for method, sources in summary["scores"].items()
        for source, found in sources.items()
    )
    pictures = [("SI-SDR improvement of each source and track", _distribution(results))]
    if results.picture is not None:
        pictures.append((f"The first recording, {results.rows[0]['track']}", results.picture))
    figures = "".join(
        f'<h2>{html.escape(title)}</h2><img alt="{html.escape(title)}" src="data:image/png;base64,{_png(figure)}">'
        for title, figure in pictures
    )
    return f"""<!doctype html>
<html lang="en"><meta charset="utf-8"><title>separate: scores</title>
<style>{STYLE}</style>
<h1>Scores</h1><dl>{facts}</dl>
<table><tr><th></th><th></th>{head}</tr>{body}</table>{figures}</html>
"""


def _distribution(results: Results) -> Figure:
    """SI-SDR improvement by source, of the model and the tPSA mask: a dot for each track, a bar at the median."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(2.2 * len(results.sources) + 2, 3.6), layout="constrained")
    axes = figure.subplots()
    for side, (method, colour) in enumerate((("model", "tab:blue"), ("tPSA mask", "tab:gray"))):
        for place, source in enumerate(results.sources):
            scores = [
                float(row["si_sdri"]) for row in results.rows if (row["method"], row["source"]) == (method, source)
            ]
            values = [score for score in scores if not math.isnan(score)]
            centre = place + 0.36 * (side - 0.5)
            spread = [centre + 0.22 * ((7 * i % 11) / 10 - 0.5) for i in range(len(values))]
            axes.plot(spread, values, ".", color=colour, alpha=0.5, label=method if place == 0 else None)
            if values:
                axes.hlines(statistics.median(values), centre - 0.15, centre + 0.15, color=colour, linewidth=2.5)
    axes.axhline(0, color="black", linewidth=0.8)
    axes.set_xticks(range(len(results.sources)), list(map(printable, results.sources)), parse_math=False)
    axes.set_ylabel(results.metrics["si_sdri"].heading)
    axes.legend()
    return figure


def _png(figure: Figure) -> str:
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png", dpi=110)
    return base64.b64encode(buffer.getvalue()).decode()
