"""The blocks of a temporal convolutional network (TCN) as one function with a hand-written gradient, for the CPU."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable
from torch.nn import functional

from separate.models.norms import EPSILON, cumulative_statistics

leaky_relu = torch.ops.aten.leaky_relu.out
leaky_relu_backward = torch.ops.aten.leaky_relu_backward.grad_input


class Plan(NamedTuple):
    """The options of a block.

    centre: index of the tap at the frame of the output; first: first feature of the stream that the block adds to;
    cumulative: kind of the norms.
    """

    dilation: int
    centre: int
    first: int
    cumulative: bool


class Weights(NamedTuple):
    """The parameters of a block in the order of its modules, without singleton dimensions."""

    expand: Tensor  # (H, F + 1), the last column is the bias
    slope1: Tensor  # (1,)
    scale1: Tensor  # (H,)
    shift1: Tensor  # (H,)
    taps: Tensor  # (P, H)
    taps_bias: Tensor  # (H,)
    slope2: Tensor  # (1,)
    scale2: Tensor  # (H,)
    shift2: Tensor  # (H,)
    output: Tensor  # (O, H)
    output_bias: Tensor  # (O,)

    @classmethod
    def of(cls, parameters: Sequence[Tensor]) -> Weights:
        expand, b1, a1, g1, h1, taps, b2, a2, g2, h2, output, b3 = (p.detach() for p in parameters)
        expand = torch.cat([expand[..., 0], b1[:, None]], dim=1)
        return cls(expand, a1, g1, h1, taps[:, 0].T.contiguous(), b2, a2, g2, h2, output[..., 0], b3)


class Example(NamedTuple):
    """One example in a block: the tensors that the forward and backward pass of the block read and write."""

    stream: Tensor  # (M, F + S), residual signal and sum of the skip paths, or their gradient
    x: Tensor  # (M, F + 1), the input and a column of ones for the bias
    y: Tensor  # (M, H), before the first PReLU
    z: Tensor  # (M, H), before the second PReLU


class StackFunction(torch.autograd.Function):
    """All blocks of a `TemporalStack`, with time before features so that all products run at full speed.

    A stream of (B, M, features + skip) holds the residual signal and the sum of the skip paths.  Each block adds one
    product to it in place, and its gradient passes back through one buffer of the same shape.  For the backward pass
    a block keeps only its input x and the values y, z before its two PReLUs:

        y = x W' + b,  a = prelu(y),  n = g (r a + q) + h,   z = conv(n),  c = prelu(z),  m likewise,  out = m V' + d

    r = 1 / standard deviation and q = -mean / standard deviation are numbers, so a norm needs no memory pass: g r and
    g q + h go into the taps and the constant of the next convolution, or into the weights and bias of the product.
    Its gradient needs no further sums.  With e the gradient of m, u = r c + q, K the number of values, and G the
    gradient of out:  Q = G' u, which V needs too, gives

        dV = Q g + (sum G) h',  dg = sum_o V Q,  dh = V' (sum G),
        dc = r (g e - g.dh / K - u g.dg / K)           (eps only counts in r)

    where dc is one product into the buffer of c.  The same holds for the taps w with the correlations
    R_p = sum_t dz(t) u(t + o_p) instead of Q.
    Cumulative norms have an r and q for each frame, so u is computed in place: see `CumulativeMoments`.
    The examples are computed one after the other in buffers that all blocks share and that stay in the CPU's cache.
    Differentiable once.
    """

    @staticmethod
    def forward(ctx: Any, x: Tensor, skip: int, plans: list[Plan], keep: bool, *parameters: Tensor) -> Tensor:
        size, features, frames = x.shape
        hidden = parameters[0].shape[0]
        stream = x.new_zeros(size, frames, features + skip)
        stream[..., :features] = x.transpose(1, 2)
        scratch = x.new_empty(frames, hidden)
        saved: list[Tensor] = []
        moments: list[list[Any]] = []
        for index, plan in enumerate(plans):
            weights = Weights.of(parameters[12 * index : 12 * index + 12])
            inputs = functional.pad(stream[..., :features], (0, 1), value=1.0)  # a one for the bias
            if keep or index == 0:
                y, z = x.new_empty(size, frames, hidden), x.new_empty(size, frames, hidden)
            if keep:
                saved += [inputs, y, z]
            examples = map(Example, stream, inputs, y, z)
            moments.append([forward_block(example, scratch, weights, plan) for example in examples])
        ctx.skip, ctx.plans, ctx.moments = skip, plans, moments
        ctx.save_for_backward(*parameters, *saved)
        return stream[..., features if skip else 0 :].transpose(1, 2)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> tuple[Any, ...]:
        size, width, frames = gradient.shape
        tensors, count = ctx.saved_tensors, 12 * len(ctx.plans)
        parameters, saved = tensors[:count], tensors[count:]
        hidden, features = parameters[0].shape[:2]
        stream = gradient.new_zeros(size, frames, features + ctx.skip)
        stream[..., stream.shape[-1] - width :] = gradient.transpose(1, 2)
        scratch = [gradient.new_empty(frames, hidden) for _ in range(3)]
        gradients: list[Tensor] = []
        for index in reversed(range(len(ctx.plans))):
            weights = Weights.of(parameters[12 * index : 12 * index + 12])
            x, y, z = saved[3 * index : 3 * index + 3]
            examples = zip(map(Example, stream, x, y, z), ctx.moments[index], strict=True)
            parts = [backward_block(*example, scratch, weights, ctx.plans[index]) for example in examples]
            gradients = [sum(part[1:], start=part[0]) for part in zip(*parts, strict=True)] + gradients
        shaped = [g.reshape(p.shape) for g, p in zip(gradients, parameters, strict=True)]
        return (stream[..., :features].transpose(1, 2), None, None, None, *shaped)


class GlobalMoments(NamedTuple):
    """Mean and variance of the whole of a, (M, H), as r = 1 / standard deviation and q = -mean / standard deviation."""

    r: float
    q: float

    @classmethod
    def of(cls, a: Tensor) -> GlobalMoments:
        mean = a.sum().item() / a.numel()
        square = (
            torch.linalg.vector_norm(a, dim=1).double().square().sum().item() / a.numel()
        )  # row by row, for accuracy
        r = (max(square - mean**2, 0.0) + EPSILON) ** -0.5
        return cls(r, -mean * r)

    def restore(self, a: Tensor) -> None:
        """Turn a into the values that the formulas scale by r and shift by q: here no change."""

    def backward(self, a: Tensor, e: Tensor, totals: tuple[Tensor, Tensor], add: AddGradient) -> None:
        """Overwrite a with its gradient.  totals: the sums of e and of e u; add(x, gain): add gain * e to x."""
        first, second = (total.item() / a.numel() for total in totals)
        torch.add(a.new_tensor(-self.r * (first + second * self.q)), a, alpha=-(self.r**2) * second, out=a)
        add(a, self.r)


class CumulativeMoments(NamedTuple):
    """A mean and variance up to each frame; a is normalised in place, so that r = 1 and q = 0."""

    rows: Tensor  # (M, 1), 1 / standard deviation
    means: Tensor  # (M, 1)
    r: float = 1.0
    q: float = 0.0

    @classmethod
    def of(cls, a: Tensor) -> CumulativeMoments:
        squares = torch.linalg.vector_norm(a, dim=1).double().square()
        mean, variance = cumulative_statistics(a.sum(1).double(), squares, a.shape[1])
        moments = cls((variance + EPSILON).rsqrt().to(a)[:, None], mean.to(a)[:, None])
        moments.restore(a)
        return moments

    def restore(self, a: Tensor) -> None:
        a.sub_(self.means).mul_(self.rows)

    def backward(self, a: Tensor, e: Tensor, totals: tuple[Tensor, Tensor], add: AddGradient) -> None:
        """Overwrite the normalised a with the gradient of its values before normalisation.

        With A = sum_h e and B = sum_h e u of frame j, and n = H (j + 1) values up to it:

            d_variance = -r^2 B / 2,   d_mean = -r A - 2 mean d_variance
            da(t) = r e + sum_(j >= t) d_mean / n + 2 a(t) sum_(j >= t) d_variance / n
        """
        e.zero_()
        add(e, 1.0)
        r, mean = self.rows.double()[:, 0], self.means.double()[:, 0]
        seen = a.shape[1] * torch.arange(1, len(a) + 1)
        d_variance = -r.square() * torch.linalg.vecdot(e, a) / 2
        d_mean = -r * e.sum(1) - 2 * mean * d_variance
        offset, slope = (reversed_cumsum(d / seen) for d in (d_mean, 2 * d_variance))
        a.mul_((slope / r).to(a)[:, None]).add_((offset + slope * mean).to(a)[:, None])
        a.addcmul_(e, self.rows)


AddGradient = Callable[[Tensor, float], None]
Moments = GlobalMoments | CumulativeMoments


def reversed_cumsum(x: Tensor) -> Tensor:
    """The sum of each value and all later ones.  (M,) -> (M,)"""
    return x.flip(0).cumsum(0).flip(0)


def shifts(plan: Plan, taps: int, frames: int) -> list[tuple[slice, slice]]:
    """For each tap, the frames that it writes to and as many frames that it reads, without those beyond the ends."""
    pairs = []
    for tap in range(taps):
        offset = max(-frames, min(frames, (tap - plan.centre) * plan.dilation))
        written = slice(max(0, -offset), frames - max(0, offset))
        pairs.append((written, slice(written.start + offset, written.stop + offset)))
    return pairs


def depthwise(a: Tensor, out: Tensor, weights: Weights, moments: Moments, plan: Plan) -> None:
    """Convolve the normalised a, padded with zeros, with the taps, and write the result to `out`.  a, out: (M, H)"""
    taps = weights.taps
    scaled = taps * (weights.scale1 * moments.r)
    constants = taps * (weights.scale1 * moments.q + weights.shift1)
    torch.addcmul(weights.taps_bias + constants.sum(0), a, scaled[plan.centre], out=out)
    for tap, (written, read) in enumerate(shifts(plan, len(taps), len(a))):
        if tap != plan.centre:
            out[written].addcmul_(a[read], scaled[tap])
            out[: written.start].sub_(constants[tap])
            out[written.stop :].sub_(constants[tap])


def correlations(dz: Tensor, a: Tensor, spare: Tensor, taps: int, plan: Plan) -> tuple[Tensor, Tensor]:
    """For each tap the sums of dz(t) over the frames that it writes to, and of dz(t) a(t + offset): (P, H) each."""
    total, sums, products = dz.sum(0), [], []
    for written, read in shifts(plan, taps, len(a)):
        sums.append(total - dz[: written.start].sum(0) - dz[written.stop :].sum(0))
        products.append(torch.mul(dz[written], a[read], out=spare[written]).sum(0))
    return torch.stack(sums), torch.stack(products)


def prelu_backward(gradient: Tensor, x: Tensor, slope: Tensor, spare: Tensor) -> Tensor:
    """Turn the gradient of prelu(x) into that of x, in place, and return that of the slope.  x: (M, H)"""
    d_slope = torch.clamp(x, max=0, out=spare).mul_(gradient).sum()
    leaky_relu_backward(gradient, x, float(slope), False, grad_input=gradient)
    return d_slope


def forward_block(example: Example, scratch: Tensor, weights: Weights, plan: Plan) -> tuple[Moments, Moments]:
    """Compute y and z from x and add the update to the stream; return the moments of the two norms."""
    w, moments = weights, CumulativeMoments if plan.cumulative else GlobalMoments
    torch.mm(example.x, w.expand.T, out=example.y)
    leaky_relu(example.y, float(w.slope1), out=scratch)
    first = moments.of(scratch)
    depthwise(scratch, example.z, w, first, plan)
    leaky_relu(example.z, float(w.slope2), out=scratch)
    second = moments.of(scratch)
    target = example.stream[:, plan.first :]
    target.addmm_(scratch, (w.output * (w.scale2 * second.r)).T)
    target.add_(w.output_bias + w.output @ (w.scale2 * second.q + w.shift2))
    return first, second


def backward_block(
    example: Example, moments: tuple[Moments, Moments], scratch: Sequence[Tensor], weights: Weights, plan: Plan
) -> tuple[Tensor, ...]:
    """Gradients of the parameters; turn the gradient of the stream after the block into the one before it, in place."""
    w, (dz, dy, spare) = weights, scratch
    first, second = moments
    leaky_relu(example.z, float(w.slope2), out=dz)
    d_scale2, d_shift2, d_output, d_output_bias = output_backward(example.stream, dz, spare, second, w, plan)
    d_slope2 = prelu_backward(dz, example.z, w.slope2, spare)
    leaky_relu(example.y, float(w.slope1), out=dy)
    d_scale1, d_shift1, d_taps, d_taps_bias = depthwise_backward(dz, dy, spare, first, w, plan)
    d_slope1 = prelu_backward(dy, example.y, w.slope1, spare)
    features = example.x.shape[1] - 1
    example.stream[:, :features].addmm_(dy, w.expand[:, :features])
    d_expand = dy.T @ example.x
    return (
        *(d_expand[:, :features], d_expand[:, features], d_slope1, d_scale1, d_shift1),
        *(d_taps, d_taps_bias, d_slope2, d_scale2, d_shift2, d_output, d_output_bias),
    )


def output_backward(
    stream: Tensor, a: Tensor, spare: Tensor, moments: Moments, weights: Weights, plan: Plan
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Gradients of the second norm and of the output weights; overwrite a = prelu(z) with its gradient."""
    w = weights
    moments.restore(a)
    after = stream[:, plan.first :]
    total = after.sum(0)  # (O,)
    products = moments.r * (after.T @ a) + moments.q * total[:, None]  # (O, H)
    d_output = products * w.scale2 + torch.outer(total, w.shift2)
    d_scale, d_shift = (w.output * products).sum(0), total @ w.output

    def through_output(into: Tensor, gain: float) -> None:
        into.addmm_(after, w.output * (w.scale2 * gain))

    moments.backward(a, spare, (w.scale2 @ d_shift, w.scale2 @ d_scale), through_output)
    return d_scale, d_shift, d_output, total


def depthwise_backward(
    dz: Tensor, a: Tensor, spare: Tensor, moments: Moments, weights: Weights, plan: Plan
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Gradients of the first norm and of the depthwise convolution; overwrite a = prelu(y) with its gradient."""
    w = weights
    moments.restore(a)
    counts, products = correlations(dz, a, spare, len(w.taps), plan)
    products = moments.r * products + moments.q * counts  # (P, H)
    d_taps = w.scale1 * products + w.shift1 * counts
    d_scale, d_shift = (w.taps * products).sum(0), (w.taps * counts).sum(0)

    def through_taps(into: Tensor, gain: float) -> None:
        for tap, (written, read) in zip(w.taps, shifts(plan, len(w.taps), len(into)), strict=True):
            into[read].addcmul_(dz[written], tap * (w.scale1 * gain))

    moments.backward(a, spare, (w.scale1 @ d_shift, w.scale1 @ d_scale), through_taps)
    return d_scale, d_shift, d_taps.T, counts[plan.centre]  # the centre tap counts all frames
