"""What a training minimises: each loss maps (Separation, Batch) to a scalar and its named parts."""

from separate.losses.base import Loss, PairedLoss
from separate.losses.clustering import AttractorLoss, ClusteringLoss
from separate.losses.mixit import MixITLoss
from separate.losses.spectral import SpectralLoss
from separate.losses.waveform import MultiResolutionSTFTLoss, SDSDRLoss, SISDRLoss, SNRLoss, WaveformLoss
from separate.losses.weighted import LOSSES, WeightedSum

__all__ = [
    "LOSSES",
    "AttractorLoss",
    "ClusteringLoss",
    "Loss",
    "MixITLoss",
    "MultiResolutionSTFTLoss",
    "PairedLoss",
    "SDSDRLoss",
    "SISDRLoss",
    "SNRLoss",
    "SpectralLoss",
    "WaveformLoss",
    "WeightedSum",
]
