"""BSS Eval: SDR, ISR, SIR and SAR in dB, version 4 as museval and version 3 as mir_eval compute them.

Both split an estimate into a filtered target, interference and artifacts (Vincent, Gribonval and Févotte, "Performance
measurement in blind audio source separation", 2006).  The interference is what other sources explain, filtered by 512
taps at most; the artifacts are what no source explains.

All is computed in float64: the normal equations of the filters are ill-conditioned for tonal sources, and float32 or an
iterative solution is wrong by up to 1 dB there.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from separate.losses.permutation import best_permutation
from separate.shapes import Float

TAPS = 512  # of the distortion filters
FFT = 8192  # samples of a block for correlations
PANEL = 512  # columns of a block of the Cholesky factorisation
BLOCKS = 16  # blocks transformed at a time, which bounds the memory


class BssEval4(NamedTuple):
    """Scores in dB, (B, S, W) for W windows; NaN in a window in which a reference or an estimate is silent."""

    sdr: Tensor
    isr: Tensor
    sir: Tensor
    sar: Tensor


class BssEval3(NamedTuple):
    """Scores in dB, (B, S), NaN for a silent reference or estimate; order: the estimate of each source, (B, S)."""

    sdr: Tensor
    sir: Tensor
    sar: Tensor
    order: Tensor


def bss_eval_v4(
    estimates: Float[Tensor, "B S C T"],
    references: Float[Tensor, "B S C T"],
    window: int,
    hop: int,
    taps: int = TAPS,
) -> BssEval4:
    """Scores of each window (Stöter, Liutkus and Ito, "The 2018 Signal Separation Evaluation Campaign", LVA/ICA 2018).

    A source is an image of all its channels, and the target is the reference itself: a filtered one lowers the ISR.
    window, hop: in samples; a signal shorter than the window is one window.  The filters are those of the whole signal,
    and each window is filtered by itself.  ValueError for different shapes.
    """
    _check(estimates, references, window=window, hop=hop, taps=taps)
    windows = _windows(estimates.shape[-1], window, hop)
    found = [_images(*pair, windows, taps) for pair in zip(estimates, references, strict=True)]
    return BssEval4(*torch.stack(found).unbind(1))


def bss_eval_v3(
    estimates: Float[Tensor, "B S T"], references: Float[Tensor, "B S T"], taps: int = TAPS, permute: bool = True
) -> BssEval3:
    """Scores of the whole signals (Vincent et al. 2006, eq. 11, 12 and 14; a filter is an allowed distortion).

    permute: order the estimates for the best mean SIR.  ValueError for different shapes.
    """
    _check(estimates, references, taps=taps)
    pairs = torch.stack([_sources(*pair, taps) for pair in zip(estimates, references, strict=True)])  # (B, 3, M, S)
    identity = torch.arange(pairs.shape[-1], device=pairs.device).expand(len(pairs), -1)
    order = best_permutation(-pairs[:, 1].nan_to_num(0.0, 1e6, -1e6)) if permute else identity
    chosen = pairs.gather(2, order[:, None, None, :].expand(-1, 3, 1, -1)).squeeze(2)
    sdr, sir, sar = chosen.unbind(1)
    return BssEval3(sdr, sir, sar, order)


def _check(estimates: Tensor, references: Tensor, **counts: int) -> None:
    if estimates.shape != references.shape:
        raise ValueError(f"estimates {tuple(estimates.shape)} and references {tuple(references.shape)} must agree")
    for name, value in counts.items():
        if value < 1:
            raise ValueError(f"{name}={value} must be at least 1 sample")


def _windows(samples: int, window: int, hop: int) -> list[slice]:
    """The windows that lie within the signal; the whole signal if it is shorter than one."""
    if window >= samples:
        return [slice(0, samples)]
    return [slice(start, start + window) for start in range(0, samples - window + 1, hop)]


def _sources(estimates: Tensor, references: Tensor, taps: int) -> Tensor:
    """SDR, SIR and SAR of each estimate (M, T) against each reference (S, T), (3, M, S).

    A projection is orthogonal to its residual, so that energies of projections are enough:
    |s_filtered|^2 = |L^-1 d|^2, with the Cholesky factor L of the correlations of the delayed references and the
    correlations d of these with the estimate.
    """
    own, cross = correlations(references, estimates, taps)
    energy = estimates.double().square().sum(-1)  # (M,)
    count = len(references)
    joint = _energies(own, cross.reshape(count * taps, -1))  # (M,)
    single = torch.stack([_energies(own[s : s + 1, s : s + 1], cross[s]) for s in range(count)], dim=1)
    rest, interference = energy[:, None] - single, joint[:, None] - single
    artifacts = (energy - joint)[:, None].expand_as(single)
    ratios = ((single, rest), (single, interference), (joint[:, None].expand_as(single), artifacts))
    scores = torch.stack([_decibels(signal, noise) for signal, noise in ratios])
    silent = (energy == 0)[:, None] | (references == 0).all(-1)
    return scores.masked_fill(silent, torch.nan)


def _energies(own: Tensor, targets: Tensor) -> Tensor:
    """Energies of the projections of M signals, (P, P, 2 L - 1), (P L, M) -> (M,)"""
    return torch.linalg.solve_triangular(_factor(own), targets, upper=False).square().sum(0)


def _images(estimates: Tensor, references: Tensor, windows: list[slice], taps: int) -> Tensor:
    """SDR, ISR, SIR and SAR of each window, (S, C, T) twice -> (4, S, W)."""
    scores = estimates.new_full((4, len(estimates), len(windows)), torch.nan, dtype=torch.float64)
    heard = [
        n for n, part in enumerate(windows) if not (_silent(estimates[..., part]) or _silent(references[..., part]))
    ]
    if heard:
        samples = windows[0].stop - windows[0].start
        filters = _Filters(estimates, references, taps, samples)
        for n in heard:
            scores[..., n] = filters.scores(estimates[..., windows[n]].double(), references[..., windows[n]].double())
    return scores


def _silent(signals: Tensor) -> bool:
    """Whether the channels of a source (S, C, T) sum to silence, as museval decides."""
    return bool((signals.sum(1) == 0).all(-1).any())


class _Filters:
    """The least-squares filters from the references to the images of each estimate, for windows of one length.

    joint: from the channels of all references, (S C, S C outputs, F); single: from those of the estimate's own
    reference, (S, C, C outputs, F); both as spectra.
    """

    def __init__(self, estimates: Tensor, references: Tensor, taps: int, samples: int) -> None:
        sources, channels, _ = references.shape
        own, cross = correlations(references.flatten(0, 1), estimates.flatten(0, 1), taps)  # (P, P, 2 L - 1), (P, L, P)
        self.tail, self.length = taps - 1, samples + taps - 1
        self.size = _fast_length(self.length)
        self.joint = self._spectra(own, cross)
        parts = [slice(s * channels, (s + 1) * channels) for s in range(sources)]
        self.single = torch.stack([self._spectra(own[part, part], cross[part, :, part]) for part in parts])

    def _spectra(self, own: Tensor, cross: Tensor) -> Tensor:
        """Solve the normal equations, (P, P, 2 L - 1), (P, L, Q) -> (P, Q, F)"""
        factor = _factor(own)
        filters = torch.linalg.solve_triangular(factor, cross.flatten(0, 1), upper=False)
        filters = torch.linalg.solve_triangular(factor.mT, filters, upper=True).view_as(cross)
        return torch.fft.rfft(filters.mT, self.size)

    def scores(self, estimates: Tensor, references: Tensor) -> Tensor:
        """SDR, ISR, SIR and SAR of one window, (S, C, T) twice -> (4, S)."""
        spectra = torch.fft.rfft(references, self.size)  # (S, C, F)
        explained = self._filtered(spectra.flatten(0, 1), self.joint).view_as(spectra)
        target = torch.stack([self._filtered(spectra[s], self.single[s]) for s in range(len(references))])
        explained, target = (torch.fft.irfft(x, self.size)[..., : self.length] for x in (explained, target))
        signal, samples = _energy(references), references.shape[-1]
        return torch.stack(
            [
                _decibels(signal, _energy(estimates - references)),
                _decibels(signal, _energy(target[..., :samples] - references) + _energy(target[..., samples:])),
                _decibels(_energy(target), _energy(explained - target)),
                _decibels(
                    _energy(explained),
                    _energy(explained[..., :samples] - estimates) + _energy(explained[..., samples:]),
                ),
            ]
        )

    @staticmethod
    def _filtered(spectra: Tensor, filters: Tensor) -> Tensor:
        """The sum over the inputs, (P, F), (P, Q, F) -> (Q, F)"""
        total = spectra[0] * filters[0]
        for one, responses in zip(spectra[1:], filters[1:], strict=True):
            total.addcmul_(one, responses)
        return total


def _energy(images: Tensor) -> Tensor:
    """(S, C, T) -> (S,)"""
    return torch.linalg.vector_norm(images, dim=-1).square().sum(-1)


def _decibels(signal: Tensor, noise: Tensor) -> Tensor:
    return 10 * torch.log10(signal / noise.clamp_min(0))


def _fast_length(samples: int) -> int:
    from scipy.fft import next_fast_len

    return next_fast_len(samples, real=True)


# -------------------------------------------------------------------------------------------------- normal equations


def correlations(references: Tensor, estimates: Tensor, taps: int) -> tuple[Tensor, Tensor]:
    """Inner products of delayed signals in float64, (P, T), (Q, T) -> (P, P, 2 L - 1), (P, L, Q).

    The first: sum over t of x_i[t] x_j[t + lag], for lags from 1 - L to L - 1.  The second: sum over t of
    x_i[t - lag] e[t], for lags from 0 to L - 1.  These few lags need only short transforms: each block of the
    references alone, and each block of all signals with the L - 1 samples after it.
    """
    count, samples = references.shape
    size = max(FFT, 2 ** (4 * taps - 1).bit_length())
    step = size - taps + 1
    blocks = -(-samples // step)
    signals = torch.cat([references, estimates])
    total = torch.zeros(size // 2 + 1, count, len(signals), dtype=torch.complex128, device=references.device)
    for first in range(0, blocks, BLOCKS):
        some = min(BLOCKS, blocks - first)
        begin, length = first * step, (some - 1) * step + size
        piece = signals[:, begin : begin + length].double()
        windows = torch.nn.functional.pad(piece, (0, length - piece.shape[1])).unfold(1, size, step)  # (P + Q, b, size)
        later = torch.fft.rfft(windows)
        alone = torch.fft.rfft(windows[:count, :, :step], size)
        left, right = (x.contiguous() for x in (alone.conj_physical().permute(2, 0, 1), later.permute(2, 1, 0)))
        total.baddbmm_(left, right)
    lags = torch.fft.irfft(total, size, dim=0)[:taps].permute(1, 2, 0)  # (P, P + Q, L)
    own, cross = lags[:, :count], lags[:, count:]
    return torch.cat([own.transpose(0, 1).flip(-1)[..., :-1], own], dim=-1), cross.mT


def _normal_matrix(own: Tensor) -> Tensor:
    """The symmetric matrix of the normal equations, of Toeplitz blocks.  (P, P, 2 L - 1) -> (P L, P L)"""
    count, taps = len(own), (own.shape[-1] + 1) // 2
    matrix, reverse = own.new_empty(count, taps, count, taps), own.flip(-1)
    for delay in range(taps):  # the lags from delay to delay - taps + 1
        matrix[:, delay] = reverse[:, :, taps - 1 - delay : 2 * taps - 1 - delay]
    return matrix.view(count * taps, -1)


def _factor(own: Tensor) -> Tensor:
    """The Cholesky factor of the normal matrix; above its diagonal are other numbers.

    A singular matrix gets the smallest multiple of the identity that makes it positive definite.
    """
    energy, added = own[..., own.shape[-1] // 2].diagonal().mean(), 0.0
    while True:
        matrix = _normal_matrix(own)
        matrix.diagonal().add_(added * energy.clamp_min(torch.finfo(own.dtype).tiny))
        if _factorise(matrix):
            return matrix
        added = max(10 * added, torch.finfo(own.dtype).eps)


def _factorise(matrix: Tensor) -> bool:
    """Replace the lower triangle by the Cholesky factor, in blocks; False if the matrix is not positive definite.

    Less memory and less time than torch.linalg.cholesky, which copies the matrix and clears its upper triangle.
    """
    for first in range(0, len(matrix), PANEL):
        after = first + PANEL
        corner, failed = torch.linalg.cholesky_ex(matrix[first:after, first:after])
        if failed:
            return False
        matrix[first:after, first:after] = corner
        below = torch.linalg.solve_triangular(corner.mT, matrix[after:, first:after], upper=True, left=False)
        matrix[after:, first:after] = below
        for column in range(0, len(below), PANEL):
            rest = matrix[after + column :, after + column : after + column + PANEL]
            rest.addmm_(below[column:], below[column : column + PANEL].mT, alpha=-1)
    return True
