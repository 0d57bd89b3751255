"""Metrics of a separation: functions with a label, a unit and a direction."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from separate.errors import UsageError
from separate.evaluation import sdr

MetricFunction = Callable[[Tensor, Tensor, Tensor], Tensor]
RESERVED = ("loss", "track", "source", "method")  # names of other columns in metrics.jsonl and scores.csv


@dataclass(frozen=True)
class Metric:
    """A function (estimates (B, S, C, T), references (B, S, C, T), mixture (B, C, T)), all float64 -> (B, S).

    name: the key in `metrics.jsonl`, `scores.csv` and `summary.json`; label: the heading in tables.
    """

    function: MetricFunction
    name: str
    label: str
    unit: str
    higher_is_better: bool

    def __call__(self, estimates: Tensor, references: Tensor, mixture: Tensor) -> Tensor:
        """Scores (B, S), with the worst value, -inf or inf, for NaN, so that a mean over tracks shows it.

        UsageError if the function returns another shape.
        """
        values = self.function(estimates, references, mixture)
        if values.shape != references.shape[:2]:
            raise UsageError(
                f"the metric {self.name} gives the shape {tuple(values.shape)}; return one score for each example and "
                f"source, {tuple(references.shape[:2])}"
            )
        worst = -torch.inf if self.higher_is_better else torch.inf
        return values.nan_to_num(nan=worst, posinf=torch.inf, neginf=-torch.inf)

    @property
    def heading(self) -> str:
        """The label with its unit, e.g. "SI-SDR, dB"."""
        return f"{self.label}, {self.unit}" if self.unit else self.label

    @property
    def description(self) -> dict[str, str | bool]:
        """Label, unit and direction, for `summary.json`."""
        return {"label": self.label, "unit": self.unit, "higher_is_better": self.higher_is_better}


def metric(label: str, unit: str = "", higher_is_better: bool = True) -> Callable[[MetricFunction], Metric]:
    """Decorate a function as a metric with the same name."""
    return lambda function: Metric(function, function.__name__, label, unit, higher_is_better)


@metric(label="SI-SDR", unit="dB")
def si_sdr(estimates: Tensor, references: Tensor, mixture: Tensor) -> Tensor:
    """Scale-invariant SDR over all channels of a source together, so that a wrong stereo balance lowers it."""
    return sdr.si_sdr(estimates.flatten(-2), references.flatten(-2))


@metric(label="SI-SDR improvement", unit="dB")
def si_sdri(estimates: Tensor, references: Tensor, mixture: Tensor) -> Tensor:
    """SI-SDR of the estimates minus SI-SDR of the mixture."""
    before = sdr.si_sdr(mixture.unsqueeze(1).flatten(-2), references.flatten(-2))
    return sdr.si_sdr(estimates.flatten(-2), references.flatten(-2)) - before


@metric(label="SNR", unit="dB")
def snr(estimates: Tensor, references: Tensor, mixture: Tensor) -> Tensor:
    """Signal-to-noise ratio, which depends on level and polarity."""
    return sdr.snr(estimates.flatten(-2), references.flatten(-2))


def by_name(metrics: Iterable[Metric]) -> dict[str, Metric]:
    """{name: metric}; UsageError for a reserved name and for two metrics with the same name."""
    found: dict[str, Metric] = {}
    for one in metrics:
        if one.name in (*RESERVED, *found):
            raise UsageError(
                f"the metric {one.name} has a reserved name or the name of another metric; rename its function"
            )
        found[one.name] = one
    return found


METRICS = by_name([si_sdr, si_sdri, snr])  # always computed


def load_metrics(names: Sequence[str], trust: Sequence[str] | None = None) -> dict[str, Metric]:
    """`METRICS` and the user's own metrics.

    names: dotted names of their functions; trust: as in `instantiate.build`.  UsageError if one is not a metric.
    """
    from separate.instantiate import build

    own = [build({"_target_": name, "_partial_": True}, "metrics", trust) for name in names]
    for name, one in zip(names, own, strict=True):
        if not isinstance(one, Metric):
            raise UsageError(
                f"metrics=[{name}] is not a metric; decorate the function with "
                f"@metric(label=..., unit=...) of separate.evaluation.metrics"
            )
    return by_name([*METRICS.values(), *own])


def higher_is_better(quantity: str, metrics: Mapping[str, Metric] = METRICS) -> bool:
    """Whether higher values of a monitored quantity are better: those of `valid/METRIC` as the metric says.

    Losses, their parts and gradient norms are better when they are lower.
    """
    found = metrics.get(quantity.removeprefix("valid/"))
    return found is not None and found.higher_is_better
