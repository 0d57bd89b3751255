"""Selection of the best set of weights in an epoch, and of the epochs to keep as checkpoints."""

from __future__ import annotations

import math
import re
from collections.abc import Mapping, Sequence
from pathlib import Path

from separate.training.averages import RAW


def metric_of(weights: str, metric: str) -> str:
    """The name of a validation metric of a set of weights: valid/loss for raw, valid_ema0.999/loss for an average."""
    return metric if weights == RAW else metric.replace("valid", f"valid_{weights}", 1)


def winner(means: Mapping[str, float], monitor: str, sets: Sequence[str], upwards: bool) -> tuple[str, float]:
    """The set of weights with the best finite value of the monitored metric, and this value; the first of equal ones.

    If no value is finite: raw and its value, NaN for a metric of the steps if no step was applied.
    """
    found = [(name, means[metric_of(name, monitor)]) for name in sets if metric_of(name, monitor) in means]
    finite = [(name, value) for name, value in found if math.isfinite(value)]
    if not finite:
        return RAW, means.get(monitor, math.nan)
    return max(finite, key=lambda one: one[1] if upwards else -one[1])


def ranked(
    kept: Sequence[tuple[float, int]], value: float, epoch: int, count: int, upwards: bool
) -> list[tuple[float, int]]:
    """The `count` best pairs of value and epoch, best first, then the earlier epoch; non-finite values are left out.

    An empty list for count=1, because best.ckpt holds that epoch.
    """
    if count == 1:
        return []
    pairs = [*kept, *([(value, epoch)] if math.isfinite(value) else [])]
    return sorted(pairs, key=lambda pair: (-pair[0] if upwards else pair[0], pair[1]))[:count]


def epoch_name(epoch: int) -> str:
    return f"epoch_{epoch:04d}"


def remove_others(folder: Path, kept: Sequence[tuple[float, int]]) -> None:
    """Remove all other checkpoints of epochs in `folder`, including those of a killed run."""
    names = {epoch_name(epoch) for _, epoch in kept}
    for path in folder.glob("epoch_*.ckpt"):
        if re.fullmatch(r"epoch_\d{4,}", path.stem) and path.stem not in names:
            path.unlink(missing_ok=True)
