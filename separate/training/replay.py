"""Replay of a non-finite step: the same weights, batch and random numbers, in the process of a debugger."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path

import torch

from separate.config import TrainConfig
from separate.errors import UsageError
from separate.instantiate import targets_in, trusted
from separate.training.nonfinite import StoredBatch, read_dump
from separate.training.resume import configuration
from separate.training.setup import prepare_step
from separate.training.step import backward
from separate.validation import brief


def replay(config: TrainConfig, path: Path, changed: Sequence[str] = ()) -> str:
    """Compute the forward and backward pass of a dumped step again, and return a report of what is not finite.

    changed: the overrides that the user gave; the other values are those of the dump.  UsageError for a file that is
    not a dump, or that does not fit its configuration.
    """
    contents = read_dump(path)
    plain = asdict(config)
    trust = (*trusted(config.trust), "torch.optim.", *targets_in(plain))
    stored = configuration(
        contents["config"], plain, [key for key in changed if key.partition("=")[0] not in ("debug", "dump")]
    )
    state, objective = prepare_step(stored, trust, contents["model"])
    try:
        state.restore(contents)
        metrics = backward(state, objective, StoredBatch(contents["batch"])).read()
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        raise UsageError(f"{path} does not fit its configuration ({brief(error)})") from None
    lines = [f"step {state.step} of {stored['run']}, in {objective.precision.name}:"]
    for name, value in metrics.items():
        lines.append(f"  {name}: {value:g}, in the run {contents['metrics'].get(name, math.nan):g}")
    bad = [
        name
        for name, parameter in state.separator.named_parameters()
        if parameter.grad is not None and not torch.isfinite(parameter.grad).all()
    ]
    lines.append(f"  gradients that are not finite: {', '.join(bad) or 'none'}")
    return "\n".join(lines)
