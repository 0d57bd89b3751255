"""Temporal convolutional network (TCN): stacks of dilated convolution blocks, the separator of Conv-TasNet."""

from __future__ import annotations

from dataclasses import dataclass
from operator import attrgetter

import torch
from torch import Tensor, nn

from separate.models.layers import check_at_most, check_padding, check_positive, make_inner_activation, pad
from separate.models.norms import make_norm
from separate.models.tcn_gradient import Plan, StackFunction
from separate.shapes import Float


@dataclass(frozen=True)
class TemporalOptions:
    """Sizes and options of all blocks, with the symbols of Luo & Mesgarani, 2019.

    features: B; hidden: H; skip: Sc, 0 for no skip paths; kernel: P, taps of the depthwise convolution.
    norm: global, cumulative or batch; causal: the depthwise convolution pads only before the first frame.
    """

    features: int
    hidden: int
    skip: int
    kernel: int = 3
    norm: str = "global"
    causal: bool = False
    padding: str = "zeros"
    inner_activation: str = "prelu"


class TemporalBlock(nn.Module):
    """1x1 conv, activation, norm, dilated depthwise conv, activation, norm, 1x1 conv to `residual` + `skip` features.

    Luo & Mesgarani, 2019, Fig. 1C, with PReLU.  last: no block follows, so with skip paths there is no residual path.
    """

    def __init__(self, options: TemporalOptions, dilation: int = 1, last: bool = False) -> None:
        super().__init__()
        features, hidden, skip, kernel = options.features, options.hidden, options.skip, options.kernel
        residual = 0 if skip and last else features
        check_positive(features=features, hidden=hidden, outputs=residual + skip, kernel=kernel, dilation=dilation)
        centre = kernel - 1 if options.causal else (kernel - 1) // 2
        self.padding = options.padding
        self.plan = Plan(dilation, centre, features - residual, options.norm == "cumulative")
        self.expand = nn.Conv1d(features, hidden, 1)
        self.expand_prelu = make_inner_activation(options.inner_activation)
        self.expand_norm = make_norm(options.norm, hidden, options.causal)
        self.depthwise = nn.Conv1d(hidden, hidden, kernel, dilation=dilation, groups=hidden)
        self.depthwise_prelu = make_inner_activation(options.inner_activation)
        self.depthwise_norm = make_norm(options.norm, hidden, options.causal)
        self.output = nn.Conv1d(hidden, residual + skip, 1)

    def forward(self, x: Float[Tensor, "B F M"]) -> Float[Tensor, "B _ M"]:
        x = self.expand_norm(self.expand_prelu(self.expand(x)))
        before = self.plan.centre * self.plan.dilation
        after = (self.depthwise.kernel_size[0] - 1) * self.plan.dilation - before
        x = self.depthwise(pad(x, before, after, self.padding))
        return self.output(self.depthwise_norm(self.depthwise_prelu(x)))


class TemporalStack(nn.Module):
    """`repeats` x `layers` temporal blocks with dilations 1, 2, 4 ... 2^(layers - 1) and residual connections.

    The output is the sum of the skip paths of the blocks or, without skip paths, the output of the last residual
    connection.  On the CPU, in float32 or float64, with norm=global or cumulative, PReLU and zero padding, one function
    with a hand-written gradient (`StackFunction`) computes all blocks, which is faster and needs a fraction of the
    memory; otherwise the blocks run as modules.
    """

    def __init__(self, options: TemporalOptions, layers: int = 8, repeats: int = 3) -> None:
        super().__init__()
        check_positive(layers=layers, repeats=repeats)
        check_at_most(16, layers=layers)  # the dilations double
        check_padding(options.padding, options.causal)
        if options.skip < 0:
            raise ValueError(f"skip={options.skip} must be at least 0 (features of the skip paths; 0: none)")
        self.features, self.skip = options.features, options.skip
        self.hand_written = (
            options.norm in ("global", "cumulative")
            and options.padding == "zeros"
            and options.inner_activation == "prelu"
        )
        count = layers * repeats
        blocks = [TemporalBlock(options, 2 ** (index % layers), last=index == count - 1) for index in range(count)]
        self.plans = [block.plan for block in blocks]
        self.blocks = nn.ModuleList(blocks)
        self.names = [name for name, _ in self.blocks.named_parameters()]

    def forward(self, x: Float[Tensor, "B F M"]) -> Float[Tensor, "B _ M"]:
        return self.fused(x) if self.fits(x) else self.plain(x)

    def fits(self, x: Tensor) -> bool:
        """Whether the hand-written function can compute x."""
        return (
            x.device.type == "cpu"
            and x.dtype in (torch.float32, torch.float64)
            and x.dtype == next(self.parameters()).dtype
            and self.hand_written
            and not torch.is_autocast_enabled("cpu")
            and not torch.compiler.is_compiling()
        )

    def plain(self, x: Float[Tensor, "B F M"]) -> Float[Tensor, "B _ M"]:
        """The output, computed by the modules."""
        total: Tensor | None = None
        for block, plan in zip(self.blocks, self.plans, strict=True):
            update = block(x)
            if plan.first == 0:
                x = x + update[:, : self.features]
            if self.skip:
                skipped = update[:, -self.skip :]
                total = skipped if total is None else total + skipped
        return x if total is None else total

    def fused(self, x: Float[Tensor, "B F M"]) -> Float[Tensor, "B _ M"]:
        """The output, computed by the hand-written function."""
        parameters = [attrgetter(name)(self.blocks) for name in self.names]  # also those that are parametrized
        return StackFunction.apply(x, self.skip, self.plans, torch.is_grad_enabled(), *parameters)
