"""Metrics of a separation: functions with a label, a unit and a direction."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from difflib import get_close_matches
from typing import Any

import torch
from torch import Tensor

from separate.errors import UsageError
from separate.evaluation import bss_eval, perceptual, sdr, spectral

MetricFunction = Callable[[Tensor, Tensor, Tensor], Tensor]
RESERVED = ("loss", "track", "source", "method", "leak")  # names of other columns and rows


@dataclass(frozen=True)
class Family:
    """Metrics that are computed together.

    function: (estimates (B, S, C, T), references (B, S, C, T), mixture (B, C, T), sample rate), all float64 ->
    {metric: (B, S), or (B, S, W) for a score in each of W frames}.
    ordered_by: the metric by which interchangeable estimates are paired with the references.
    """

    name: str
    function: Callable[[Tensor, Tensor, Tensor, int], dict[str, Tensor]]
    ordered_by: str


@dataclass(frozen=True)
class Metric:
    """A function (estimates (B, S, C, T), references (B, S, C, T), mixture (B, C, T)), all float64 -> (B, S).

    name: the key in `metrics.jsonl`, `scores.csv` and `summary.json`; label: the heading in tables; aggregate: how the
    score of a source comes from its frames, empty without frames; family: the metrics that are computed together with
    this one, whose function it has; scores_silence: whether silent references have a score; in_blocks: whether the
    function takes signals of any precision and computes in float64 block by block, which saves memory.
    """

    function: Callable[..., Any]
    name: str
    label: str
    unit: str
    higher_is_better: bool
    aggregate: str = ""
    family: Family | None = None
    scores_silence: bool = False
    in_blocks: bool = False

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
        return values.nan_to_num(nan=self.worst, posinf=torch.inf, neginf=-torch.inf)

    @property
    def worst(self) -> float:
        return -torch.inf if self.higher_is_better else torch.inf

    @property
    def heading(self) -> str:
        """The label with its unit, e.g. "SI-SDR, dB"."""
        return f"{self.label}, {self.unit}" if self.unit else self.label

    @property
    def description(self) -> dict[str, str | bool]:
        """Label, unit, direction and aggregate, for `summary.json`."""
        facts: dict[str, str | bool] = {
            "label": self.label,
            "unit": self.unit,
            "higher_is_better": self.higher_is_better,
        }
        return {**facts, "aggregate": self.aggregate} if self.aggregate else facts


def metric(
    label: str, unit: str = "", higher_is_better: bool = True, in_blocks: bool = False
) -> Callable[[MetricFunction], Metric]:
    """Decorate a function as a metric with the same name."""
    return lambda function: Metric(function, function.__name__, label, unit, higher_is_better, in_blocks=in_blocks)


@metric(label="SI-SDR", unit="dB", in_blocks=True)
def si_sdr(estimates: Tensor, references: Tensor, mixture: Tensor) -> Tensor:
    """Scale-invariant SDR over all channels of a source together, so that a wrong stereo balance lowers it."""
    return sdr.recording_si_sdr(estimates.flatten(-2), references.flatten(-2))


@metric(label="SI-SDR improvement", unit="dB", in_blocks=True)
def si_sdri(estimates: Tensor, references: Tensor, mixture: Tensor) -> Tensor:
    """SI-SDR of the estimates minus SI-SDR of the mixture."""
    before = sdr.recording_si_sdr(mixture.unsqueeze(1).flatten(-2), references.flatten(-2))
    return sdr.recording_si_sdr(estimates.flatten(-2), references.flatten(-2)) - before


@metric(label="SNR", unit="dB", in_blocks=True)
def snr(estimates: Tensor, references: Tensor, mixture: Tensor) -> Tensor:
    """Signal-to-noise ratio, which depends on level and polarity."""
    return sdr.recording_snr(estimates.flatten(-2), references.flatten(-2))


@metric(label="SNR improvement", unit="dB", in_blocks=True)
def snri(estimates: Tensor, references: Tensor, mixture: Tensor) -> Tensor:
    """SNR of the estimates minus SNR of the mixture."""
    return snr.function(estimates, references, mixture) - sdr.recording_snr(
        mixture.unsqueeze(1).flatten(-2), references.flatten(-2)
    )


@metric(label="SD-SDR", unit="dB", in_blocks=True)
def sd_sdr(estimates: Tensor, references: Tensor, mixture: Tensor) -> Tensor:
    """Scale-dependent SDR (Le Roux et al. 2019): SNR plus the squared gain of the target in dB, at most SI-SDR."""
    return sdr.sd_sdr(estimates.flatten(-2), references.flatten(-2))


@metric(label="SI-SIR", unit="dB", in_blocks=True)
def si_sir(estimates: Tensor, references: Tensor, mixture: Tensor) -> Tensor:
    """Scale-invariant ratio of target and interference (Le Roux et al. 2019)."""
    return sdr.si_sir_and_sar(estimates.flatten(-2), references.flatten(-2))[0]


@metric(label="SI-SAR", unit="dB", in_blocks=True)
def si_sar(estimates: Tensor, references: Tensor, mixture: Tensor) -> Tensor:
    """Scale-invariant ratio of target and artifacts (Le Roux et al. 2019)."""
    return sdr.si_sir_and_sar(estimates.flatten(-2), references.flatten(-2))[1]


@metric(label="track SDR", unit="dB", in_blocks=True)
def track_sdr(estimates: Tensor, references: Tensor, mixture: Tensor) -> Tensor:
    """SDR of the whole track, as in the Music Demixing Challenges (Mitsufuji et al. 2022)."""
    return sdr.track_sdr(estimates.flatten(-2), references.flatten(-2))


@metric(label="track SDR improvement", unit="dB", in_blocks=True)
def track_sdri(estimates: Tensor, references: Tensor, mixture: Tensor) -> Tensor:
    """Track SDR of the estimates minus that of the mixture."""
    before = sdr.track_sdr(mixture.unsqueeze(1).flatten(-2), references.flatten(-2))
    return track_sdr.function(estimates, references, mixture) - before


@metric(label="log-spectral distance", unit="dB", higher_is_better=False, in_blocks=True)
def log_spectral_distance(estimates: Tensor, references: Tensor, mixture: Tensor) -> Tensor:
    """Distance of the log power spectra, mean over frames (Gray and Markel 1976)."""
    return spectral.log_spectral_distance(estimates, references)


def _family(
    name: str,
    function: Callable[[Tensor, Tensor, Tensor, int], dict[str, Tensor]],
    labels: Mapping[str, str],
    unit: str = "",
    aggregate: str = "",
    scores_silence: bool = False,
    in_blocks: bool = False,
) -> list[Metric]:
    """The metrics of a family, ordered by the first.  labels: {name: label}"""
    family = Family(name, function, next(iter(labels)))
    return [
        Metric(function, one, label, unit, True, aggregate, family, scores_silence, in_blocks)
        for one, label in labels.items()
    ]


def _bss_eval_v4(estimates: Tensor, references: Tensor, mixture: Tensor, rate: int) -> dict[str, Tensor]:
    """Windows and hop of a second.  A silent reference is left out, because museval scores no source beside one."""
    found: dict[str, list[Tensor]] = {name: [] for name in bss_eval.BssEval4._fields}
    for estimate, reference in zip(estimates, references, strict=True):
        heard = reference.flatten(1).any(1)
        scores = bss_eval.bss_eval_v4(estimate[None, heard], reference[None, heard], rate, rate)
        for name, values in zip(scores._fields, scores, strict=True):
            whole = values.new_full((len(heard), values.shape[-1]), torch.nan)
            whole[heard] = values[0]
            found[name].append(whole)
    return {name: torch.stack(values) for name, values in found.items()}


def _bss_eval_v3(estimates: Tensor, references: Tensor, mixture: Tensor, rate: int) -> dict[str, Tensor]:
    found = bss_eval.bss_eval_v3(estimates.mean(-2), references.mean(-2), permute=False)
    return {"sir_v3": found.sir, "sdr_v3": found.sdr, "sar_v3": found.sar}


def _bleed_and_fullness(estimates: Tensor, references: Tensor, mixture: Tensor, rate: int) -> dict[str, Tensor]:
    bleedless, fullness = spectral.bleedless_and_fullness(estimates, references, rate)
    return {"bleedless": bleedless, "fullness": fullness}


FAMILIES = {
    "bss_eval_v4": _family(
        "bss_eval_v4",
        _bss_eval_v4,
        {"sdr": "SDR", "isr": "ISR", "sir": "SIR", "sar": "SAR"},
        "dB",
        "median over frames",
        in_blocks=True,
    ),
    "bss_eval_v3": _family(
        "bss_eval_v3", _bss_eval_v3, {"sir_v3": "SIR (v3)", "sdr_v3": "SDR (v3)", "sar_v3": "SAR (v3)"}, "dB"
    ),
    "bleed": _family("bleed", _bleed_and_fullness, {"bleedless": "bleedless", "fullness": "fullness"}, in_blocks=True),
    "pesq": _family("pesq", perceptual.pesq, {"pesq": "PESQ"}, "MOS"),
    "stoi": _family("stoi", perceptual.stoi, {"stoi": "STOI"}),
    "estoi": _family("estoi", perceptual.estoi, {"estoi": "ESTOI"}),
    "log_wmse": _family("log_wmse", perceptual.log_wmse, {"log_wmse": "logWMSE"}, scores_silence=True),
    "dnsmos": _family(
        "dnsmos",
        perceptual.dnsmos,
        {"dnsmos": "DNSMOS overall", "dnsmos_speech": "DNSMOS speech", "dnsmos_background": "DNSMOS background"},
        "MOS",
    ),
}


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
CHEAP = by_name([snri, sd_sdr, si_sir, si_sar, track_sdr, track_sdri, log_spectral_distance])  # for validation too


def load_metrics(names: Sequence[str], trust: Sequence[str] | None = None, families: bool = False) -> dict[str, Metric]:
    """`METRICS` and other metrics: shipped ones by name, a user's own by the dotted names of their functions.

    trust: as in `instantiate.build`; families: whether names of `FAMILIES` are allowed.  UsageError for unknown names.
    """
    found = list(METRICS.values())
    for name in dict.fromkeys(names):
        if "." in name:
            found.append(_own(name, trust))
        elif families and name in FAMILIES:
            found += FAMILIES[name]
        elif name in CHEAP:
            found.append(CHEAP[name])
        elif name not in METRICS:
            raise _unknown(name, families)
    return by_name(found)


def _own(name: str, trust: Sequence[str] | None) -> Metric:
    from separate.instantiate import build

    found = build({"_target_": name, "_partial_": True}, "metrics", trust)
    if not isinstance(found, Metric):
        raise UsageError(
            f"metrics=[{name}] is not a metric; decorate the function with "
            f"@metric(label=..., unit=...) of separate.evaluation.metrics"
        )
    return found


def _unknown(name: str, families: bool) -> UsageError:
    if name in FAMILIES:
        return UsageError(f"metrics=[{name}] takes too long for validation; give it to separate-eval")
    known = [*METRICS, *CHEAP, *(FAMILIES if families else ())]
    member = next((family for family, metrics in FAMILIES.items() if name in [one.name for one in metrics]), None)
    close = [member] if member else get_close_matches(name, known, 1)
    near = f"did you mean {close[0]}? " if close else ""
    return UsageError(
        f"metrics=[{name}] is unknown; {near}(there are {', '.join(known)}, and your own, package.module.function)"
    )


def higher_is_better(quantity: str, metrics: Mapping[str, Metric] = METRICS) -> bool:
    """Whether higher values of a monitored quantity are better: those of `valid/METRIC` as the metric says.

    Losses, their parts and gradient norms are better when they are lower.
    """
    found = metrics.get(quantity.removeprefix("valid/"))
    return found is not None and found.higher_is_better
