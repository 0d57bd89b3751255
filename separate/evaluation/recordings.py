"""Whole recordings: read and separate one, and the estimates of the oracle masks."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from copy import deepcopy

import torch
from torch import Tensor

from separate.data.batch import Batch
from separate.data.example import Examples
from separate.data.mixing.raw_batch import collate
from separate.separator import Separation, Separator
from separate.targets import ibm, irm, tpsa

MIXTURE = "mixture as estimate"
SPAN = 30.0  # seconds masked at a time, to limit the memory


def read_recording(examples: Examples, index: int, separator: Separator) -> Batch:
    """A whole recording as a batch of one, on the CPU, at the separator's rate."""
    return collate([examples.recording(index)]).to(torch.device("cpu"), deepcopy(separator.stft).cpu())


def separate_recording(separator: Separator, batch: Batch, chunk: float, overlap: float) -> Tensor:
    """Separate a recording in chunks, as `separate-infer` does.  -> (1, S, C, T) on the CPU"""
    separated = separator(batch.mixture[0], separator.sample_rate, chunk, overlap)
    return torch.stack(list(separated.values())).unsqueeze(0)


def tpsa_masks(sources: Tensor, mixture: Tensor) -> Tensor:
    """The tPSA mask, tPSA / |Y|, of STFTs (B, S, C, F, N) and (B, C, F, N) -> (B, S, C, F, N).

    Of all masks in [0, 1] it has the least squared error in each bin of the STFT.  Other masks can give better
    waveforms, because frames overlap and the errors of bins can cancel.
    """
    return tpsa(sources, mixture) / mixture.abs().clamp_min(1e-12).unsqueeze(1)


ORACLES: dict[str, Callable[[Tensor, Tensor], Tensor]] = {"IBM": ibm, "IRM": irm, "tPSA mask": tpsa_masks}


def baselines(batch: Batch, sample_rate: int) -> Iterator[tuple[str, Tensor]]:
    """(method, estimates (B, S, C, T)) of the mixture and of each oracle mask."""
    yield MIXTURE, batch.mixture.unsqueeze(1).expand_as(batch.sources)
    for name, masks in ORACLES.items():
        yield name, masked(batch, masks, round(SPAN * sample_rate))


def masked(batch: Batch, masks: Callable[[Tensor, Tensor], Tensor], span: int) -> Tensor:
    """The estimates (B, S, C, T) of the masks of the true sources, computed for `span` samples at a time.

    Each span is extended by more than a window to both sides, in whole hops, so that its frames are those of the whole
    recording.
    """
    assert batch.stft is not None
    hop = batch.stft.hop
    step, margin = max(1, span // hop) * hop, (batch.stft.n_fft // hop + 2) * hop
    length = batch.mixture.shape[-1]
    found = torch.empty_like(batch.sources)
    for start in range(0, length, step):
        first, stop, last = max(0, start - margin), min(start + step, length), min(start + step + margin, length)
        part = Batch(batch.mixture[..., first:last], batch.sources[..., first:last], batch.tracks, batch.stft)
        estimates = Separation(part, {"masks": masks(part.source_spectrograms, part.spectrogram)}).estimates
        found[..., start:stop] = estimates[..., start - first : stop - first]
    return found
