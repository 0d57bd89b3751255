"""Training steps that the host does not wait for: metrics are read one step later, non-finite steps are undone."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_flatten, tree_unflatten

from separate.data.mixing.raw_batch import Drawn


class StepMetrics:
    """The named numbers of a step in one tensor on its device.  finite: () bool, whether all of them are finite."""

    def __init__(self, values: Mapping[str, Tensor]) -> None:
        self.names = list(values)
        self.values = torch.stack([value.detach().float() for value in values.values()])
        self.finite = self.values.isfinite().all()
        self.copied: torch.cuda.Event | None = None

    def send(self) -> None:
        """Start the copy to (pinned) host memory, queued behind the device's work so far."""
        if self.values.device.type == "cuda":
            self.values = self.values.to("cpu", non_blocking=True)
            self.copied = torch.cuda.Event()
            self.copied.record()

    def read(self) -> dict[str, float]:
        """The metrics as Python numbers.  Waits until the device has finished their step."""
        if self.copied is not None:
            self.copied.synchronize()
        return dict(zip(self.names, self.values.tolist(), strict=True))


class OptimizerState:
    """The state of an optimizer, copied before a step and restored if the step turns out to be non-finite."""

    def __init__(self, optimizer: torch.optim.Optimizer) -> None:
        leaves, self.structure = tree_flatten(optimizer.state_dict())
        copied = iter(copies([leaf for leaf in leaves if isinstance(leaf, Tensor)]))
        self.leaves = [next(copied) if isinstance(leaf, Tensor) else leaf for leaf in leaves]

    def restore(self, optimizer: torch.optim.Optimizer) -> None:
        optimizer.load_state_dict(tree_unflatten(self.leaves, self.structure))


@dataclass
class Pending:
    """A step whose metrics have not been read yet.  number: of the step; drawn: its batch."""

    number: int
    drawn: Drawn
    metrics: StepMetrics
    before: OptimizerState | None = None


def statistics(module: nn.Module) -> list[Tensor]:
    """The buffers that a checkpoint holds, e.g. running means, without constants such as windows."""
    kept = module.state_dict()
    return [buffer for name, buffer in module.named_buffers() if name in kept]


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
    """Restore the values from before where `finite` () is false, decided on the device."""
    for now, old in zip(tensors, before, strict=True):
        torch.where(finite, now, old, out=now)
