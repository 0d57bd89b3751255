"""SI-SDR and SNR in dB, pure functions of (estimate, reference)."""

from __future__ import annotations

import math
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from separate.numerics import block, result_dtype, sum_dtype
from separate.shapes import Float


def si_sdr(estimate: Float[Tensor, "*#B T"], reference: Float[Tensor, "*#B T"]) -> Float[Tensor, ...]:
    """Scale-invariant SDR in dB (Le Roux et al., 2019, eq. 5), without removal of the means.  (..., T) twice -> (...)

    Equal to 10 log10(r^2 / (1 - r^2)) with the cosine r between the signals, so the gains of both cancel.
    Silence gets the floor 10 log10(eps): -69 dB in float32, -157 dB in float64.
    """
    estimate, reference = estimate.to(result_dtype(estimate)), reference.to(result_dtype(reference))
    eps = torch.finfo(estimate.dtype).eps
    cosine = (_unit(estimate) * _unit(reference)).sum(-1)
    signal = cosine.square()
    return 10 * torch.log10((signal + eps) / (1 - signal).clamp_min(eps))


def pairwise_si_sdr(estimates: Float[Tensor, "B M _"], references: Float[Tensor, "_ S _"]) -> Float[Tensor, "B M S"]:
    """`si_sdr` of every estimate against every reference, in dB.  (B, M, T), (B, S, T) -> (B, M, S)

    Computed from one Gram matrix of all signals in float64 (float32 on MPS), so that the time hardly grows with the
    number of pairs; the gradient takes one more product.  Floor and ceiling are those of `si_sdr`, -69 and 69 dB for
    float32 signals.  The result is more exact than `si_sdr`, whose float32 sums have an error of 0.1 dB at 50 dB.
    ValueError if batch or length differ.
    """
    if estimates.ndim != 3 or references.ndim != 3 or estimates.shape[::2] != references.shape[::2]:
        raise ValueError(
            f"estimates {tuple(estimates.shape)} and references {tuple(references.shape)} must agree in batch and "
            "length: (B, M, T) and (B, S, T)"
        )
    dtype, count = result_dtype(estimates), estimates.shape[1]
    gram = inner_products(estimates, references)
    energy = gram.diagonal(dim1=1, dim2=2) + torch.finfo(dtype).tiny ** 0.5  # (B, M + S)
    eps = torch.finfo(dtype).eps
    signal = gram[:, :count, count:].square() / (energy[:, :count, None] * energy[:, None, count:])
    return (10 * torch.log10((signal + eps) / (1 - signal).clamp_min(eps))).to(dtype)


def snr(estimate: Float[Tensor, "*#B T"], reference: Float[Tensor, "*#B T"]) -> Float[Tensor, ...]:
    """Signal-to-noise ratio in dB, 10 log10(|s|^2 / |s - e|^2), not scale-invariant.  (..., T) twice -> (...)

    A silent reference gives -inf, a perfect estimate +inf.
    """
    estimate, reference = estimate.to(result_dtype(estimate)), reference.to(result_dtype(reference))
    return 10 * torch.log10(reference.square().sum(-1) / (reference - estimate).square().sum(-1))


class Sums(NamedTuple):
    """Energies of estimate, reference and difference, and the inner product, in float64, over the samples."""

    estimate: Tensor
    reference: Tensor
    difference: Tensor
    product: Tensor


def sums(estimate: Float[Tensor, "*#B T"], reference: Float[Tensor, "*#B T"]) -> Sums:
    """The `Sums` of whole recordings, block by block, so that no copy in float64 is needed.  (..., T) twice -> (...)"""
    shape = torch.broadcast_shapes(estimate.shape, reference.shape)
    total = torch.zeros(4, *shape[:-1], dtype=sum_dtype(estimate), device=estimate.device)
    length = block(estimate, 4 * math.prod(shape[:-1]))
    for start in range(0, shape[-1], length):
        e, r = (x[..., start : start + length].to(total.dtype) for x in (estimate, reference))
        d = e - r
        total += torch.stack(
            [torch.linalg.vecdot(a, b).expand(shape[:-1]) for a, b in ((e, e), (r, r), (d, d), (e, r))]
        )
    return Sums(*total)


def recording_si_sdr(estimate: Float[Tensor, "*#B T"], reference: Float[Tensor, "*#B T"]) -> Float[Tensor, ...]:
    """`si_sdr` in float64, for recordings of any length and precision.  (..., T) twice -> (...)"""
    found = sums(estimate, reference)
    eps, tiny = torch.finfo(found.product.dtype).eps, torch.finfo(found.product.dtype).tiny ** 0.5
    signal = found.product.square() / ((found.estimate + tiny) * (found.reference + tiny))
    return 10 * torch.log10((signal + eps) / (1 - signal).clamp_min(eps))


def recording_snr(estimate: Float[Tensor, "*#B T"], reference: Float[Tensor, "*#B T"]) -> Float[Tensor, ...]:
    """`snr` in float64, for recordings of any length and precision.  (..., T) twice -> (...)"""
    found = sums(estimate, reference)
    return 10 * torch.log10(found.reference / found.difference)


def sd_sdr(estimate: Float[Tensor, "*#B T"], reference: Float[Tensor, "*#B T"]) -> Float[Tensor, ...]:
    """Scale-dependent SDR in dB (Le Roux et al., 2019), 10 log10(|a s|^2 / |s - e|^2) with the gain a = <e, s> / |s|^2.

    (..., T) twice -> (...).  At most `si_sdr`, and lower for every wrong gain.
    """
    found = sums(estimate, reference)
    return 10 * torch.log10(found.product.square() / (found.reference * found.difference))


def track_sdr(estimate: Float[Tensor, "*#B T"], reference: Float[Tensor, "*#B T"]) -> Float[Tensor, ...]:
    """SDR of a whole track in dB, with 1e-7 added to both energies (Mitsufuji et al., "Music Demixing Challenge 2021").

    (..., T) twice -> (...).  Defined for silence.
    """
    found = sums(estimate, reference)
    return 10 * torch.log10((found.reference + 1e-7) / (found.difference + 1e-7))


def si_sir_and_sar(
    estimates: Float[Tensor, "B S T"], references: Float[Tensor, "B S T"]
) -> tuple[Float[Tensor, "B S"], Float[Tensor, "B S"]]:
    """Scale-invariant SIR and SAR in dB (Le Roux et al., 2019), (B, S, T) twice -> (B, S) twice.

    The residual of SI-SDR is split into its projection on all references, the interference, and the artifacts, so that
    10^(-SI-SDR/10) = 10^(-SI-SIR/10) + 10^(-SI-SAR/10).
    """
    count = estimates.shape[1]
    gram = inner_products(estimates, references)
    cross, own = gram[:, count:, :count], gram[:, count:, count:]  # (B, references, estimates), (B, S, S)
    energy = gram.diagonal(dim1=1, dim2=2)
    target = cross.diagonal(dim1=1, dim2=2).square() / energy[:, count:]
    explained = (cross * (torch.linalg.pinv(own, hermitian=True) @ cross)).sum(
        1
    )  # a silent or double reference adds none
    floor = torch.finfo(gram.dtype).eps * energy[:, :count]
    interference, artifacts = explained - target, energy[:, :count] - explained
    sir, sar = (10 * torch.log10(target / rest.clamp_min(floor)) for rest in (interference, artifacts))
    return sir, sar


def inner_products(estimates: Float[Tensor, "B M T"], references: Float[Tensor, "B S T"]) -> Float[Tensor, "B M+S M+S"]:
    """Inner products of the M + S signals of each example, (B, M, T), (B, S, T) -> (B, M + S, M + S).

    In float64, or float32 on MPS.
    """
    return _Gram.apply(estimates, references)


class _Gram(torch.autograd.Function):
    """`inner_products` in blocks of samples, with a gradient for both signals."""

    @staticmethod
    def forward(ctx: Any, estimates: Tensor, references: Tensor) -> Tensor:
        ctx.save_for_backward(estimates, references)
        batch, count, samples = estimates.shape
        signals = count + references.shape[1]
        length = min(samples, block(estimates, 2 * batch * signals))  # float64 takes twice the memory
        both = estimates.new_empty(batch, signals, length, dtype=sum_dtype(estimates))
        gram = estimates.new_zeros(batch, signals, signals, dtype=sum_dtype(estimates))
        with torch.autocast(estimates.device.type, enabled=False):
            for start in range(0, samples, length):
                part = both[..., : samples - start]
                part[:, :count] = estimates[..., start : start + length]
                part[:, count:] = references[..., start : start + length]
                gram += torch.bmm(part, part.mT)
        return gram

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, d_gram: Tensor) -> tuple[Tensor | None, Tensor | None]:
        estimates, references = ctx.saved_tensors
        count, dtype = estimates.shape[1], result_dtype(estimates)
        weights = (d_gram + d_gram.mT).to(dtype)  # (B, M + S, M + S)

        def of(rows: Tensor, like: Tensor) -> Tensor:
            gradient = torch.bmm(rows[..., :count], estimates.to(dtype))
            return gradient.baddbmm_(rows[..., count:], references.to(dtype)).to(like.dtype)

        with torch.autocast(estimates.device.type, enabled=False):
            return (
                of(weights[:, :count], estimates) if ctx.needs_input_grad[0] else None,
                of(weights[:, count:], references) if ctx.needs_input_grad[1] else None,
            )


def _unit(signal: Tensor) -> Tensor:
    """The signal divided by its L2 norm; silence stays 0."""
    energy = signal.square().sum(-1, keepdim=True)
    return signal * torch.rsqrt(energy + torch.finfo(signal.dtype).tiny ** 0.5)
