"""Losses: each maps a separation and its batch to a scalar, and to named parts for the log."""

from separate.losses.base import Loss, PairedLoss
from separate.losses.clustering import AttractorLoss, ClusteringLoss
from separate.losses.mixit import MixITLoss
from separate.losses.spectral import SpectralLoss
from separate.losses.waveform import MultiResolutionSTFTLoss, SampleLoss, SDSDRLoss, SISDRLoss, SNRLoss, WaveformLoss
from separate.losses.weighted import WeightedSum

__all__ = [
    "AttractorLoss",
    "ClusteringLoss",
    "Loss",
    "MixITLoss",
    "MultiResolutionSTFTLoss",
    "PairedLoss",
    "SDSDRLoss",
    "SISDRLoss",
    "SNRLoss",
    "SampleLoss",
    "SpectralLoss",
    "WaveformLoss",
    "WeightedSum",
]
