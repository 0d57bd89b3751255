"""Optimizers that torch does not have: Lion, and Muon with AdamW for the parameters that are no hidden matrices."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Any

import torch
from torch import Tensor


class Lion(torch.optim.Optimizer):
    """Steps of size lr along the sign of an interpolation of momentum and gradient (Chen et al., 2023, algorithm 2).

    betas: of the interpolation and of the momentum.  weight_decay: decoupled, multiplied by lr as in AdamW.  The
    update is larger than Adam's, so the paper recommends a 3 to 10 times smaller lr and a larger weight decay.
    """

    def __init__(
        self, params: Any, lr: float = 1e-4, betas: tuple[float, float] = (0.9, 0.99), weight_decay: float = 0.0
    ) -> None:
        if lr < 0 or weight_decay < 0:
            raise ValueError(f"lr={lr} and weight_decay={weight_decay} must be at least 0")
        if len(betas) != 2 or not all(0 <= beta < 1 for beta in betas):
            raise ValueError(f"betas={list(betas)} must be two numbers of at least 0 and below 1")
        super().__init__(params, {"lr": lr, "betas": tuple(betas), "weight_decay": weight_decay})

    @torch.no_grad()
    def step(self, closure: Callable[[], Any] | None = None) -> Any:
        loss = _loss_of(closure)
        for group in self.param_groups:
            weights = [parameter for parameter in group["params"] if parameter.grad is not None]
            if not weights:
                continue
            for weight in weights:
                if "momentum" not in self.state[weight]:
                    self.state[weight]["momentum"] = torch.zeros_like(weight)
            gradients: Any = [weight.grad for weight in weights]
            momenta = [self.state[weight]["momentum"] for weight in weights]
            (interpolation, decay), rate = group["betas"], group["lr"]
            steps = torch._foreach_lerp(momenta, gradients, 1 - interpolation)
            torch._foreach_sign_(steps)
            torch._foreach_mul_(weights, 1 - rate * group["weight_decay"])
            torch._foreach_add_(weights, steps, alpha=-rate)
            torch._foreach_lerp_(momenta, gradients, 1 - decay)
        return loss


class Muon(torch.optim.Optimizer):
    """`torch.optim.Muon` for the hidden weight matrices, `torch.optim.AdamW` for all other parameters.

    Muon orthogonalises the momentum of each matrix by `ns_steps` Newton-Schulz iterations (Jordan et al., 2024).
    hidden_matrices: the matrices, and how many are stacked in each (the gates of an LSTM); each is orthogonalised by
    itself.  The weights of 1x1 convolutions are matrices, too.
    adjust_lr_fn: match_rms_adamw scales an update of (A, B) by 0.2 sqrt(max(A, B)), so that it has the size of AdamW's
    and one lr serves both (Liu et al., 2025); original scales it by sqrt(max(1, A / B)), for an lr of about 0.02.
    adamw_lr: of the other parameters; None: lr.  betas, eps: of AdamW.  weight_decay: decoupled, of both.
    """

    def __init__(
        self,
        params: Any,
        hidden_matrices: Mapping[Tensor, int],
        lr: float = 1e-3,
        adamw_lr: float | None = None,
        weight_decay: float = 0.01,
        momentum: float = 0.95,
        nesterov: bool = True,
        ns_steps: int = 5,
        adjust_lr_fn: str = "match_rms_adamw",
        betas: tuple[float, float] = (0.9, 0.999),
        eps: float = 1e-8,
    ) -> None:
        if not hidden_matrices:
            raise ValueError(
                "the network has no hidden weight matrices (linear, recurrent, attention or 1x1 convolutions) "
                "for Muon; use optimizer=adamw"
            )
        if not 1 <= ns_steps < 100:
            raise ValueError(f"ns_steps={ns_steps} must lie between 1 and 99")
        if lr <= 0 or (adamw_lr is not None and adamw_lr < 0):
            raise ValueError(f"lr={lr} must be above 0, and adamw_lr={adamw_lr} at least 0")
        self.stacked = dict(hidden_matrices)
        shared: Any = {"lr": lr, "weight_decay": weight_decay}
        nothing = [torch.zeros(1, 1)]  # each step sets the groups
        self.parts = {
            True: torch.optim.Muon(
                nothing, **shared, momentum=momentum, nesterov=nesterov, ns_steps=ns_steps, adjust_lr_fn=adjust_lr_fn
            ),
            False: torch.optim.AdamW(nothing, **shared, betas=(betas[0], betas[1]), eps=eps),
        }
        ratio = 1.0 if adamw_lr is None else adamw_lr / lr
        super().__init__(list(self._split(params, lr, ratio)), shared)

    def _split(self, params: Any, lr: float, ratio: float) -> Iterator[dict[str, Any]]:
        """The parameters in groups of either part, each with all options of that part.

        ratio: of the learning rates of AdamW and Muon.
        """
        given: list[Any] = list(params)
        groups: list[dict[str, Any]] = given if isinstance(given[0], dict) else [{"params": given}]
        for group in groups:
            for is_hidden, part in self.parts.items():
                members = [one for one in group["params"] if (one in self.stacked) == is_hidden]
                rate = group.get("lr", lr) * (1.0 if is_hidden else ratio)
                if members:
                    yield {**part.defaults, **group, "params": members, "lr": rate, "hidden": is_hidden}

    @torch.no_grad()
    def step(self, closure: Callable[[], Any] | None = None) -> Any:
        loss = _loss_of(closure)
        for group in self.param_groups:
            part: Any = self.parts[group["hidden"]]
            if group["hidden"]:
                part.state = dict(self._matrices(group["params"]))
                part.param_groups = [{**group, "params": list(part.state)}]
            else:
                part.state, part.param_groups = self.state, [group]
            part.step()
        return loss

    def _matrices(self, weights: Iterable[Tensor]) -> Iterator[tuple[Tensor, dict[str, Tensor]]]:
        """Views of the matrices in weights, with their gradients, and views of their momenta as torch's state."""
        for weight in weights:
            if weight.grad is None:
                continue
            if "momentum_buffer" not in self.state[weight]:
                self.state[weight]["momentum_buffer"] = torch.zeros_like(weight, memory_format=torch.contiguous_format)
            momentum = self.state[weight]["momentum_buffer"]
            size = (len(weight), -1)
            flat = (weight.detach().view(size), weight.grad.reshape(size), momentum.view(size))
            for matrix, gradient, part in zip(*(one.chunk(self.stacked[weight]) for one in flat), strict=True):
                matrix.grad = gradient
                yield matrix, {"momentum_buffer": part}


def _loss_of(closure: Callable[[], Any] | None) -> Any:
    if closure is None:
        return None
    with torch.enable_grad():
        return closure()
