"""Figures of a separation: spectrograms of mixture, references and estimates, masks, and learned filters."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, BinaryIO

import numpy as np
from matplotlib.figure import Figure

from separate.files import printable

if TYPE_CHECKING:
    from torch import Tensor

    from separate.data.batch import Batch
    from separate.separator import Separation, Separator

logging.getLogger("matplotlib.font_manager").setLevel(logging.WARNING)  # no INFO messages of matplotlib in the output

RANGE = 70  # dB below the loudest bin of the mixture


@dataclass
class SeparatedExamples:
    """A separator and its separations of the first validation examples, each a batch of one.

    sources: names of the references, in the order of the estimates.
    """

    separator: Separator
    examples: list[Separation]
    sources: Sequence[str]


FigureFunction = Callable[[SeparatedExamples], Iterator[tuple[str, Figure]]]  # yields (tag in TensorBoard, figure)


def learned_filters(separated: SeparatedExamples) -> Iterator[tuple[str, Figure]]:
    """The filters of each learned encoder of the network."""
    from separate.models.filterbank import Encoder

    for name, part in separated.separator.network.named_modules():
        if isinstance(part, Encoder):
            yield f"filters/{name}", filters_figure(part.weight, separated.separator.sample_rate)


def spectrograms(separated: SeparatedExamples) -> Iterator[tuple[str, Figure]]:
    """Spectrograms and masks of each example."""
    for index, separation in enumerate(separated.examples):
        rate = separated.separator.sample_rate
        yield f"example_{index}", separation_figure(separation.batch, separation, separated.sources, rate)


def embeddings(separated: SeparatedExamples) -> Iterator[tuple[str, Figure]]:
    """The embeddings of each example on their two principal axes, for networks with embeddings."""
    for index, separation in enumerate(separated.examples):
        if "embeddings" in separation.heads:
            yield f"embeddings_{index}", embeddings_figure(separation, separated.sources)


FIGURES: tuple[FigureFunction, ...] = (learned_filters, spectrograms, embeddings)  # drawn in every run


def load_figures(names: Sequence[str], trust: Sequence[str] | None = None) -> list[FigureFunction]:
    """`FIGURES` and the user's own figures.

    names: dotted names of their functions; trust: as in `instantiate.build`.
    """
    from separate.instantiate import build

    return [*FIGURES, *(build({"_target_": name, "_partial_": True}, "logger.figures", trust) for name in names)]


def separation_figure(batch: Batch, separation: Separation, sources: Sequence[str], sample_rate: int) -> Figure:
    """Plot the first example of a batch: the mixture, and a row for each source with reference, estimate and mask.

    Mean over the channels; time in seconds, frequency in kHz, level in dB, down to 70 dB below the loudest bin of the
    mixture.
    """
    assert batch.stft is not None
    mixture = decibels(batch.spectrogram[0])
    top = float(mixture.max())
    columns = [
        ("reference", decibels(batch.source_spectrograms[0])),
        ("estimate", decibels(batch.stft(separation.estimates[0]))),
    ]
    if (applied := separation.applied_masks) is not None:
        masks = applied[0].abs() if applied.is_complex() else applied[0]
        columns.append(("mask", masks.mean(dim=1).float().cpu().numpy()))
    seconds = batch.mixture.shape[-1] / sample_rate
    extent = (0.0, seconds, 0.0, sample_rate / 2000)

    figure = Figure(figsize=(4 * (len(columns) + 1), 2.4 * len(sources) + 0.6), layout="constrained")
    axes = figure.subplots(len(sources), len(columns) + 1, squeeze=False, sharex=True, sharey=True)
    level = {"origin": "lower", "aspect": "auto", "extent": extent, "vmin": top - RANGE, "vmax": top, "cmap": "magma"}
    unit = {"origin": "lower", "aspect": "auto", "extent": extent, "vmin": 0, "vmax": 1, "cmap": "viridis"}
    shown = axes[0, 0].imshow(mixture, **level)
    axes[0, 0].set_title("mixture")
    for blank in axes[1:, 0]:
        blank.set_visible(False)
    axes[0, 0].tick_params(labelbottom=True)
    axes[0, 0].set(xlabel="seconds", ylabel="kHz")
    mask_image = None
    for row, source in enumerate(sources):
        for column, (title, images) in enumerate(columns, start=1):
            drawn = axes[row, column].imshow(images[row], **(unit if title == "mask" else level))
            mask_image = drawn if title == "mask" else mask_image
            axes[row, column].set_title(printable(f"{source}: {title}"), parse_math=False)
        axes[row, 1].set_ylabel("kHz")
    for axis in axes[-1]:
        axis.set_xlabel("seconds")
    figure.colorbar(shown, ax=axes[:, -2 if mask_image else -1].tolist(), label="dB")
    if mask_image:
        figure.colorbar(mask_image, ax=axes[:, -1].tolist(), label="mask")
    return figure


class SpectrogramPlot:
    """A plot of levels in dB over time and frequency, on a scale of 70 dB below `top`, for signals of one length.

    The axes are laid out once, which takes most of the time of a figure.  seconds: length of the signals; ink: colour
    of axes and text, on a transparent ground.
    """

    def __init__(self, top: float, seconds: float, sample_rate: int, ink: str = "black") -> None:
        self.figure = Figure(figsize=(5.2, 2.3), layout="constrained", facecolor="none")
        axes = self.figure.subplots()
        extent = (0.0, seconds, 0.0, sample_rate / 2000)
        self.image = axes.imshow(
            np.full((2, 2), top), origin="lower", aspect="auto", extent=extent, vmin=top - RANGE, vmax=top, cmap="magma"
        )
        axes.set_xlabel("seconds", color=ink)
        axes.set_ylabel("kHz", color=ink)
        bar = self.figure.colorbar(self.image, ax=axes, pad=0.01)
        bar.set_label("dB", color=ink)
        for axis in (axes, bar.ax):
            axis.tick_params(color=ink, labelcolor=ink)
            axis.spines[:].set_color(ink)
        self.figure.draw_without_rendering()
        self.figure.set_layout_engine("none")

    def write(self, levels: np.ndarray, file: BinaryIO, **options: Any) -> None:
        """Draw levels (F, N) into a file.  options: of `Figure.savefig`."""
        self.image.set_data(levels)
        self.figure.savefig(file, **options)


def embeddings_figure(separation: Separation, sources: Sequence[str]) -> Figure:
    """Plot the embeddings of the first example on their two principal axes, coloured by the loudest source of the bin.

    Only bins within 40 dB of the loudest bin of the mixture, at most 4000 of them.
    """
    points = separation.embeddings[0].float()  # (F, N, D)
    level = separation.batch.spectrogram[0].abs().square().mean(dim=0)
    loudest = separation.batch.source_spectrograms[0].abs().square().mean(dim=1).argmax(dim=0)  # (F, N)
    audible = (level > 1e-4 * level.max()).flatten().nonzero().flatten()
    audible = audible[:: max(1, len(audible) // 4000)]
    owners = loudest.flatten()[audible].cpu().numpy()
    cloud = points.flatten(0, 1)[audible].cpu().numpy()
    cloud = cloud - cloud.mean(axis=0)
    _, spread, axes = np.linalg.svd(cloud, full_matrices=False)
    plane = cloud @ axes[:2].T
    share = float((spread[:2] ** 2).sum() / max((spread**2).sum(), 1e-30))
    figure = Figure(figsize=(5, 4.5), layout="constrained")
    axis = figure.subplots()
    for number, source in enumerate(sources):
        own = plane[owners == number]
        axis.plot(own[:, 0], own[:, 1], ".", markersize=3, alpha=0.4, label=printable(source))
    axis.set(xlabel="first principal axis", ylabel="second principal axis")
    axis.set_title(f"embeddings, {share:.0%} of their variance", parse_math=False)
    axis.set_aspect("equal", adjustable="datalim")
    axis.legend(markerscale=3, loc="upper right")
    return figure


def filters_figure(weight: Tensor, sample_rate: int) -> Figure:
    """Plot the filters of a learned encoder, weight (N, C, L), sorted by peak frequency.

    The first channel of each filter, scaled to a peak of 1; time in ms, frequency in kHz, level in dB below the
    peak.
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
    right.set(xlabel="filter", ylabel="kHz", title="spectra")
    figure.colorbar(level, ax=right, label="dB")
    return figure


def decibels(spectrogram: Tensor) -> np.ndarray:
    """(..., C, F, N) complex -> (..., F, N), mean power of the channels in dB."""
    return (10 * spectrogram.abs().square().mean(dim=-3).clamp_min(1e-12).log10()).cpu().numpy()
