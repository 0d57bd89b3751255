"""Replay of a non-finite step: the same weights, batch and random numbers, in the process of a debugger."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict
from pathlib import Path

import torch

from separate.config import TrainConfig
from separate.errors import UsageError
from separate.instantiate import targets_in, trusted
from separate.training.anomaly import nan_operator
from separate.training.deferred import StepMetrics
from separate.training.finetuning.preparation import train_mode
from separate.training.nonfinite import NOWHERE, StoredBatch, read_dump
from separate.training.resume import configuration
from separate.training.setup import prepare_step
from separate.training.state import Objective
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
    stored["trainer"]["anomaly"] = True
    state, objective = prepare_step(stored, trust, contents["model"])

    def compute() -> StepMetrics:
        state.restore(contents)
        train_mode(state.separator)
        return backward(state, objective, StoredBatch(contents["batch"]))

    try:
        metrics = compute().read()
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
    lines += [f"  {line}" for line in located(objective, metrics, compute)]
    return "\n".join(lines)


def located(objective: Objective, metrics: Mapping[str, float], compute: Callable[[], StepMetrics]) -> Iterator[str]:
    """Where the step is not finite first; nothing for a finite one.  compute: computes it again."""
    assert objective.anomalies
    first = objective.anomalies.first
    if all(map(math.isfinite, metrics.values())):
        return
    yield str(first or NOWHERE)
    if first and first.direction == "backward" and (operator := nan_operator(compute)):
        yield f"the gradient of {operator} is NaN"
