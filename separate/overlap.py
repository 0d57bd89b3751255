"""Separation of long recordings in overlapping, cross-faded chunks, so that memory does not grow with their length."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass

import torch
from torch import Tensor

from separate.errors import UsageError
from separate.losses.permutation import match
from separate.shapes import Float

INVERSION = 0.02  # seconds in which a polarity is inverted, half a period of 25 Hz: no audible tone gets steeper


@dataclass(frozen=True)
class Matching:
    """How a chunk is matched to the one before it.

    interchangeable: permute its sources for the best agreement in the overlap.
    polarities: kept, or for networks whose output has an arbitrary polarity in each chunk: source, if it is common to
    the channels of a source, or channel.  Chunks are then matched regardless of polarity, and where two disagree, the
    quieter one is inverted.  If that is the earlier one, the source passes through zero in the first 20 ms of the
    overlap.
    """

    interchangeable: bool = False
    polarities: str = "kept"


IN_ORDER = Matching()  # keeps the order and the polarity of the sources


def blocks(
    separate: Callable[[int, int], Tensor],
    length: int,
    sample_rate: int,
    chunk: float,
    overlap: float,
    matching: Matching = IN_ORDER,
) -> Iterator[Tensor]:
    """Yield the estimates (S, C, n) of a recording in order, `length` samples in all, at least 1.

    separate: maps (start, stop), in samples, to the estimates of that span, (S, C, stop - start).
    chunk: seconds separated at a time; overlap: seconds that two chunks share, at most half of one.  In the overlap
    they are cross-faded with weights that sum to 1 and vanish at the ends of the chunks, where the network has least
    context.  UsageError for interchangeable sources without overlap.
    """
    size = max(1, round(chunk * sample_rate))
    shared = min(round(overlap * sample_rate), size // 2)
    fade = torch.sin(torch.pi / 2 * (torch.arange(shared) + 0.5) / max(shared, 1)).square()
    ramp = torch.cos(torch.pi * ((torch.arange(shared) + 0.5) / max(1, round(INVERSION * sample_rate))).clamp_max(1))
    if matching.interchangeable and shared == 0 and length > size:
        raise UsageError(
            "overlap=0 leaves no samples to match interchangeable sources between chunks; use a larger one"
        )
    tail: Tensor | None = None  # (S, C, shared), the end of the last chunk
    evidence: Tensor | None = None  # (S, C), the energy of the earlier chunks that have the polarity of the last one
    start = 0
    while True:
        stop = min(start + size, length)
        estimates = separate(start, stop)
        if tail is not None:
            if matching.interchangeable:
                estimates = match(tail, estimates, shared, signed=matching.polarities == "kept")
            if evidence is not None:
                tail, estimates, evidence = align_polarity(tail, estimates, evidence, matching.polarities, ramp)
            faded = tail * (1 - fade) + estimates[..., :shared] * fade
            estimates = torch.cat([faded, estimates[..., shared:]], dim=-1)
        elif matching.polarities != "kept" and shared > 0:
            evidence = estimates.double().square().sum(-1)
        if stop == length:
            yield estimates
            return
        yield estimates[..., : size - shared]
        tail = estimates[..., size - shared :]
        start += size - shared


def align_polarity(
    tail: Float[Tensor, "S C shared"],
    estimates: Float[Tensor, "S C n"],
    evidence: Float[Tensor, "S C"],
    polarities: str,
    ramp: Float[Tensor, " ramp"],
) -> tuple[Float[Tensor, "S C shared"], Float[Tensor, "S C n"], Float[Tensor, "S C"]]:
    """Give tail and estimates the same polarity, so that they do not cancel in the cross-fade.

    tail: (S, C, shared); estimates: (S, C, n >= shared); evidence: (S, C), the energy of earlier chunks with the
    polarity of the tail.  Where tail and estimates disagree, the one with less energy is inverted, because its polarity
    is less certain.  A tail is inverted by multiplication with `ramp` (shared), from 1 to -1, so that it continues the
    samples already yielded without a step.  Returns tail, estimates and the new evidence.
    """
    shared = tail.shape[-1]
    products = (tail * estimates[..., :shared]).sum(-1)
    energy = estimates.double().square().sum(-1)
    if polarities == "source":
        products, energy, evidence = (x.sum(-1, keepdim=True).expand_as(x) for x in (products, energy, evidence))
    opposed = products < 0
    invert_tail = opposed & (energy > evidence)
    tail = torch.where(invert_tail.unsqueeze(-1), tail * ramp, tail)
    estimates = torch.where((opposed & ~invert_tail).unsqueeze(-1), -estimates, estimates)
    return tail, estimates, torch.where(invert_tail, energy, evidence + energy)
