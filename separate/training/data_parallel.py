"""Data parallelism: gradients and batch statistics over the shares of all ranks, equal to those of the whole batch."""

from __future__ import annotations

from contextlib import AbstractContextManager, nullcontext
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.autograd.function import once_differentiable
from torch.nn.parallel import DistributedDataParallel

from separate.data.batch import Batch
from separate.losses import Loss
from separate.models.embedding import Clusters
from separate.models.representation import Standardisation
from separate.numerics import result_dtype
from separate.separator import Separator
from separate.training.distributed import Ranks
from separate.training.profiling import stage


class BatchLoss(nn.Module):
    """The loss of a batch as one module, whose backward pass `DistributedDataParallel` follows."""

    def __init__(self, separator: Separator, loss: Loss) -> None:
        super().__init__()
        self.separator = separator
        self.loss = loss

    def forward(self, batch: Batch) -> tuple[Tensor, dict[str, Tensor]]:
        with stage("forward"):
            separation = self.separator.separate(batch)
        with stage("loss"):
            loss, parts = self.loss(separation, batch)
        return loss, {name: value.detach() for name, value in parts.items()}


def parallelise(separator: Separator, loss: Loss, ranks: Ranks) -> nn.Module | None:
    """The loss of a batch as a module whose backward pass averages the gradients over the ranks; None for one rank.

    Batch normalisation and running centres take their statistics from the whole batch.
    """
    if ranks.alone:
        return None
    synchronise(separator)
    # finding unused parameters allows heads without a loss; it also keeps the buckets, and so the order of the sums
    return DistributedDataParallel(BatchLoss(separator, loss), broadcast_buffers=False, find_unused_parameters=True)


def prepared(loss: Loss, batch: Batch, context: int) -> Batch:
    """The batch that the network separates, without the first examples that only `loss.prepare` needs."""
    ready = loss.prepare(batch)
    return ready.part(context, len(ready)) if context else ready


def reduction(module: nn.Module, last: bool) -> AbstractContextManager[Any]:
    """The context of forward and backward pass of a part: only the last one reduces the gradients."""
    return nullcontext() if last or not isinstance(module, DistributedDataParallel) else module.no_sync()


def merge_statistics(part: Standardisation, ranks: Ranks) -> None:
    """Merge the statistics that each rank observed, in the order of the ranks."""
    if not ranks.alone:
        found = ranks.gather((part.count, part.mean, part.squares))
        part.forget()
        for observed in found:
            part.merge(*observed)


# --------------------------------------------------------------------------------------------------- batch statistics


def synchronise(separator: Separator) -> None:
    """Take the statistics of batch normalisation, and of the centres of clusters, from the batches of all ranks."""
    for module in separator.modules():
        if isinstance(module, nn.modules.batchnorm._BatchNorm):
            kind = type(module)
            base = next(one for one in SYNCHRONISED if issubclass(kind, one))
            ours = SYNCHRONISED[base]
            module.__class__ = ours if kind is base else type(f"Synchronised{kind.__name__}", (kind, ours), {})
        if isinstance(module, Clusters):
            module.total = total


def total(values: Tensor) -> Tensor:
    """The sum over the ranks, without gradient."""
    summed = values.detach().clone()
    dist.all_reduce(summed)
    return summed


class Synchronised(nn.modules.batchnorm._BatchNorm):
    """Batch normalisation in training by the mean and variance over the examples of all ranks.

    torch's SyncBatchNorm takes CUDA tensors only, and replaces modules together with their own `forward`.
    """

    def forward(self, values: Tensor) -> Tensor:
        if not self.training:
            return super().forward(values)
        self._check_input_dim(values)
        normal, mean, variance, count = _Normalise.apply(values, self.weight, self.bias, self.eps)
        if self.running_mean is not None and self.running_var is not None:
            assert self.num_batches_tracked is not None
            self.num_batches_tracked.add_(1)
            momentum = self.momentum if self.momentum is not None else 1 / self.num_batches_tracked
            self.running_mean.lerp_(mean.to(self.running_mean), momentum)
            self.running_var.lerp_((variance * count / (count - 1)).to(self.running_var), momentum)
        return normal


class Synchronised1d(Synchronised, nn.BatchNorm1d): ...


class Synchronised2d(Synchronised, nn.BatchNorm2d): ...


class Synchronised3d(Synchronised, nn.BatchNorm3d): ...


SYNCHRONISED: dict[type[nn.Module], type[nn.Module]] = {
    nn.BatchNorm1d: Synchronised1d,
    nn.BatchNorm2d: Synchronised2d,
    nn.BatchNorm3d: Synchronised3d,
}


class _Normalise(torch.autograd.Function):
    """(x - mean) / deviation * weight + bias, (B, C, ...), with the statistics of each C over all ranks.

    Also returns mean (C), variance (C) and the number of values of each C, without gradients.
    """

    @staticmethod
    def forward(
        ctx: Any, x: Tensor, weight: Tensor | None, bias: Tensor | None, eps: float
    ) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        values, over = x.to(result_dtype(x)), _but_channels(x)
        number = values.new_full((1,), x.numel() // x.shape[1])
        *sums, count = total(torch.cat([values.sum(over), number])).split([x.shape[1], 1])
        mean = sums[0] / count
        centred = values - _along(mean, x)
        variance = total(centred.square().sum(over)) / count
        inverse = torch.rsqrt(variance + eps)
        normal = centred * _along(inverse, x)
        if weight is not None and bias is not None:
            normal = normal * _along(weight, x) + _along(bias, x)
        ctx.save_for_backward(x, weight, mean, inverse, count)
        ctx.mark_non_differentiable(mean, variance, count)
        return normal.to(x.dtype), mean, variance, count

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor, *_: Tensor) -> tuple[Tensor | None, ...]:
        x, weight, mean, inverse, count = ctx.saved_tensors
        over, gradient = _but_channels(x), gradient.to(result_dtype(x))
        normal = (x.to(result_dtype(x)) - _along(mean, x)) * _along(inverse, x)
        of_bias, of_weight = gradient.sum(over), (gradient * normal).sum(over)
        shift, slope = (total(torch.stack([of_bias, of_weight])) / count).unbind()
        scale = inverse if weight is None else inverse * weight
        of_x = (gradient - _along(shift, x) - normal * _along(slope, x)) * _along(scale, x)
        return of_x.to(x.dtype), *((None, None) if weight is None else (of_weight, of_bias)), None


def _but_channels(x: Tensor) -> tuple[int, ...]:
    return (0, *range(2, x.ndim))


def _along(values: Tensor, x: Tensor) -> Tensor:
    """Reshape (C) to broadcast along x (B, C, ...)."""
    return values.reshape(-1, *[1] * (x.ndim - 2))
