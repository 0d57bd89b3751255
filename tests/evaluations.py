"""Small evaluations without a model: results with known scores, and recordings to listen to."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

import torch

from separate.evaluation.excerpts import Listening
from separate.evaluation.metrics import Metric
from separate.evaluation.results import Leak, Results, Row

METHODS = ("model", "mixture as estimate", "tPSA mask")
SOURCES = ("vocals", "drums")
ABOUT = {
    "split": "test",
    "data": "stems",
    "checkpoint": "runs/a/checkpoints/best.ckpt",
    "config": {"model": {"_target_": "separate.models.OpenUnmix", "hidden": 512}},
    "versions": {"separate": "0.1.0", "torch": "2.11.0"},
}
OFFSETS = {"model": 6.0, "estimates": 6.0, "mixture as estimate": -3.0, "tPSA mask": 11.0}


def described(name: str, label: str, unit: str = "dB", higher_is_better: bool = True) -> Metric:
    """A metric that is only described."""
    return Metric(lambda estimates, references, mixture: references[..., 0, 0], name, label, unit, higher_is_better)


METRICS = {
    one.name: one
    for one in (
        described("si_sdr", "SI-SDR"),
        described("lsd", "log-spectral distance", higher_is_better=False),
        described("estoi", "ESTOI", ""),
    )
}


def value(track: int, source: int, method: str, metric: str) -> float:
    """A score that differs for each track, source, method and metric; the model is best on the last track."""
    decibels = OFFSETS[method] + 1.5 * track - 0.25 * source
    return {"si_sdr": decibels, "lsd": 30 - decibels, "estoi": 1 / (1 + math.exp(-decibels / 10))}[metric]


def results(
    tracks: Sequence[str] = tuple(f"song {number}" for number in range(6)),
    sources: Sequence[str] = SOURCES,
    methods: Sequence[str] = METHODS,
    metrics: Mapping[str, Metric] = METRICS,
    shift: float = 0.0,
) -> Results:
    """Scores of `value` plus `shift`; the last source of the first track is silent, with a leak of -30 dB."""
    found = Results(list(sources), list(methods), metrics, dict(ABOUT), list(tracks))
    for t, track in enumerate(tracks):
        for s, source in enumerate(sources):
            for m, method in enumerate(methods):
                silent = t == 0 and s == len(sources) - 1
                if silent:
                    found.leaks.append(Leak(track, source, method, -30.0 - 10 * m))
                for name in metrics:
                    score = math.nan if silent else value(t, s, method, name) + shift
                    found.rows.append(Row(track, source, method, name, score))
    return found


def recording(track: str, seconds: float = 1.0, sample_rate: int = 8000, sources: Sequence[str] = SOURCES) -> Listening:
    """Tones of one second each; every estimate has a tenth of the mixture in it."""
    time = torch.arange(round(seconds * sample_rate)) / sample_rate
    references = {
        source: 0.1 * torch.sin(2 * math.pi * 300 * (number + 1) * time).repeat(2, 1)
        for number, source in enumerate(sources)
    }
    mixture = torch.stack(list(references.values())).sum(dim=0)
    estimates = {source: 0.9 * reference + 0.1 * mixture for source, reference in references.items()}
    return Listening(track, sample_rate, mixture, references, estimates)
