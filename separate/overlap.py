"""Long recordings in overlapping chunks, cross-faded, so that memory does not grow with their length."""

from __future__ import annotations

from collections.abc import Callable, Iterator

import torch
from torch import Tensor

from separate.errors import UsageError
from separate.losses.permutation import match
from separate.shapes import Float

TURN = 0.02  # seconds in which a polarity is inverted: half a period of 25 Hz, so that no audible tone gets steeper


def blocks(
    separate: Callable[[int, int], Tensor],
    length: int,
    sample_rate: int,
    chunk: float,
    overlap: float,
    interchangeable: bool = False,
    polarities: str = "kept",
) -> Iterator[Tensor]:
    """Yield the estimates (S, C, n) of a recording from its start to its end, `length` samples in all, at least 1.

    separate: maps samples start:stop of the recording to estimates (S, C, stop - start).
    chunk: seconds separated at a time; overlap: seconds that two chunks share, at most half of one.  There the two
    are cross-faded with weights that sum to 1 and vanish smoothly at the ends of the chunks, where context is least.
    interchangeable: put the sources of each chunk into the order that agrees with the last one in the overlap.
    polarities: kept, or source or channel, where each chunk finds a polarity of its own for each source, or for each of
    its channels: chunks are matched whatever their polarity, and where two disagree, the louder one decides.  If that
    is the later one, the source passes through zero in the first 20 ms of the overlap.
    """
    size = max(1, round(chunk * sample_rate))
    shared = min(round(overlap * sample_rate), size // 2)
    fade = torch.sin(torch.pi / 2 * (torch.arange(shared) + 0.5) / max(shared, 1)).square()
    turn = torch.cos(torch.pi * ((torch.arange(shared) + 0.5) / max(1, round(TURN * sample_rate))).clamp_max(1))
    if interchangeable and shared == 0 and length > size:
        raise UsageError("overlap=0 leaves nothing to match interchangeable sources by from chunk to chunk; use more")
    tail: Tensor | None = None  # (S, C, shared), the end of the last chunk
    evidence: Tensor | None = None  # (S, C), the energy that has the polarity of the last chunk
    start = 0
    while True:
        stop = min(start + size, length)
        estimates = separate(start, stop)
        if tail is not None:
            if interchangeable:
                estimates = match(tail, estimates, shared, signed=polarities == "kept")
            if evidence is not None:
                tail, estimates, evidence = agree(tail, estimates, evidence, polarities, turn)
            faded = tail * (1 - fade) + estimates[..., :shared] * fade
            estimates = torch.cat([faded, estimates[..., shared:]], dim=-1)
        elif polarities != "kept" and shared > 0:
            evidence = estimates.double().square().sum(-1)
        if stop == length:
            yield estimates
            return
        yield estimates[..., : size - shared]
        tail = estimates[..., size - shared :]
        start += size - shared


def agree(
    tail: Float[Tensor, "S C shared"],
    estimates: Float[Tensor, "S C n"],
    evidence: Float[Tensor, "S C"],
    polarities: str,
    turn: Float[Tensor, " shared"],
) -> tuple[Float[Tensor, "S C shared"], Float[Tensor, "S C n"], Float[Tensor, "S C"]]:
    """Tail, estimates and evidence with one polarity in the overlap, so that a cross-fade does not cancel.

    estimates: n >= shared; evidence: the energy of earlier chunks.  Where they
    disagree the louder one, whose polarity is surer, inverts the other.  Samples already yielded stay as they are, and
    a tail is inverted by `turn` (shared), from 1 to -1, so that it follows them without a step.
    """
    shared = tail.shape[-1]
    products = (tail * estimates[..., :shared]).sum(-1)
    energy = estimates.double().square().sum(-1)
    if polarities == "source":
        products, energy, evidence = (x.sum(-1, keepdim=True).expand_as(x) for x in (products, energy, evidence))
    against = products < 0
    surer = against & (energy > evidence)
    tail = torch.where(surer.unsqueeze(-1), tail * turn, tail)
    estimates = torch.where((against & ~surer).unsqueeze(-1), -estimates, estimates)
    return tail, estimates, torch.where(surer, energy, evidence + energy)
