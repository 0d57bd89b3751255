"""Dilated temporal convolution blocks, the separator of Conv-TasNet."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from separate.models.layers import check_at_most, check_padding, check_positive, make_inner_activation, pad
from separate.models.norms import make_norm
from separate.models.tcn_gradient import Plan, StackFunction


class TemporalBlock(nn.Module):
    """1x1 conv, activation, norm, dilated depthwise conv, activation, norm, 1x1 conv to `residual` + `skip` features.

    Luo & Mesgarani, 2019, Fig. 1C, with PReLU.  x: (B, features, M) -> (B, residual + skip, M).  The depthwise
    convolution pads on both sides, or where causal only before the first frame.
    """

    def __init__(
        self,
        features: int,
        hidden: int,
        residual: int,
        skip: int,
        kernel: int = 3,
        dilation: int = 1,
        norm_name: str = "global",
        causal: bool = False,
        padding: str = "zeros",
        inner_activation: str = "prelu",
    ) -> None:
        super().__init__()
        check_positive(features=features, hidden=hidden, outputs=residual + skip, kernel=kernel, dilation=dilation)
        centre = kernel - 1 if causal else (kernel - 1) // 2
        self.padding = padding
        self.plan = Plan(dilation, centre, features - residual, norm_name == "cumulative")
        self.expand = nn.Conv1d(features, hidden, 1)
        self.expand_prelu = make_inner_activation(inner_activation)
        self.expand_norm = make_norm(norm_name, hidden, causal)
        self.depthwise = nn.Conv1d(hidden, hidden, kernel, dilation=dilation, groups=hidden)
        self.depthwise_prelu = make_inner_activation(inner_activation)
        self.depthwise_norm = make_norm(norm_name, hidden, causal)
        self.output = nn.Conv1d(hidden, residual + skip, 1)

    def forward(self, x: Tensor) -> Tensor:
        x = self.expand_norm(self.expand_prelu(self.expand(x)))
        before = self.plan.centre * self.plan.dilation
        after = (self.depthwise.kernel_size[0] - 1) * self.plan.dilation - before
        x = self.depthwise(pad(x, before, after, self.padding))
        return self.output(self.depthwise_norm(self.depthwise_prelu(x)))


class TemporalStack(nn.Module):
    """`repeats` x `layers` temporal blocks with dilations 1, 2, 4 ... 2^(layers - 1), each added to the last.

    x: (B, features, M) -> the sum over the blocks' skip paths, (B, skip, M); with skip=0 what the last residual
    connection holds, (B, features, M).  On the CPU, in float32 or float64, with norm=global or cumulative, PReLU and
    zero padding, all blocks are one function with a hand-written gradient (`StackFunction`), faster and with a
    fraction of the memory; elsewhere they are the modules as they stand.
    """

    def __init__(
        self,
        features: int,
        hidden: int,
        skip: int,
        kernel: int = 3,
        layers: int = 8,
        repeats: int = 3,
        norm_name: str = "global",
        causal: bool = False,
        padding: str = "zeros",
        inner_activation: str = "prelu",
    ) -> None:
        super().__init__()
        check_positive(layers=layers, repeats=repeats)
        check_at_most(16, layers=layers)  # whose dilations double
        check_padding(padding, causal)
        if skip < 0:
            raise ValueError(f"skip={skip} must be at least 0 (features of the skip paths; 0: none)")
        self.features, self.skip = features, skip
        self.hand_written = norm_name in ("global", "cumulative") and padding == "zeros" and inner_activation == "prelu"
        count = layers * repeats
        blocks = [
            TemporalBlock(
                features,
                hidden,
                0 if skip and index == count - 1 else features,  # nothing follows the last one's residual path
                skip,
                kernel,
                2 ** (index % layers),
                norm_name,
                causal,
                padding,
                inner_activation,
            )
            for index in range(count)
        ]
        self.plans = [block.plan for block in blocks]
        self.blocks = nn.ModuleList(blocks)

    def forward(self, x: Tensor) -> Tensor:
        return self.fused(x) if self.fits(x) else self.plain(x)

    def fits(self, x: Tensor) -> bool:
        """Whether the hand-written function is right for x, and faster."""
        return (
            x.device.type == "cpu"
            and x.dtype in (torch.float32, torch.float64)
            and x.dtype == next(self.parameters()).dtype
            and self.hand_written
            and not torch.is_autocast_enabled("cpu")
            and not torch.compiler.is_compiling()
        )

    def plain(self, x: Tensor) -> Tensor:
        total: Tensor | None = None
        for block, plan in zip(self.blocks, self.plans, strict=True):
            update = block(x)
            if plan.first == 0:
                x = x + update[:, : self.features]
            if self.skip:
                skipped = update[:, -self.skip :]
                total = skipped if total is None else total + skipped
        return x if total is None else total

    def fused(self, x: Tensor) -> Tensor:
        parameters = [parameter for block in self.blocks for parameter in block.parameters()]
        return StackFunction.apply(x, self.skip, self.plans, torch.is_grad_enabled(), *parameters)
