"""Phase vocoder: change the duration at the same pitch, for all sources and channels of an example alike."""

from __future__ import annotations

import math

import torch
from torch import Tensor
from torch.nn.functional import avg_pool1d, interpolate, max_pool1d, pad

from separate.shapes import Float

WINDOW = 0.046  # seconds of a frame, rounded up to a power of two samples
BLOCKS = 16  # of a frame; onsets are found by the energies of blocks
RISE = 4.0  # energy ratio (6 dB) of an onset
BAND = 1000.0  # Hz, width of the bands whose levels are restored
LARGEST_GAIN = 2.0  # limit of the gain (amplitude) that restores a level


def vocode(audio: Float[Tensor, "S C T"], frames: int, sample_rate: int) -> Float[Tensor, "S C {frames}"]:
    """Change the duration at the same pitch, (S, C, T) -> (S, C, frames); S sources of C channels of one mixture.

    Phase vocoder with identity phase locking (Laroche and Dolson, 1999). Peaks and phase rotations come from the
    mixture of the sources, the phase advance from its cross-spectrum summed over channels. All signals are rotated
    alike, so that phase differences between channels are kept and the outputs add up to the vocoded mixture.

    Around an onset (energy up by 6 dB) time runs at the original speed for 3/4 of a frame, and the phases of the bins
    where energy rises are reset (Röbel, 2003), so that attacks keep their waveform. Frames of noise do not add up in
    phase, which alone costs 1 dB, so the level of the mixture is restored in bands of 1 kHz.

    At factors of 0.8 to 1.25, noise and clicks keep their power within 0.3 dB. Limits: of onsets less than 1.5
    frames (70 to 100 ms) apart only the strongest is kept; the others spread over a frame and keep their power but not
    their peak. A weak source follows the phases of a louder one in the same band. It
    loses up to 0.7 dB at factors of 0.9 to 1.1, and 1.4 dB at 0.8 and 1.25.
    """
    n_fft = 2 ** math.ceil(math.log2(WINDOW * sample_rate))
    window = torch.hann_window(n_fft, device=audio.device)
    mixture = audio.sum(dim=0)
    positions, onset_frames = _time_map(mixture, frames, n_fft)
    rotation = _rotations(mixture, positions, onset_frames, window, sample_rate)
    # one source at a time, which needs less memory and is faster on a CPU
    return torch.stack(
        [_overlap_add(_spectra(x, positions, window).mul_(rotation), window)[..., :frames] for x in audio]
    )


def _rotations(mixture: Tensor, positions: Tensor, onset_frames: Tensor, window: Tensor, sample_rate: int) -> Tensor:
    """The complex factors (K, F) for the frames of every signal: phase rotations, and gains that restore the level."""
    hop = len(window) // 4
    spectra = _spectra(mixture, positions, window)  # (C, K, F)
    power = _power(spectra)
    earlier = _spectra(mixture, positions[1:] - hop, window)  # one hop before each frame but the first
    advances = (spectra[:, :-1] * earlier.conj_physical_()).sum(dim=0).angle()
    rotation = torch.polar(torch.ones_like(power), _locked_phases(advances, power, positions, onset_frames, hop))
    return rotation * _restoring_gains(spectra.mul_(rotation), power, window, sample_rate)


def _time_map(mixture: Tensor, frames: int, n_fft: int) -> tuple[Tensor, Tensor]:
    """For each frame of the output, its centre in the input in samples, and the number of the frame at its onset.

    Both are (K,); the second is -1 away from onsets.  Frame k is centred at (k - 1) * n_fft / 4 in the output.
    """
    length, hop, around = mixture.shape[-1], n_fft // 4, n_fft * 3 // 8
    block, onsets = n_fft // BLOCKS, _onsets(mixture, n_fft, max(1.0, length / frames))
    count = len(onsets)
    numbers = torch.arange(count, device=mixture.device)
    latest = torch.where(onsets, numbers, -1).cummax(0).values
    coming = pad(torch.where(onsets, numbers, count).flip(0).cummin(0).values.flip(0), (0, 1), value=count)

    placed = hop * torch.arange(-1, (frames - 1) // hop + 3, device=mixture.device)
    here = (placed * length // frames // block).clamp(0, count - 1)
    onset = torch.stack([latest[here], coming[here + 1]])  # (2, K) blocks: before and after each frame
    missing = (onset < 0) | (onset == count)
    onsets_in = onset * block + block // 2
    onsets_out = onsets_in * frames // length

    # the fixed point on either side: where the region around an onset ends, or the end of the signal
    after = torch.arange(2, device=mixture.device)[:, None]  # 0: before; made on the device, without waiting
    side = around * (1 - 2 * after)
    anchors_in = torch.where(missing, after * length, onsets_in + side)
    anchors_out = torch.where(missing, after * frames, onsets_out + side)
    between = anchors_in[0] + (placed - anchors_out[0]) * (anchors_in[1] - anchors_in[0]) // (
        anchors_out[1] - anchors_out[0]
    ).clamp_min(1)
    near = torch.stack([placed < anchors_out[0], placed > anchors_out[1]]) & ~missing
    positions = torch.where(near[0], anchors_in[0] + placed - anchors_out[0], between)
    positions = torch.where(near[1], anchors_in[1] + placed - anchors_out[1], positions)
    at_onset = (onsets_out + hop // 2) // hop + 1
    onset_frames = torch.where(near[0], at_onset[0], torch.where(near[1], at_onset[1], -1))
    return positions.clamp(-n_fft // 2, length + n_fft // 2), onset_frames


def _onsets(mixture: Tensor, n_fft: int, factor: float) -> Tensor:
    """Whether each block of n_fft / BLOCKS samples of (C, T) has an onset, (J,) bool, 1.5 * factor frames apart."""
    block = n_fft // BLOCKS
    steeper = pad(mixture.diff(dim=-1), (1, -mixture.shape[-1] % block))
    energy = steeper.square().unflatten(-1, (-1, block)).sum(dim=(0, 2))
    past = pad(energy, (BLOCKS + 2, 0))[: len(energy) + BLOCKS - 1]  # ends three blocks before: attacks take some time
    loudest = max_pool1d(past[None], BLOCKS, stride=1)[0]
    rise = energy / (loudest + 1e-3 * energy.mean() + 1e-20)
    apart = math.ceil(1.5 * factor * BLOCKS)
    strongest, place = max_pool1d(rise[None], 2 * apart + 1, stride=1, padding=apart, return_indices=True)
    numbers = torch.arange(len(energy), device=mixture.device)
    inside = (numbers > apart // 2) & (numbers < len(energy) - apart // 2)
    return (strongest[0] > RISE) & (place[0] == numbers) & inside


def _spectra(audio: Tensor, centres: Tensor, window: Tensor) -> Tensor:
    """Spectra of frames of (..., T) centred at the samples `centres` (K,), (..., K, F)."""
    size = len(window)
    padded = pad(audio, (2 * size, 2 * size))
    return torch.fft.rfft(padded.unfold(-1, size, 1)[..., centres + 3 * size // 2, :].mul_(window))


def _power(spectra: Tensor) -> Tensor:
    """(C, K, F) complex -> (K, F), summed over channels."""
    return (spectra.real.square() + spectra.imag.square()).sum(dim=0)


def _locked_phases(advances: Tensor, power: Tensor, positions: Tensor, onset_frames: Tensor, hop: int) -> Tensor:
    """The phase rotation of each frame, (K, F); each bin follows the nearest peak.

    advances: (K - 1, F), from each frame to the next; power: (K, F) of the mixture.
    """
    peaks = _nearest_peak(power)
    bins = torch.arange(power.shape[-1], device=power.device)
    peaks = torch.where((positions.diff() == hop)[:, None], bins, peaks[1:])  # no locking at the original speed
    smooth = avg_pool1d(power, 5, stride=1, padding=2)
    begins = (onset_frames[1:] >= 0) & (onset_frames[1:] != onset_frames[:-1])
    risen = smooth[onset_frames[1:].clamp(0, len(power) - 1)] > RISE * smooth[:-1]
    kept = ~(begins[:, None] & risen)
    found = [torch.zeros_like(power[0])]
    for advance, peak, keep in zip(advances, peaks, kept, strict=True):
        found.append((found[-1] + advance)[peak] * keep)
    return torch.stack(found)


def _nearest_peak(power: Tensor) -> Tensor:
    """For each bin of (..., F) the nearest peak (larger than two bins on either side), or the bin itself."""
    around = max_pool1d(power.flatten(0, -2), 5, stride=1, padding=2).reshape(power.shape)
    bins = torch.arange(power.shape[-1], device=power.device).expand(power.shape)
    is_peak = (power >= around) & (power > 0)
    below = torch.where(is_peak, bins, -(2**30)).cummax(dim=-1).values
    above = torch.where(is_peak, bins, 2**30).flip(-1).cummin(dim=-1).values.flip(-1)
    nearest = torch.where(bins - below <= above - bins, below, above)
    return torch.where((nearest >= 0) & (nearest < power.shape[-1]), nearest, bins)


def _restoring_gains(rotated: Tensor, power: Tensor, window: Tensor, sample_rate: int) -> Tensor:
    """Gains (K, F) that restore the power (K, F) of the rotated mixture (C, K, F) after overlap-add."""
    size = len(window)
    signal = _overlap_add(rotated, window)
    centres = size // 4 * torch.arange(-1, rotated.shape[1] - 1, device=rotated.device)
    width = max(2, round(BAND * size / sample_rate))
    wanted, found = (
        avg_pool1d(avg_pool1d(x, width, stride=width // 2, ceil_mode=True).mT, 3, stride=1, padding=1).mT
        for x in (power, _power(_spectra(signal, centres, window)))
    )
    floor = 1e-9 * wanted.amax() + 1e-30
    gains = ((wanted + floor) / (found + floor)).sqrt().clamp(1 / LARGEST_GAIN, LARGEST_GAIN)
    return interpolate(gains[None], power.shape[-1], mode="linear", align_corners=False)[0]


def _overlap_add(spectra: Tensor, window: Tensor) -> Tensor:
    """(..., K, F) -> (..., samples); frames are a quarter window apart, the first is centred a quarter before 0."""
    hop = len(window) // 4
    parts = torch.fft.irfft(spectra, n=len(window)).mul_(window / 1.5).unflatten(-1, (4, hop))  # Hann^2 adds up to 1.5
    count = parts.shape[-3]
    signal = parts.new_zeros(*parts.shape[:-3], count + 3, hop)
    for number in range(4):
        signal[..., number : number + count, :] += parts[..., number, :]
    return signal.flatten(-2)[..., 3 * hop :]
