"""Paired comparison of evaluations: the difference of each track, its mean and median with a bootstrap interval.

The difference of two means says little when scores vary more between tracks than between methods; differences of the
same track do not have that variation.  Intervals: Efron and Tibshirani (1993), An Introduction to the Bootstrap,
chapter 14 (BCa, for means) and 13 (percentiles, for medians, whose acceleration the jackknife cannot estimate).
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from separate.errors import UsageError, nearest
from separate.evaluation import museval_json
from separate.evaluation.results import SUMMARY, Results, read
from separate.evaluation.tables import evaluated
from separate.evaluation.unfinished import FOLDER as UNFINISHED

ALL = "all"  # the mean over the sources of a track
BATCH = 1000  # resamples computed at a time
SPLITS = ("train", "valid", "test")
SAME = ("unit", "higher_is_better", "aggregate")  # of a metric in all evaluations; labels may differ
ROUNDING = 1e-9  # differences of equal scores, relative


@dataclass(frozen=True)
class Options:
    """method: to compare in every evaluation, None for the model or the estimates; metrics: None for all in common.

    confidence: of the interval; resamples: of the bootstrap; seed: of its random generator.
    """

    method: str | None = None
    metrics: Sequence[str] | None = None
    confidence: float = 0.95
    resamples: int = 9999
    seed: int = 0


@dataclass(frozen=True)
class Entry:
    """An evaluation with a short name that no other has.  scores: {(track, source, metric): score} of one method."""

    name: str
    results: Results
    method: str
    scores: Mapping[tuple[str, str, str], float]


@dataclass(frozen=True)
class Statistic:
    """A statistic of differences and its interval; None where it is undefined."""

    value: float | None
    low: float | None = None
    high: float | None = None

    @property
    def apart(self) -> bool:
        """Whether the interval excludes 0."""
        return self.low is not None and self.high is not None and (self.low > 0 or self.high < 0)


@dataclass(frozen=True)
class Difference:
    """Another evaluation minus the first, of one metric and source.  tracks: {track: (first, other)}, without NaN."""

    other: str
    metric: str
    source: str
    tracks: Mapping[str, tuple[float, float]]
    mean: Statistic
    median: Statistic
    better: int  # tracks on which the other is better

    @property
    def values(self) -> list[float]:
        return [other - first for first, other in self.tracks.values()]


@dataclass(frozen=True)
class Comparison:
    """Differences of every other evaluation from the first.

    tracks: those that all evaluations have; unmatched: {name: its tracks that another lacks}.
    """

    entries: list[Entry]
    metrics: list[str]
    sources: list[str]
    tracks: list[str]
    unmatched: dict[str, list[str]]
    differences: list[Difference]
    options: Options

    @property
    def first(self) -> Entry:
        return self.entries[0]


def compare(folders: Sequence[Path], options: Options) -> Comparison:
    """Compare evaluations with the first of them, over the tracks that all have.

    folders: runs, folders of evaluations, or folders with JSON files of museval.  UsageError for evaluations that do
    not fit each other.
    """
    if len(folders) < 2:
        raise UsageError("one evaluation has nothing to be compared with; name two or more folders")
    found = [open_evaluation(folder) for folder in folders]
    names = _names(folders)
    entries = [_entry(name, results, options.method) for name, results in zip(names, found, strict=True)]
    for other in entries[1:]:
        _check_split(entries[0], other)
    metrics = _common_metrics(entries, options.metrics)
    sources = _common("sources", entries, [entry.results.sources for entry in entries])
    tracks = _common("tracks", entries, [entry.results.tracks for entry in entries])
    unmatched = {e.name: left for e in entries if (left := [t for t in e.results.tracks if t not in set(tracks)])}
    differences = [
        _difference(entries[0], other, metric, source, sources, tracks, options)
        for metric in metrics
        for source in ([*sources, ALL] if len(sources) > 1 else sources)
        for other in entries[1:]
    ]
    if not any(one.tracks for one in differences):
        raise UsageError("no track has a score in both evaluations; their scores are undefined")
    return Comparison(entries, metrics, sources, tracks, unmatched, differences, options)


def open_evaluation(folder: Path) -> Results:
    """The results in a folder of an evaluation, in that of a run with one evaluation, or in JSON files of museval."""
    if not folder.is_dir():
        raise UsageError(f"{folder} is no folder; name a run, RUN/eval/SPLIT, or a folder of museval's JSON files")
    if (folder / SUMMARY).exists():
        return read(folder)
    evaluations = sorted(path.parent for path in folder.glob(f"eval/*/{SUMMARY}"))
    if len(evaluations) == 1:
        return read(evaluations[0])
    if evaluations:
        raise UsageError(f"{folder} has {len(evaluations)} evaluations; name one of {', '.join(map(str, evaluations))}")
    if (folder / "checkpoints").is_dir():
        raise UsageError(f"the run {folder} has no scores; make them with separate-eval run={folder}")
    if (folder / UNFINISHED).is_dir():
        raise UsageError(f"the evaluation in {folder} was stopped; repeat its command to go on")
    if museval_json.holds(folder):
        return museval_json.read(folder)
    raise UsageError(f"{folder} has neither {SUMMARY} nor JSON files of museval; run separate-eval first")


def _names(folders: Sequence[Path]) -> list[str]:
    """Short names: the run's, or the folder's without a split; longer ones where two are the same."""
    short = []
    for folder in folders:
        whole = folder.resolve()
        if whole.parent.name == "eval":
            whole = whole.parents[1]
        elif whole.name in SPLITS:  # as museval writes METHOD/test
            whole = whole.parent
        short.append(whole.name)
    return [name if short.count(name) == 1 else str(folder) for name, folder in zip(short, folders, strict=True)]


def _entry(name: str, results: Results, method: str | None) -> Entry:
    chosen = method or evaluated(results.methods)
    if chosen not in results.methods:
        raise UsageError(f"{name} has no scores of the method {chosen}; {nearest(chosen, results.methods)}")
    scores = {(r.track, r.source, r.metric): r.score for r in results.rows if r.method == chosen}
    return Entry(name, results, chosen, scores)


def _check_split(first: Entry, other: Entry) -> None:
    for key in ("split", "data"):
        one, two = first.results.about.get(key), other.results.about.get(key)
        if one is not None and two is not None and one != two:
            raise UsageError(
                f"{first.name} was evaluated with {key}={one} and {other.name} with {key}={two}; compare evaluations "
                f"of the same tracks"
            )


def _common_metrics(entries: Sequence[Entry], chosen: Sequence[str] | None) -> list[str]:
    """Metrics of all entries; UsageError if one of them has different definitions, or if there is none."""
    for name in chosen or ():
        for entry in entries:
            if name not in entry.results.metrics:
                raise UsageError(f"{entry.name} has no metric {name}; {nearest(name, entry.results.metrics)}")
    metrics = _common("metrics", entries, [list(entry.results.metrics) for entry in entries])
    metrics = list(chosen) if chosen else metrics
    for name in metrics:
        for other in entries[1:]:
            first, second = (one.results.metrics[name].description for one in (entries[0], other))
            for key in SAME:
                if (one := first.get(key) or "none") != (two := second.get(key) or "none"):
                    raise UsageError(
                        f"{key.replace('_', ' ')} of {name}: {one} in {entries[0].name}, {two} in {other.name}; "
                        f"evaluate both in the same way, or choose others with --metric"
                    )
    return metrics


def _common(kind: str, entries: Sequence[Entry], lists: Sequence[Sequence[str]]) -> list[str]:
    """What all lists hold, in the order of the first; UsageError if that is nothing."""
    found = [one for one in lists[0] if all(one in set(other) for other in lists[1:])]
    if not found:
        held = "; ".join(f"{e.name}: {', '.join(one[:4]) or 'none'}" for e, one in zip(entries, lists, strict=True))
        raise UsageError(f"the evaluations have no {kind} in common ({held}); compare evaluations of the same data")
    return found


def _difference(
    first: Entry,
    other: Entry,
    metric: str,
    source: str,
    sources: Sequence[str],
    tracks: Sequence[str],
    options: Options,
) -> Difference:
    pairs = {}
    for track in tracks:
        both = [
            (first.scores.get((track, one, metric), math.nan), other.scores.get((track, one, metric), math.nan))
            for one in (sources if source == ALL else [source])
        ]
        known = [pair for pair in both if not any(map(math.isnan, pair))]
        if known:
            a, b = (sum(side) / len(known) for side in zip(*known, strict=True))
            if not math.isnan(b - a):
                pairs[track] = (a, b)
    values = np.array([b - a for a, b in pairs.values()])
    sign = 1 if first.results.metrics[metric].higher_is_better else -1
    return Difference(
        other.name,
        metric,
        source,
        pairs,
        bootstrap(values, np.mean, "BCa", options),
        bootstrap(values, np.median, "percentile", options),
        int((sign * values > 0).sum()),
    )


def bootstrap(values: np.ndarray, statistic: Any, method: str, options: Options) -> Statistic:
    """A statistic with its interval; no interval of fewer than two values or of infinite ones."""
    from scipy import stats

    if not len(values):
        return Statistic(None)
    value = float(statistic(values))
    if len(values) < 2 or not np.isfinite(values).all():
        return Statistic(value if math.isfinite(value) else None)
    if np.ptp(values) <= ROUNDING * max(1.0, abs(value)):  # no resample differs
        return Statistic(value, value, value)
    found = stats.bootstrap(
        (values,), statistic, n_resamples=options.resamples, batch=BATCH, confidence_level=options.confidence,
        method=method, random_state=np.random.default_rng(options.seed),
    ).confidence_interval  # fmt: skip
    return Statistic(value, float(found.low), float(found.high))
