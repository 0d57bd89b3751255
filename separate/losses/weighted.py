"""Losses by name, and weighted sums of them."""

from __future__ import annotations

import inspect
import math
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from separate import targets
from separate.errors import nearest
from separate.losses.base import Loss, PairedLoss, pick
from separate.losses.clustering import AttractorLoss, ClusteringLoss
from separate.losses.permutation import best_permutation
from separate.losses.spectral import SpectralLoss
from separate.losses.waveform import MultiResolutionSTFTLoss, SDSDRLoss, SISDRLoss, SNRLoss, WaveformLoss
from separate.models.layers import choose
from separate.targets import Target

if TYPE_CHECKING:
    from separate.data.batch import Batch
    from separate.separator import Separation

# name: (class, what makes it the loss of that name, its own target or None for the one that is configured)
LOSSES: dict[str, tuple[type[Loss], dict[str, Any], Target | None]] = {
    "l1": (SpectralLoss, {"distance": "l1"}, None),
    "mse": (SpectralLoss, {"distance": "mse"}, None),
    "msa": (SpectralLoss, {"distance": "l1"}, targets.msa),
    "psa": (SpectralLoss, {"distance": "l1"}, targets.psa),
    "tpsa": (SpectralLoss, {"distance": "l1"}, targets.tpsa),
    "msa_mse": (SpectralLoss, {"distance": "mse"}, targets.msa),
    "psa_mse": (SpectralLoss, {"distance": "mse"}, targets.psa),
    "tpsa_mse": (SpectralLoss, {"distance": "mse"}, targets.tpsa),
    "dc": (ClusteringLoss, {"objective": "affinity", "weights": "level"}, targets.ibm),
    "dc_weighted": (ClusteringLoss, {"objective": "affinity", "weights": "magnitude"}, targets.ibm),
    "dc_whitened": (ClusteringLoss, {"objective": "whitened", "weights": "magnitude"}, targets.ibm),
    "attractor": (AttractorLoss, {}, targets.msa),
    "waveform_l1": (WaveformLoss, {"distance": "l1"}, targets.waveform),
    "waveform_mse": (WaveformLoss, {"distance": "mse"}, targets.waveform),
    "log_mse": (WaveformLoss, {"distance": "log_mse"}, targets.waveform),
    "si_sdr": (SISDRLoss, {"zero_mean": False}, targets.waveform),
    "si_snr": (SISDRLoss, {"zero_mean": True}, targets.waveform),
    "snr": (SNRLoss, {}, targets.waveform),
    "sd_sdr": (SDSDRLoss, {}, targets.waveform),
    "multi_resolution_stft": (MultiResolutionSTFTLoss, {}, targets.waveform),
}


class WeightedSum(Loss):
    """Losses by name, each times its weight; each part is logged as it is, without its weight.

    terms: {name: weight} or {name: {weight: 0.5, target: psa, and options of that loss}}.  A loss with a target of its
    own (tpsa, dc, si_sdr ...) keeps it, l1 and mse take the configured one, unless a target is named.
    Interchangeable sources: all parts that compare estimates with references agree on one order, the one that makes
    their weighted sum least.
    """

    domains = None  # what its target may be is for the parts to say

    def __init__(
        self,
        terms: Mapping[str, Any] | None,
        target: Target,
        interchangeable: bool = False,
        sources: Sequence[str] | None = None,
    ) -> None:
        if not terms:
            raise ValueError("terms is empty; name losses and weights, e.g. loss.terms={tpsa: 1, si_sdr: 0.1}")
        super().__init__(target)
        self.weight: dict[str, float] = {}
        self.parts = torch.nn.ModuleDict()
        for name, value in terms.items():
            options = dict(value) if isinstance(value, Mapping) else {"weight": value}
            weight = options.pop("weight", 1.0)
            if isinstance(weight, bool) or not isinstance(weight, (int, float)) or not 0 < weight < math.inf:
                raise ValueError(
                    f"terms.{name}: the weight {weight} must be a number above 0; leave out what counts nothing"
                )
            self.weight[name] = float(weight)
            self.parts[name] = _make(name, options, target, interchangeable, sources)
        self.interchangeable = interchangeable
        self.needs = tuple(dict.fromkeys(head for part in self._losses() for head in part.needs))
        kept = [part.keeps_levels for part in self._losses() if part.keeps_levels is not None]
        self.keeps_levels = any(kept) if kept else None  # one part is enough to fix them

    @property
    def spectral(self) -> bool:
        return any(part.spectral for part in self._losses())

    def _losses(self) -> list[Any]:
        return list(self.parts.values())

    def forward(self, separation: Separation, batch: Batch) -> tuple[Tensor, dict[str, Tensor]]:
        found: dict[str, Tensor] = {}
        pairwise: dict[str, Tensor] = {}
        for name, part in self.parts.items():
            if self.interchangeable and isinstance(part, PairedLoss):
                pairwise[name] = part.pairwise(*part.signals(separation, batch))
            else:
                found[name] = part(separation, batch)[0]
        if pairwise:
            total = torch.stack([self.weight[name] * costs.detach() for name, costs in pairwise.items()]).sum(0)
            order = best_permutation(total)
            found.update({name: pick(costs, order).mean() for name, costs in pairwise.items()})
        parts = {name: found[name] for name in self.parts}
        return torch.stack([self.weight[name] * part for name, part in parts.items()]).sum(), parts


def _make(name: str, options: dict[str, Any], target: Target, interchangeable: bool, sources: Any) -> Loss:
    kind, fixed, own = choose(name, LOSSES, "loss in terms:")
    if "target" in options:
        target = choose(options.pop("target"), targets.TARGETS, f"target in terms.{name}:")
    elif own is not None:
        target = own
    context = {"interchangeable": interchangeable, "sources": sources} if issubclass(kind, PairedLoss) else {}
    known = [key for key in inspect.signature(kind).parameters if key not in ("target", *context)]
    for key in options:
        if key not in known:
            raise ValueError(f"terms.{name}: there is no key {key}; {nearest(key, ['weight', 'target', *known])}")
    try:
        return kind(**{**fixed, **options, **context, "target": target})
    except (TypeError, ValueError) as error:
        raise ValueError(f"terms.{name}: {error}") from None
