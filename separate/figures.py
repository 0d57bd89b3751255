"""Pictures of a separation: spectrograms of what went in, of what should have come out and of what did, and masks."""

from __future__ import annotations

import logging
from typing import TYPE_CHECKING

import numpy as np
from matplotlib.figure import Figure

from separate.files import printable

if TYPE_CHECKING:
    from collections.abc import Sequence

    from torch import Tensor

    from separate.data.batch import Batch
    from separate.separator import Separation

logging.getLogger("matplotlib.font_manager").setLevel(logging.WARNING)  # not at INFO in our programs' output

RANGE = 70  # dB below the loudest bin of the mixture


def separation_figure(batch: Batch, separation: Separation, sources: Sequence[str], sample_rate: int) -> Figure:
    """The first example of a batch: a row for each source with its reference, its estimate and its mask.

    Channels are averaged; time in seconds, frequency in kHz, level in dB below the loudest bin of the mixture.
    """
    assert batch.stft is not None
    mixture = _decibels(batch.spectrogram[0])
    top = float(mixture.max())
    columns = [
        ("reference", _decibels(batch.source_spectrograms[0])),
        ("estimate", _decibels(batch.stft(separation.estimates[0]))),
    ]
    if (applied := separation.applied_masks) is not None:
        masks = applied[0].abs() if applied.is_complex() else applied[0]
        columns.append(("mask", masks.mean(dim=1).float().cpu().numpy()))
    seconds = batch.mixture.shape[-1] / sample_rate
    extent = (0.0, seconds, 0.0, sample_rate / 2000)

    figure = Figure(figsize=(4 * (len(columns) + 1), 2.4 * len(sources) + 0.6), layout="constrained")
    axes = figure.subplots(len(sources), len(columns) + 1, squeeze=False, sharex=True, sharey=True)
    level = {"origin": "lower", "aspect": "auto", "extent": extent, "vmin": top - RANGE, "vmax": top, "cmap": "magma"}
    share = {"origin": "lower", "aspect": "auto", "extent": extent, "vmin": 0, "vmax": 1, "cmap": "viridis"}
    shown = axes[0, 0].imshow(mixture, **level)
    axes[0, 0].set_title("mixture")
    for blank in axes[1:, 0]:
        blank.set_visible(False)
    axes[0, 0].tick_params(labelbottom=True)
    axes[0, 0].set(xlabel="seconds", ylabel="kHz")
    shares = None
    for row, source in enumerate(sources):
        for column, (what, pictures) in enumerate(columns, start=1):
            drawn = axes[row, column].imshow(pictures[row], **(share if what == "mask" else level))
            shares = drawn if what == "mask" else shares
            axes[row, column].set_title(printable(f"{source}: {what}"), parse_math=False)
        axes[row, 1].set_ylabel("kHz")
    for axis in axes[-1]:
        axis.set_xlabel("seconds")
    figure.colorbar(shown, ax=axes[:, -2 if shares else -1].tolist(), label="dB")
    if shares:
        figure.colorbar(shares, ax=axes[:, -1].tolist(), label="mask")
    return figure


def filters_figure(weight: Tensor, sample_rate: int) -> Figure:
    """The filters of a learned encoder, weight (N, C, L), in the order of their strongest frequency.

    The first channel of each, scaled to its own maximum; time in ms, frequency in kHz, level in dB below the peak.
    """
    filters = weight.detach().float().cpu().numpy()[:, 0]
    filters = filters / np.maximum(np.abs(filters).max(axis=1, keepdims=True), 1e-12)
    spectra = np.abs(np.fft.rfft(filters, n=max(256, filters.shape[1])))
    order = np.argsort(spectra.argmax(axis=1))
    spectra = 20 * np.log10(np.maximum(spectra / np.maximum(spectra.max(axis=1, keepdims=True), 1e-12), 1e-3))
    figure = Figure(figsize=(9, 4), layout="constrained")
    left, right = figure.subplots(1, 2)
    milliseconds = 1000 * filters.shape[1] / sample_rate
    shown = left.imshow(
        filters[order].T, origin="lower", aspect="auto", cmap="RdBu", vmin=-1, vmax=1,
        extent=(0, len(filters), 0, milliseconds),
    )  # fmt: skip
    left.set(xlabel="filter", ylabel="ms", title="learned filters")
    figure.colorbar(shown, ax=left)
    level = right.imshow(
        spectra[order].T, origin="lower", aspect="auto", cmap="magma", vmin=-40, vmax=0,
        extent=(0, len(filters), 0, sample_rate / 2000),
    )  # fmt: skip
    right.set(xlabel="filter", ylabel="kHz", title="their spectra")
    figure.colorbar(level, ax=right, label="dB")
    return figure


def _decibels(spectrogram) -> np.ndarray:  # type: ignore[no-untyped-def]
    """(..., C, F, N) complex -> (..., F, N) power over the channels in dB."""
    return (10 * spectrogram.abs().square().mean(dim=-3).clamp_min(1e-12).log10()).cpu().numpy()
