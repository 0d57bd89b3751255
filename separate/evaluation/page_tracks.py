"""The best and worst tracks on the page of an evaluation: spectrograms and players."""

from __future__ import annotations

import io
import math
import statistics
from collections.abc import Iterable, Sequence
from concurrent.futures import Executor, ThreadPoolExecutor
from typing import TYPE_CHECKING

import numpy as np

from separate.evaluation import distributions, tables
from separate.evaluation.excerpts import SECONDS, Excerpt, Listening, best_and_worst, data_uri, excerpt, sound
from separate.evaluation.page_tables import cell, directed, name_cell, scroll, text
from separate.figures import RANGE, SpectrogramPlot, decibels
from separate.stft import STFT

if TYPE_CHECKING:
    from separate.evaluation.results import Results

HEARD = 2  # tracks of the best, and of the worst
WINDOW = 0.046  # seconds of a spectrogram
INK = "#7b7b7b"  # of the axes of pictures, with the same contrast on a light and a dark page
FORMAT = "webp"  # a third of the size of PNG for spectrograms
QUALITY = 82
DPI = 130
LEAST_TOP = -60.0  # dB: a silent mixture is dark


def tracks_to_hear(results: Results) -> list[str]:
    """The two best and the two worst tracks, the best first, by the mean of SI-SDR, or of the first metric."""
    metric = _ranking(results)
    if metric is None:
        return results.tracks[: 2 * HEARD]
    means = _track_means(results, metric)
    return list(best_and_worst(means, results.metrics[metric].higher_is_better, HEARD))


def _ranking(results: Results) -> str | None:
    """SI-SDR or else the first metric with a score for some track."""
    for metric in sorted(results.metrics, key=lambda name: name != "si_sdr"):
        if _track_means(results, metric):
            return metric
    return None


def _track_means(results: Results, metric: str) -> dict[str, float]:
    """{track: mean score over the sources} of the evaluated method, without tracks that have no score."""
    method, found = tables.evaluated(results.methods), dict[str, list[float]]()
    for row in results.rows:
        if (row.method, row.metric) == (method, metric) and not math.isnan(row.score):
            found.setdefault(row.track, []).append(row.score)
    means = {track: statistics.fmean(scores) for track, scores in found.items()}
    return {track: mean for track, mean in means.items() if not math.isnan(mean)}  # inf and -inf give NaN


def listening_section(results: Results, listening: Sequence[Listening]) -> Iterable[str]:
    """A heading, and a card for each track; nothing without any."""
    if not listening:
        return
    with ThreadPoolExecutor() as pool:
        cards = [_track(results, excerpt(one), pool) for one in listening]
    size = sum(map(len, cards)) / 1e6
    yield "<h2>Best and worst tracks</h2>"
    yield (
        f"<p>The {SECONDS:g} s of each track in which all sources are loudest, as MP3 with one gain for all sounds of "
        f"the track; sounds and pictures take {size:.1f} MB of this file. Spectrograms: dB relative to the loudest bin "
        f"of the mixture, down to −{RANGE} dB.</p>"
        '<p class="screen quiet">Start another sound while one plays, and it goes on at the same place.</p>'
    )
    yield from cards


def _track(results: Results, one: Excerpt, pool: Executor) -> str:
    """Scores of a track, and spectrograms and players of its mixture, references and estimates."""
    heard = one.heard
    signals = {"mixture": heard.mixture}
    for source in heard.references:
        signals[f"{source}: reference"] = heard.references[source]
        if source in heard.estimates:
            signals[f"{source}: estimate"] = heard.estimates[source]
    sounds = pool.map(lambda signal: sound(signal, heard.sample_rate, one.gain), signals.values())
    length = max(16, 2 ** round(math.log2(WINDOW * heard.sample_rate)))
    stft = STFT(length, length // 2)
    levels = {name: decibels(stft(signal)) for name, signal in signals.items()}
    top = max(float(levels["mixture"].max()), LEAST_TOP)
    plot = SpectrogramPlot(0.0, heard.mixture.shape[-1] / heard.sample_rate, heard.sample_rate, INK)
    pictures = [_picture(plot, level - top) for level in levels.values()]
    figures = [
        _signal(f"{heard.track}, {name}", name, picture, mp3)
        for name, picture, mp3 in zip(signals, pictures, sounds, strict=True)
    ]
    stop = one.start + heard.mixture.shape[-1] / heard.sample_rate
    gain = f"{20 * math.log10(one.gain):+.1f} dB".replace("-", "−")
    place = _place(results, heard.track)
    return (
        f'<article class="track"><h3>{text(heard.track)}</h3>'
        f'<p class="quiet">{f"{text(place)}; " if place else ""}{one.start:.1f} to {stop:.1f} s, gain {gain}</p>'
        f'<div class="signals">{figures[0]}{_scores_of(results, heard.track)}{"".join(figures[1:])}</div></article>'
    )


def _place(results: Results, track: str) -> str:
    """The rank of a track in words."""
    metric = _ranking(results)
    means = _track_means(results, metric) if metric else {}
    if metric is None or track not in means:
        return ""
    ranked = sorted(means.values(), reverse=results.metrics[metric].higher_is_better)
    found = results.metrics[metric]
    value = f"{distributions.score(means[track])} {found.unit}".strip()
    return (
        f"place {ranked.index(means[track]) + 1} of {len(ranked)} by {found.label}, {value} on average of its sources"
    )


def _scores_of(results: Results, track: str) -> str:
    """A table of the scores of a track: a row for each metric, a column for each source."""
    method = tables.evaluated(results.methods)
    found = {(r.metric, r.source): r.score for r in results.rows if (r.track, r.method) == (track, method)}
    heads = "".join(f'<th scope="col">{text(source)}</th>' for source in results.sources)
    body = "".join(
        f"<tr>{name_cell(directed(metric.description))}"
        + "".join(cell(found.get((name, source))) for source in results.sources)
        + "</tr>"
        for name, metric in results.metrics.items()
    )
    head = f'<thead><tr><th class="name">{text(method)}</th>{heads}</tr></thead>'
    return scroll("Scores of this track", f"<table>{head}<tbody>{body}</tbody></table>", "long")


def _picture(plot: SpectrogramPlot, levels: np.ndarray) -> str:
    """Levels (F, N) in dB as a picture in a data URI."""
    content = io.BytesIO()
    plot.write(levels, content, format=FORMAT, dpi=DPI, pil_kwargs={"quality": QUALITY, "method": 1})
    return data_uri(f"image/{FORMAT}", content.getvalue())


def _signal(label: str, name: str, picture: str, mp3: bytes) -> str:
    """A spectrogram above a player."""
    return (
        f'<figure><figcaption>{text(name)}</figcaption><img alt="Spectrogram of {text(label)}" src="{picture}">'
        f'<audio controls preload="metadata" aria-label="{text(label)}" src="{data_uri("audio/mpeg", mp3)}"></audio>'
        f"</figure>"
    )
