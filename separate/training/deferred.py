"""Training steps without a wait of the host: read metrics one step later, undo non-finite steps on the device."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_flatten, tree_unflatten

from separate.data.mixing.raw_batch import RawBatch


class StepMetrics:
    """The metrics of a step by name, in one tensor on the device.  finite: () bool, whether all of them are finite."""

    def __init__(self, values: Mapping[str, Tensor]) -> None:
        self.names = list(values)
        self.values = torch.stack([value.detach().float() for value in values.values()])
        self.finite = self.values.isfinite().all()
        self.copied: torch.cuda.Event | None = None

    def send(self) -> None:
        """Queue the copy to pinned host memory on the CUDA stream; does nothing on the CPU."""
        if self.values.device.type == "cuda":
            self.values = self.values.to("cpu", non_blocking=True)
            self.copied = torch.cuda.Event()
            self.copied.record()

    def read(self) -> dict[str, float]:
        """The metrics as Python numbers.  Waits for the copy of `send`."""
        if self.copied is not None:
            self.copied.synchronize()
        return dict(zip(self.names, self.values.tolist(), strict=True))


class OptimizerState:
    """A copy of an optimizer's state before a step, to undo a non-finite step."""

    def __init__(self, optimizer: torch.optim.Optimizer) -> None:
        leaves, self.structure = tree_flatten(optimizer.state_dict())
        copied = iter(copies([leaf for leaf in leaves if isinstance(leaf, Tensor)]))
        self.leaves = [next(copied) if isinstance(leaf, Tensor) else leaf for leaf in leaves]

    def restore(self, optimizer: torch.optim.Optimizer) -> None:
        optimizer.load_state_dict(tree_unflatten(self.leaves, self.structure))


def fuse(optimizer: torch.optim.Optimizer, device: torch.device) -> None:
    """Choose the fused CUDA kernel for Adam and AdamW, which can also skip a step on the device.

    Call this before the first step.  A user's choice of `fused` or `foreach` stays.
    """
    if device.type == "cuda" and isinstance(optimizer, torch.optim.Adam):
        for group in optimizer.param_groups:
            if group["fused"] is None and group["foreach"] is None and not group["differentiable"]:
                group["fused"] = True


def skips_on_device(optimizer: torch.optim.Optimizer) -> bool:
    """Whether `optimizer.step()` changes neither parameters nor state if `optimizer.found_inf` is 1."""
    return isinstance(optimizer, torch.optim.Adam) and all(group["fused"] for group in optimizer.param_groups)


def step_if(finite: Tensor, optimizer: torch.optim.Optimizer) -> OptimizerState | None:
    """One step of the optimizer if `finite` () is true, decided on the device.

    A fused Adam skips the step itself.  For other optimizers the device restores a copy of the parameters.  Returns a
    copy of their state, for the caller to restore after it has read the metrics; None for a fused Adam.
    """
    if skips_on_device(optimizer):
        optimizer.found_inf = (~finite).float()  # type: ignore[attr-defined]
        optimizer.step()
        del optimizer.found_inf  # type: ignore[attr-defined]
        return None
    weights = parameters(optimizer)
    state_before, weights_before = OptimizerState(optimizer), copies(weights)
    optimizer.step()
    undo_unless(finite, weights, weights_before)
    return state_before


@dataclass
class Pending:
    """A step with unread metrics.

    number: of the step, from 0; drawn: its batch; random: `state.random_states` before it; before: the optimizer's
    state before it, if the host has to restore that.
    """

    number: int
    drawn: RawBatch
    metrics: StepMetrics
    random: dict[str, Tensor | None]
    before: OptimizerState | None = None


def statistics(module: nn.Module) -> list[Tensor]:
    """The persistent buffers, e.g. running means; constants such as windows are not persistent."""
    kept = module.state_dict()
    return [buffer for name, buffer in module.named_buffers() if name in kept]


def named(module: nn.Module, values: Sequence[Tensor] | None) -> dict[str, Tensor]:
    """{name: value} of the values of `statistics(module)`; empty for None."""
    if values is None:
        return {}
    kept = module.state_dict()
    names = [name for name, _ in module.named_buffers() if name in kept]
    return dict(zip(names, values, strict=True))


def parameters(optimizer: torch.optim.Optimizer) -> list[Tensor]:
    return [parameter for group in optimizer.param_groups for parameter in group["params"]]


@torch.no_grad()
def copies(tensors: Sequence[Tensor]) -> list[Tensor]:
    """A copy of each tensor, made by one kernel for each device and dtype."""
    found = [torch.empty_like(tensor) for tensor in tensors]
    groups: dict[Any, tuple[list[Tensor], list[Tensor]]] = {}
    for new, old in zip(found, tensors, strict=True):
        to, of = groups.setdefault((old.device, old.dtype), ([], []))
        to.append(new)
        of.append(old)
    for to, of in groups.values():
        torch._foreach_copy_(to, of)
    return found


@torch.no_grad()
def undo_unless(finite: Tensor, tensors: Sequence[Tensor], before: Sequence[Tensor]) -> None:
    """Copy `before` back into `tensors` if `finite` () is false, decided on the device."""
    for now, old in zip(tensors, before, strict=True):
        torch.where(finite, now, old, out=now)
