"""What a training minimises: each loss maps (Separation, Batch) to a scalar and its named parts."""

from separate.losses.base import Loss
from separate.losses.spectral import SpectralLoss
from separate.losses.waveform import SISDRLoss

__all__ = ["Loss", "SISDRLoss", "SpectralLoss"]
