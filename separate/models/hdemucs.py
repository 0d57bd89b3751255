"""Hybrid Demucs: a U-Net on the waveform and one on the spectrogram, with shared inner levels."""

from __future__ import annotations

from collections.abc import Mapping
from functools import cache
from math import ceil
from typing import Any

import torch
from torch import Tensor, nn

from separate.models.layers import check_positive
from separate.shapes import Float
from separate.stft import weighted_overlap_add

WINDOWS = (64, 256, 1024, 2048, 4096, 16384)  # with these both branches reach the same rate, as each level divides by 4


class HDemucs(nn.Module):
    """torchaudio's Hybrid Demucs (Défossez, 2021), for mixtures of any length.

    The default of dconv_init is torchaudio's, a tenth of the authors'; see experiment=hdemucs_paper.

    Both branches have `hidden` x growth^level channels.  Each level divides bins and samples by 4, until one bin is
    left and the branches are added; the levels after that divide by `time_stride`.
    nfft: window of the STFT in samples, with a hop of nfft / 4; torchaudio suggests 4096 and depth=6 for 44.1 kHz,
    2048 and 6 for 16 to 32 kHz, 1024 and 5 for 8 kHz.
    freq_emb: weight of an embedding of the bin index, 0 for none; emb_scale: its learning rate relative to all other
    weights; emb_smooth: make it vary smoothly with frequency at first.  context, context_enc: samples that the 1x1
    convolutions of decoder and encoder see on each side.  norm_starts: first level with group normalisation, in
    norm_groups groups.
    Residual branch of each level: dconv_depth dilated layers with 1/dconv_comp of the channels, initially scaled by
    dconv_init, with local attention from level dconv_attn on and BLSTM layers from level dconv_lstm on.
    """

    provides = ("waveforms",)

    def __init__(
        self,
        sources: int,
        channels: int,
        hidden: int = 48,
        growth: float = 2.0,
        nfft: int = 4096,
        depth: int = 6,
        time_stride: int = 2,
        freq_emb: float = 0.2,
        emb_scale: float = 10.0,
        emb_smooth: bool = True,
        context: int = 1,
        context_enc: int = 0,
        norm_starts: int = 4,
        norm_groups: int = 4,
        dconv_depth: int = 2,
        dconv_comp: int = 4,
        dconv_attn: int = 4,
        dconv_lstm: int = 4,
        dconv_init: float = 1e-4,
    ) -> None:
        super().__init__()
        self.step = nfft // 4
        options = {
            "growth": growth, "nfft": nfft, "depth": depth, "time_stride": time_stride, "freq_emb": freq_emb,
            "emb_scale": emb_scale, "emb_smooth": emb_smooth, "context": context, "context_enc": context_enc,
            "norm_starts": norm_starts, "norm_groups": norm_groups, "dconv_depth": dconv_depth,
            "dconv_comp": dconv_comp, "dconv_attn": dconv_attn, "dconv_lstm": dconv_lstm, "dconv_init": dconv_init,
        }  # fmt: skip
        check_options(hidden, options)
        names = [str(source) for source in range(sources)]
        try:
            self.network = _network_class()(names, audio_channels=channels, channels=hidden, **options)
        except ValueError as error:  # of a group normalisation, or of the attention
            raise ValueError(
                f"hidden={hidden}, growth={growth}, norm_groups={norm_groups} and dconv_comp={dconv_comp} do not fit "
                f"({error}); use a hidden that is a multiple of norm_groups and of 4 x dconv_comp"
            ) from None
        for encoder in self.network.time_encoder:
            if encoder.empty:  # a convolution whose normalisation is not used
                encoder.norm1.requires_grad_(False)

    def valid_length(self, length: int) -> int:
        """The smallest number of samples >= length that torchaudio's network accepts; it refuses very short ones."""
        # it reflects the end by 1.5 steps plus the rest of the last step, and can add less than one step of zeros
        while length < self.step // 2 * 3 + -length % self.step - (self.step - 2):
            length += 1
        return length

    def forward(self, mixture: Float[Tensor, "B C T"]) -> dict[str, Float[Tensor, "B S C T"]]:
        """The head `waveforms`."""
        length = mixture.shape[-1]
        padded = nn.functional.pad(mixture, (0, self.valid_length(length) - length))
        return {"waveforms": self.network(padded)[..., :length]}


def check_options(hidden: int, options: Mapping[str, Any]) -> None:
    """ValueError for values out of range that torchaudio's network would not refuse itself."""
    positive = ("growth", "depth", "time_stride", "emb_scale", "norm_groups", "dconv_depth", "dconv_comp")
    check_positive(hidden=hidden, **{name: options[name] for name in positive})
    for name in ("context", "context_enc", "freq_emb"):
        if options[name] < 0:
            raise ValueError(f"{name}={options[name]} must be at least 0")
    nfft, depth, stride, compression = (options[name] for name in ("nfft", "depth", "time_stride", "dconv_comp"))
    if nfft not in WINDOWS:
        raise ValueError(
            f"nfft={nfft} does not bring both branches to one rate; choose from {', '.join(map(str, WINDOWS))}"
        )
    if stride % 2:
        raise ValueError(f"time_stride={stride} must be even; use {stride + 1}")
    least = nfft.bit_length() // 2 - 1
    if depth < least:
        raise ValueError(f"depth={depth} does not bring nfft={nfft} down to one bin; use depth={least} or more")
    if compression > hidden:
        raise ValueError(f"dconv_comp={compression} leaves no channel of hidden={hidden}; use at most {hidden}")


@cache
def _network_class() -> Any:
    """torchaudio's network with the window of its STFT on the device, so that the host never waits for a copy."""
    from torchaudio.models import HDemucs as Network

    class OnDevice(Network):
        def __init__(self, *arguments: Any, **options: Any) -> None:
            super().__init__(*arguments, **options)
            self.register_buffer("window", torch.hann_window(self.nfft), persistent=False)

        def _spec(self, x: Tensor) -> Tensor:
            """(B, C, T) -> (B, C, nfft / 2, ceil(T / hop)) complex, without the highest bin."""
            count, before = ceil(x.shape[-1] / self.hop_length), self.hop_length // 2 * 3
            x = self._pad1d(x, before, before + count * self.hop_length - x.shape[-1], mode="reflect")
            window, flat = self.window.to(x.dtype), x.flatten(0, 1)
            z = torch.stft(flat, self.nfft, self.hop_length, window=window, normalized=True, return_complex=True)
            return z[:, :-1, 2 : 2 + count].unflatten(0, x.shape[:2])

        def _ispec(self, z: Tensor, length: int) -> Tensor:
            """(..., nfft / 2, N) complex -> (..., length)."""
            frames = torch.fft.irfft(nn.functional.pad(z, (2, 2, 0, 1)).flatten(0, -3).mT, norm="ortho")
            before = self.hop_length // 2 * 3
            x = weighted_overlap_add(frames, self.window.to(frames.dtype), self.hop_length, before + length)
            return x[:, before:].unflatten(0, z.shape[:-2])

    return OnDevice
