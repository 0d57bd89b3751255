"""The scores of an evaluation: one row for each track, source, method and metric, its files and its summary."""

from __future__ import annotations

import csv
import io
import json
import math
import statistics
from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Any

from torch import Tensor

from separate.errors import SeparateError, UsageError
from separate.evaluation.metrics import Metric
from separate.files import TextError, printable, read_text, replace_file

SCORES, FRAMES, SUMMARY = "scores.csv", "frames.json", "summary.json"
COLUMNS = ["track", "source", "method", "metric", "score"]
LEAK = "leak"  # stands for a metric in the rows of silent references: the level of the estimate
OWN = ("tracks", "unscored", "silent", "metrics", "scores")  # keys of a summary; its others say what was evaluated
Summary = dict[str, Any]


@dataclass(frozen=True)
class Row:
    """One score; NaN where it is undefined, e.g. for a silent source.

    method: what gave the estimate: the model, the mixture, or an oracle mask; frames: the scores of the single frames
    whose median the score is, for a metric that has frames.
    """

    track: str
    source: str
    method: str
    metric: str
    score: float
    frames: tuple[float, ...] = ()


@dataclass(frozen=True)
class Leak:
    """The level of an estimate whose reference is silent, in dB relative to the mixture; -inf for a silent estimate."""

    track: str
    source: str
    method: str
    level: float


@dataclass
class Results:
    """The scores of an evaluation.

    about: what was evaluated, for the summary and the report (checkpoint, split, data, configuration, versions).
    """

    sources: list[str]
    methods: list[str]
    metrics: Mapping[str, Metric]
    about: dict[str, Any]
    tracks: list[str] = field(default_factory=list)
    rows: list[Row] = field(default_factory=list)
    leaks: list[Leak] = field(default_factory=list)


def summarise(results: Results) -> Summary:
    """{**about, tracks, unscored, silent, metrics: {metric: {label, unit, ...}}, scores}.

    scores: {method: {source or all: {metric: {mean, median}}}}, over the tracks with a score for the source; None
    without any.  `all` gives every source of every track the same weight.
    unscored: {metric: number of sources of tracks without a score of the first method}.
    silent: {references: their number, leaked: {method: {median, worst}}}, levels in dB relative to the mixture, None
    for silence.
    """
    found: dict[tuple[str, str, str], list[float]] = {}
    for row in results.rows:
        found.setdefault((row.method, row.source, row.metric), []).append(row.score)
    scores: dict[str, Any] = {}
    for method in results.methods:
        by_source = {
            source: {metric: found.get((method, source, metric), []) for metric in results.metrics}
            for source in results.sources
        }
        by_source["all"] = {m: [x for one in by_source.values() for x in one[m]] for m in results.metrics}
        scores[method] = {s: {m: _mean_and_median(x) for m, x in one.items()} for s, one in by_source.items()}
    first = results.methods[0] if results.methods else ""
    return {
        **results.about,
        "tracks": len(results.tracks),
        "unscored": {
            metric: sum(math.isnan(row.score) for row in results.rows if (row.method, row.metric) == (first, metric))
            for metric in results.metrics
        },
        "silent": _silent(results),
        "metrics": {name: metric.description for name, metric in results.metrics.items()},
        "scores": scores,
    }


def _mean_and_median(values: Iterable[float]) -> dict[str, float | None]:
    """{mean, median} of the scores without NaN; None without any."""
    known = [value for value in values if not math.isnan(value)]
    if not known:
        return {"mean": None, "median": None}
    return {"mean": sum(known) / len(known), "median": statistics.median(known)}


def _silent(results: Results) -> dict[str, Any]:
    levels: dict[str, list[float]] = {}
    for leak in results.leaks:
        levels.setdefault(leak.method, []).append(leak.level)
    return {
        "references": len({(leak.track, leak.source) for leak in results.leaks}),
        "leaked": {
            method: {"median": _finite(statistics.median(found)), "worst": _finite(max(found))}
            for method, found in levels.items()
        },
    }


def _finite(value: float) -> float | None:
    return value if math.isfinite(value) else None


def write(results: Results, folder: Path) -> Summary:
    """Write scores.csv, frames.json (if a metric has frames) and summary.json, and return the summary.

    A score that is undefined is an empty cell, and null in JSON.  A silent reference has a row with the metric `leak`.
    """
    summary = summarise(results)
    rows = io.StringIO()
    writer = csv.writer(rows, lineterminator="\n")
    writer.writerow(COLUMNS)
    writer.writerows([r.track, r.source, r.method, r.metric, _cell(r.score)] for r in results.rows)
    writer.writerows([k.track, k.source, k.method, LEAK, _cell(k.level)] for k in results.leaks)
    framed = [json.dumps(_framed(row)) for row in results.rows if row.frames]
    texts = {SCORES: rows.getvalue(), FRAMES: "[\n" + ",\n".join(framed) + "\n]\n" if framed else None}
    texts[SUMMARY] = json.dumps(summary, indent=2, default=str) + "\n"  # last, because it marks a finished evaluation
    for name, content in texts.items():
        if content is None:
            (folder / name).unlink(missing_ok=True)
        else:
            replace_file(folder / name, printable(content).encode())
    return summary


def _cell(score: float) -> str:
    return "" if math.isnan(score) else repr(score)


def _framed(row: Row) -> dict[str, Any]:
    """The frames of a row as JSON: null for NaN, and names for infinity, which JSON lacks."""
    frames = [None if math.isnan(x) else x if math.isfinite(x) else str(x) for x in row.frames]
    return {"track": row.track, "source": row.source, "method": row.method, "metric": row.metric, "frames": frames}


def read(folder: Path) -> Results:
    """The results that `write` has written; UsageError for a folder without them or with those of older versions.

    Their metrics have labels and units and cannot be computed again.
    """
    try:
        summary = json.loads(read_text(folder / SUMMARY))
        framed = json.loads(read_text(folder / FRAMES)) if (folder / FRAMES).exists() else []
        cells = list(csv.reader(io.StringIO(read_text(folder / SCORES), newline="")))
    except (TextError, ValueError) as error:
        raise UsageError(
            f"{folder} holds no readable scores ({error}); give a folder that separate-eval wrote"
        ) from None
    try:
        return _parsed(summary, framed, cells)
    except (KeyError, TypeError, ValueError, AttributeError, IndexError):
        raise UsageError(
            f"{folder} holds scores in another format, those of an older version or of other programs; run "
            f"separate-eval again"
        ) from None


def _parsed(summary: Any, framed: Any, cells: list[list[str]]) -> Results:
    if cells[0] != COLUMNS:
        raise ValueError
    frames = {_key(one): tuple(_number(value) for value in one["frames"]) for one in framed}
    methods = list(summary["scores"])
    results = Results(
        sources=[source for source in summary["scores"][methods[0]] if source != "all"],
        methods=methods,
        metrics={name: described(name, one) for name, one in summary["metrics"].items()},
        about={key: value for key, value in summary.items() if key not in OWN},
        tracks=list(dict.fromkeys(track for track, *_ in cells[1:])),
    )
    for track, source, method, metric, score in cells[1:]:
        if metric == LEAK:
            results.leaks.append(Leak(track, source, method, _number(score)))
        else:
            row_frames = frames.get((track, source, method, metric), ())
            results.rows.append(Row(track, source, method, metric, _number(score), row_frames))
    return results


def _key(one: Mapping[str, Any]) -> tuple[str, str, str, str]:
    return one["track"], one["source"], one["method"], one["metric"]


def _number(value: str | float | None) -> float:
    return math.nan if value in ("", None) else float(value)


def described(name: str, description: Mapping[str, Any]) -> Metric:
    """A metric with a label, a unit, a direction and an aggregate, without its function."""

    def absent(estimates: Tensor, references: Tensor, mixture: Tensor) -> Tensor:
        raise SeparateError(f"{name} was read from a file; name it in metrics=[...] to compute it")

    known = {one.name for one in fields(Metric)}
    return Metric(function=absent, name=name, **{key: value for key, value in description.items() if key in known})


def unlike(name: str, names: Collection[str]) -> str:
    """A name that is not among others, with a number if needed."""
    number, found = 1, name
    while found in names:
        number += 1
        found = f"{name} ({number})"
    return found
