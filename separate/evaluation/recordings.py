"""Score whole recordings: the model, the mixture as each estimate, and the tPSA mask of the true sources."""

from __future__ import annotations

from collections.abc import Mapping
from copy import deepcopy
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import torch
from torch import Tensor
from tqdm import tqdm

from separate.data.batch import Batch
from separate.data.example import Examples
from separate.data.mixing.raw_batch import collate
from separate.errors import SeparateError, UsageError
from separate.evaluation.metrics import METRICS, Metric
from separate.evaluation.scores import arrange, score
from separate.process import release
from separate.separator import Separation, Separator
from separate.targets import tpsa

if TYPE_CHECKING:
    from matplotlib.figure import Figure

METHODS = ("model", "mixture as estimate", "tPSA mask")
PICTURE_SECONDS = 10  # of the first recording
Row = dict[str, "str | float"]


@dataclass
class Results:
    """Scores of an evaluation.

    rows: {track, source, method, metric: score ...} for each track, source and method; NaN for a source that is silent
    or the whole mixture.
    """

    sources: list[str]
    metrics: Mapping[str, Metric]
    rows: list[Row] = field(default_factory=list)
    picture: Figure | None = None  # of the first recording


def evaluate(
    separator: Separator, examples: Examples, chunk: float, overlap: float, metrics: Mapping[str, Metric] = METRICS
) -> Results:
    """Separate every recording as `separate-infer` does, and score it against its sources.

    chunk, overlap: in seconds.  UsageError for sources that do not fit the separator, SeparateError for estimates that
    are not finite.
    """
    _check_sources(separator, examples)
    stft = deepcopy(separator.stft).cpu()
    results = Results(examples.sources, metrics)
    for index in tqdm(range(examples.recordings), "evaluating", leave=False, disable=None):
        batch = collate([examples.recording(index)]).to(torch.device("cpu"), stft)
        separated = separator(batch.mixture[0], examples.sample_rate, chunk, overlap)
        estimates = torch.stack(list(separated.values())).unsqueeze(0)  # (1, S, C, T)
        if not estimates.isfinite().all():
            raise SeparateError(f"the network gives NaN or infinite samples for {batch.tracks[0]}; train it again")
        if separator.interchangeable:
            estimates = arrange(estimates, batch.sources)
        results.rows += _rows(batch, estimates, results)
        if index == 0:
            results.picture = _picture(batch, estimates, examples)
        release()
    return results


def _rows(batch: Batch, estimates: Tensor, results: Results) -> list[Row]:
    """The scores of one recording; estimates: (1, S, C, T) in the order of the sources."""
    mixture = batch.mixture.unsqueeze(1).expand_as(batch.sources)
    rows: list[Row] = []
    for method, signals in zip(METHODS, (estimates, mixture, tpsa_estimates(batch)), strict=True):
        scores = score(signals, batch.sources, batch.mixture, False, results.metrics)
        for number, source in enumerate(results.sources):
            values = {name: found[0, number].item() for name, found in scores.items()}
            rows.append({"track": batch.tracks[0], "source": source, "method": method, **values})
    return rows


def tpsa_estimates(batch: Batch) -> Tensor:
    """The estimates (B, S, C, T) of the tPSA mask of the true sources, tPSA / |Y|.

    Of all masks in [0, 1] it has the least squared error in each bin of the STFT.  Other masks can give better
    waveforms, because frames overlap and the errors of bins can cancel.
    """
    assert batch.stft is not None
    magnitude = batch.spectrogram.abs().clamp_min(1e-12).unsqueeze(1)
    masks = tpsa(batch.source_spectrograms, batch.spectrogram) / magnitude
    return Separation(batch, {"masks": masks}).estimates


def _check_sources(separator: Separator, examples: Examples) -> None:
    """UsageError unless the separator has the sources of the data, or at least as many if interchangeable."""
    if separator.interchangeable:
        fits = len(separator.sources) >= len(examples.sources)
    else:
        fits = separator.sources == examples.sources
    if not fits:
        raise UsageError(
            f"the separator gives {', '.join(separator.sources)} and the data has {', '.join(examples.sources)}; "
            f"set data.sources=[{','.join(separator.sources)}] or choose data with these"
        )


def _picture(batch: Batch, estimates: Tensor, examples: Examples) -> Figure:
    """Spectrograms of the first seconds of a recording.  estimates: (1, S, C, T)"""
    from separate.figures import separation_figure

    frames = min(batch.mixture.shape[-1], PICTURE_SECONDS * examples.sample_rate)
    cut = Batch(batch.mixture[..., :frames], batch.sources[..., :frames], batch.tracks, batch.stft)
    shown = Separation(cut, {"waveforms": estimates[..., :frames]})
    return separation_figure(cut, shown, examples.sources, examples.sample_rate)
