"""The page of an evaluation: one HTML file with tables, distributions, tracks to hear, and the configuration.

It holds everything it shows.  Its Content-Security-Policy forbids requests and foreign scripts, so that a name of a
track can do nothing but be read.
"""

from __future__ import annotations

import base64
import hashlib
import html
import io
import math
import statistics
from collections.abc import Iterable, Mapping, Sequence
from concurrent.futures import Executor, ThreadPoolExecutor
from importlib import resources
from typing import TYPE_CHECKING, Any

import numpy as np
import yaml

from separate.evaluation import distributions, tables
from separate.evaluation.excerpts import SECONDS, Excerpt, Listening, best_and_worst, data_uri, excerpt, sound
from separate.figures import RANGE, decibels, spectrogram_figure
from separate.files import printable
from separate.stft import STFT

if TYPE_CHECKING:
    from separate.evaluation.results import Results

PORTRAIT = 5  # metrics that fit on a page in portrait
TILES = 5  # large numbers at the top
HEARD = 2  # tracks of the best, and of the worst
MOST_ROWS = 2000  # of the table of tracks
WINDOW = 0.046  # seconds of a spectrogram
INK = "#7b7b7b"  # of the axes of pictures, with the same contrast on a light and a dark page
FORMAT = "webp"  # a third of the size of PNG for spectrograms
QUALITY = 82
DPI = 130
LEAST_TOP = -60.0  # dB: a silent mixture is dark
OWN = ("model", "estimates")  # methods that are evaluated, in contrast to the mixture and the oracles


def evaluated(methods: Sequence[str]) -> str:
    """The method that an evaluation is about."""
    return next((method for method in OWN if method in methods), methods[0])


def tracks_to_hear(results: Results) -> list[str]:
    """The two best and the two worst tracks, the best first, by the first metric's mean over the sources."""
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
    method, found = evaluated(results.methods), dict[str, list[float]]()
    for row in results.rows:
        if (row.method, row.metric) == (method, metric) and not math.isnan(row.score):
            found.setdefault(row.track, []).append(row.score)
    means = {track: statistics.fmean(scores) for track, scores in found.items()}
    return {track: mean for track, mean in means.items() if not math.isnan(mean)}  # inf and -inf give NaN


def page(results: Results, summary: Mapping[str, Any], listening: Sequence[Listening]) -> str:
    """The HTML page; listening: the recordings of `tracks_to_hear`, at full length."""
    style, script = (resources.files(__package__).joinpath(name).read_text("utf-8") for name in ("page.css", "page.js"))
    of = " of ".join(str(summary[key]) for key in ("split", "data") if summary.get(key)) or summary.get("estimates", "")
    title = f"Evaluation: {of}" if of else "Evaluation"
    sections = [
        f"<h1>{_text(title)}</h1>",
        _lead(results, summary),
        "<h2>Scores</h2>",
        _score_table(summary),
        *_silent(results),
        "<h2>Distribution over the tracks</h2>",
        _distributions(results),
        *_listening(results, listening),
        "<h2>Every track</h2>",
        _track_table(results),
        "<h2>What was evaluated</h2>",
        _facts(summary),
    ]
    policy = (
        f"default-src 'none'; img-src data:; media-src data:; style-src {_hash(style)}; script-src {_hash(script)}; "
        "base-uri 'none'; form-action 'none'"
    )
    return printable(
        f'<!doctype html>\n<html lang="en"><head><meta charset="utf-8">\n'
        f'<meta http-equiv="Content-Security-Policy" content="{policy}">\n'
        f'<meta name="viewport" content="width=device-width, initial-scale=1">\n'
        f'<link rel="icon" href="data:,"><title>{_text(title)}</title>\n<style>{style}</style></head>\n'
        f"<body><main>\n" + "\n".join(sections) + f"\n</main>\n<script>{script}</script></body></html>\n"
    )


def _hash(content: str) -> str:
    """The source of an inline style or script for a Content-Security-Policy."""
    return f"'sha256-{base64.b64encode(hashlib.sha256(content.encode()).digest()).decode()}'"


def _text(value: object) -> str:
    """Any value as text in HTML, also in an attribute; control characters become escapes."""
    shown = "".join(sign if sign.isprintable() else repr(sign)[1:-1] for sign in printable(str(value)))
    return html.escape(shown)


def _lead(results: Results, summary: Mapping[str, Any]) -> str:
    """The number of tracks and sources, and the median of the first metrics over all sources, in large type."""
    method = evaluated(results.methods)
    tiles = [("tracks", f"{summary['tracks']}", f"{len(results.sources)} sources: {', '.join(results.sources)}")]
    total = summary["scores"][method].get("all", {})
    for name, metric in summary["metrics"].items():
        if (median := total.get(name, {}).get("median")) is not None:
            value = f"{distributions.score(median)} {metric['unit']}"
            tiles.append((metric["label"], value, tables.column_name(metric, "median")))
    shown = "".join(
        f"<div><dt>{_text(label)}</dt><dd><strong>{_text(value)}</strong><br><small>{_text(below)}</small></dd></div>"
        for label, value, below in tiles[:TILES]
    )
    return f'<p class="quiet">{_text(method)}, all sources</p><dl class="tiles">{shown}</dl>'


def _silent(results: Results) -> Iterable[str]:
    """A table with the level of each estimate of a silent reference."""
    if not results.leaks:
        return
    levels = {(leak.track, leak.source, leak.method): leak.level for leak in results.leaks}
    heads = _head(0, "track") + _head(1, "source")
    heads += "".join(_head(number + 2, method, False) for number, method in enumerate(results.methods))
    names = list(dict.fromkeys((leak.track, leak.source) for leak in results.leaks))
    body = "".join(
        f"<tr>{_name(track)}{_name(source)}"
        + "".join(_cell(levels.get((track, source, method))) for method in results.methods)
        + "</tr>"
        for track, source in names[:MOST_ROWS]
    )
    yield "<h2>Silent references</h2>"
    yield (
        "<p>A silent reference has no scores. The level of its estimate, in dB relative to the mixture, is what leaked "
        "into it: lower is better, −∞ is silence.</p>"
    )
    yield _scroll("Silent references", f"<table><thead><tr>{heads}</tr></thead><tbody>{body}</tbody></table>", "long")


def _score_table(summary: Mapping[str, Any]) -> str:
    metrics = summary["metrics"]
    groups = "".join(f'<th colspan="2" scope="colgroup">{_text(_directed(metric))}</th>' for metric in metrics.values())
    heads = "".join(
        _head(number + 2, statistic, metrics[name]["higher_is_better"], tables.column_name(metrics[name], statistic))
        for number, (name, statistic) in enumerate(tables.columns(summary))
    )
    names = _head(0, "method", rows=2) + _head(1, "source", rows=2)
    body = "".join(
        f"<tr{' class=all' if line.source == 'all' else ''}>{_name(line.method)}{_name(line.source)}"
        + "".join(_cell(cell.value, cell.best) for cell in line.cells)
        + "</tr>"
        for line in tables.lines(summary)
    )
    notes = "".join(f"<li>{_text(note)}</li>" for note in [*tables.notes(summary), *tables.bold(summary)])
    table = f"<table><thead><tr>{names}{groups}</tr><tr>{heads}</tr></thead><tbody>{body}</tbody></table>"
    kind = "wide" if len(metrics) > PORTRAIT else ""
    return f'{_scroll("Scores", table, kind)}<ul class="notes">{notes}</ul>'


def _scroll(label: str, table: str, kind: str = "") -> str:
    """A table that scrolls sideways on a narrow screen, also by keyboard.

    kind: `long` for one that scrolls downwards too, `wide` for one in landscape on paper.
    """
    return f'<div class="scroll {kind}" tabindex="0" role="region" aria-label="{label}">{table}</div>'


def _head(column: int, label: str, higher_is_better: bool | None = None, title: str = "", rows: int = 1) -> str:
    """The head of a column that sorts it, numbers the best first.  higher_is_better: None for a column of names."""
    kind = "text" if higher_is_better is None else "number"
    first = "descending" if higher_is_better else "ascending"
    span = ' rowspan="2"' if rows == 2 else ""
    name = ' class="name"' if kind == "text" else ""
    tip = f' title="{_text(title)}"' if title else ""
    data = f'data-column="{column}" data-kind="{kind}" data-first="{first}"'
    return f'<th scope="col"{name}{span} {data}><button type="button"{tip}>{_text(label)}</button></th>'


def _name(name: str) -> str:
    long = ' class="long"' if len(name) > 24 else ""
    return f'<th scope="row"{long}>{_text(name)}</th>'


def _cell(value: float | None, best: bool = False) -> str:
    if value is None or math.isnan(value):
        return "<td>–</td>"
    number = {math.inf: "Infinity", -math.inf: "-Infinity"}.get(value, repr(float(value)))  # as JavaScript reads them
    return f'<td data-value="{number}"{" class=best" if best else ""}>{distributions.score(value)}</td>'


def _directed(metric: Mapping[str, Any]) -> str:
    return f"{tables.heading(metric)} {'↑' if metric['higher_is_better'] else '↓'}"


def _distributions(results: Results) -> str:
    """A group of panels for each metric, a panel for each source; the first two groups are open."""
    found: dict[tuple[str, str, str], dict[str, float]] = {}
    for row in results.rows:
        if not math.isnan(row.score):
            found.setdefault((row.metric, row.source, row.method), {})[row.track] = row.score
    groups = [
        "<p>A dot for each track, a bar at the median; triangles are scores beyond the axis. "
        "Point at a dot for its track.</p>"
    ]
    for number, (name, metric) in enumerate(results.metrics.items()):
        methods = [method for method in results.methods if any((name, s, method) in found for s in results.sources)]
        strips = {
            source: {method: found.get((name, source, method), {}) for method in methods} for source in results.sources
        }
        limits = distributions.limits([scores for one in strips.values() for scores in one.values()])
        panels = "".join(
            f"<figure><figcaption>{_text(source)}</figcaption>"
            f"{distributions.panel(one, limits, metric.heading, metric.unit, results.methods)}</figure>"
            for source, one in strips.items()
        )
        opened, wide = " open" if number < 2 else "", "three" if len(strips) % 3 == 0 or len(strips) > 4 else "two"
        title = _text(_directed(metric.description))
        if methods:
            groups.append(
                f'<details{opened}><summary>{title}</summary><div class="panels {wide}">{panels}</div></details>'
            )
    return "".join(groups)


def _listening(results: Results, listening: Sequence[Listening]) -> Iterable[str]:
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
    pictures = [_spectrogram(level - top, heard) for level in levels.values()]
    figures = [
        _signal(f"{heard.track}, {name}", name, picture, mp3)
        for name, picture, mp3 in zip(signals, pictures, sounds, strict=True)
    ]
    stop = one.start + heard.mixture.shape[-1] / heard.sample_rate
    gain = f"{20 * math.log10(one.gain):+.1f} dB".replace("-", "−")
    place = _place(results, heard.track)
    return (
        f'<article class="track"><h3>{_text(heard.track)}</h3>'
        f'<p class="quiet">{f"{_text(place)}; " if place else ""}{one.start:.1f} to {stop:.1f} s, gain {gain}</p>'
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
    method = evaluated(results.methods)
    found = {(r.metric, r.source): r.score for r in results.rows if (r.track, r.method) == (track, method)}
    heads = "".join(f'<th scope="col">{_text(source)}</th>' for source in results.sources)
    body = "".join(
        f"<tr>{_name(_directed(metric.description))}"
        + "".join(_cell(found.get((name, source))) for source in results.sources)
        + "</tr>"
        for name, metric in results.metrics.items()
    )
    head = f'<thead><tr><th class="name">{_text(method)}</th>{heads}</tr></thead>'
    return _scroll("Scores of this track", f"<table>{head}<tbody>{body}</tbody></table>", "long")


def _spectrogram(levels: np.ndarray, heard: Listening) -> str:
    """Levels (F, N) in dB as a picture in a data URI."""
    seconds = heard.mixture.shape[-1] / heard.sample_rate
    content = io.BytesIO()
    figure = spectrogram_figure(levels, 0.0, seconds, heard.sample_rate, INK)
    figure.savefig(content, format=FORMAT, dpi=DPI, pil_kwargs={"quality": QUALITY})
    return data_uri(f"image/{FORMAT}", content.getvalue())


def _signal(label: str, name: str, picture: str, mp3: bytes) -> str:
    """A spectrogram above a player."""
    return (
        f'<figure><figcaption>{_text(name)}</figcaption><img alt="Spectrogram of {_text(label)}" src="{picture}">'
        f'<audio controls preload="metadata" aria-label="{_text(label)}" src="{data_uri("audio/mpeg", mp3)}"></audio>'
        f"</figure>"
    )


def _track_table(results: Results) -> str:
    """The scores of the evaluated method for each track and source."""
    method, metrics = evaluated(results.methods), list(results.metrics)
    found: dict[tuple[str, str], dict[str, float]] = {}
    for row in results.rows:
        if row.method == method:
            found.setdefault((row.track, row.source), {})[row.metric] = row.score
    shown = list(found.items())[:MOST_ROWS]
    heads = _head(0, "track") + _head(1, "source")
    for number, metric in enumerate(results.metrics.values()):
        heads += _head(
            number + 2, _directed(metric.description), metric.higher_is_better, getattr(metric, "aggregate", "")
        )
    body = "".join(
        f"<tr>{_name(track)}{_name(source)}{''.join(_cell(scores.get(name)) for name in metrics)}</tr>"
        for (track, source), scores in shown
    )
    missing = len(found) - len(shown)
    more = f'<p class="quiet">{missing} more rows are in scores.csv.</p>' if missing else ""
    table = f"<table><thead><tr>{heads}</tr></thead><tbody>{body}</tbody></table>"
    summary = f"<summary>Scores of the {_text(method)} for {len(found)} tracks and sources</summary>"
    return f"<details>{summary}{_scroll('Scores of every track', table, 'long')}{more}</details>"


def _facts(summary: Mapping[str, Any]) -> str:
    """Everything else in the summary: single values as a list, the rest as YAML."""
    left_out = ("scores", "metrics", "tracks", "silent", "unscored")
    facts = {key: value for key, value in summary.items() if key not in left_out and value is not None}
    single = {key: value for key, value in facts.items() if not isinstance(value, (dict, list))}
    listed = "".join(f"<dt>{_text(key)}</dt><dd>{_text(value)}</dd>" for key, value in single.items())
    blocks = "".join(
        f"<details><summary>{_text(key)}</summary><pre>{_lines(_yaml(value))}</pre></details>"
        for key, value in facts.items()
        if key not in single
    )
    return f"<dl>{listed}</dl>{blocks}"


def _yaml(value: object) -> str:
    try:
        return yaml.safe_dump(value, sort_keys=False, allow_unicode=True)
    except yaml.YAMLError:  # some other object
        return str(value)


def _lines(block: str) -> str:
    return "\n".join(map(_text, block.splitlines()))
