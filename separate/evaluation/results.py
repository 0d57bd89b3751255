"""The scores of an evaluation: one row for each track, source, method and metric."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from separate.evaluation.metrics import Metric


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
