"""Distributions of scores as SVG: a panel for each source, a strip for each method, a dot for each track."""

from __future__ import annotations

import html
import math
import statistics
from collections.abc import Mapping, Sequence

from matplotlib.ticker import MaxNLocator

from separate.files import printable

WIDTH, LEFT, RIGHT, TOP, STRIP, AXIS = 380, 130, 14, 6, 24, 34  # of a panel, in units of the SVG
MOST = 300  # dots in a strip; of more tracks, evenly spaced ranks
TAIL = 0.02  # of the scores at either end may lie beyond the axis, if they are far away
FAR = 1.0  # spans of the other scores from which a tail is far away

Scores = Mapping[str, float]  # {track: score}


def panel(
    strips: Mapping[str, Scores], limits: tuple[float, float], quantity: str, unit: str, methods: Sequence[str]
) -> str:
    """An SVG with a strip for each method {method: {track: score}}; a bar at the median, triangles beyond the axis.

    limits: of the axis; methods: of all panels, which have the same colours everywhere, classes of the page's CSS.
    Each dot has its track and score as a title.
    """
    low, high = limits
    height = TOP + STRIP * len(strips) + AXIS
    floor = height - AXIS
    scale = (WIDTH - LEFT - RIGHT) / (high - low)
    medians = {method: statistics.median(found.values()) for method, found in strips.items() if found}
    spoken = "; ".join(f"{method} {score(median)} {unit}" for method, median in medians.items())
    parts = [
        f'<svg viewBox="0 0 {WIDTH} {height}" role="img" '
        f'aria-label="{html.escape(printable(f"{quantity}, medians: {spoken}"))}">'
    ]
    for tick in _ticks(low, high):
        x = LEFT + (tick - low) * scale
        kind = "zero" if tick == 0 else "grid"
        parts.append(f'<path class="{kind}" d="M{x:.1f} {TOP}V{floor}"/>')
        parts.append(f'<text class="tick" x="{x:.1f}" y="{floor + 14}">{tick:g}</text>'.replace(">-", ">−"))
    middle = LEFT + (WIDTH - LEFT - RIGHT) / 2
    parts.append(f'<text class="tick" x="{middle:.0f}" y="{floor + 29}">{html.escape(printable(quantity))}</text>')
    for number, (method, found) in enumerate(strips.items()):
        y = TOP + STRIP * (number + 0.5)
        parts.append(f'<text class="method" x="{LEFT - 10}" y="{y + 4:.0f}">{html.escape(method)}</text>')
        parts.append(f'<g class="m{methods.index(method) % 6}">')
        parts += [_dot(track, value, index, y, limits, unit) for index, (track, value) in enumerate(_thinned(found))]
        if method in medians and low <= (median := medians[method]) <= high:
            x = LEFT + (median - low) * scale
            title = f"<title>median: {score(median)} {html.escape(unit)}</title>"
            parts.append(f'<path class="median" d="M{x:.1f} {y - 10:.1f}v20">{title}</path>')
        parts.append("</g>")
    return "".join([*parts, "</svg>"])


def limits(strips: Sequence[Scores]) -> tuple[float, float]:
    """The range of an axis for all scores, without a far tail (see `TAIL` and `FAR`)."""
    values = sorted(value for found in strips for value in found.values() if math.isfinite(value))
    if not values:
        return -1.0, 1.0
    tail = math.floor(TAIL * len(values))
    low, high = values[tail], values[-1 - tail]
    span = high - low
    low = values[0] if low - values[0] <= FAR * span else low
    high = values[-1] if values[-1] - high <= FAR * span else high
    margin = 0.05 * (high - low) or 0.05 * abs(high) or 1.0
    return low - margin, high + margin


def score(value: float) -> str:
    """Two decimals with a minus sign."""
    return f"{value:.2f}".replace("-", "−").replace("inf", "∞")


def _ticks(low: float, high: float) -> list[float]:
    return [
        float(tick) for tick in MaxNLocator(nbins=6, steps=[1, 2, 5, 10]).tick_values(low, high) if low <= tick <= high
    ]


def _thinned(found: Scores) -> list[tuple[str, float]]:
    """All scores, or `MOST` of them at evenly spaced ranks with both ends."""
    ranked = sorted(found.items(), key=lambda item: item[1])
    if len(ranked) <= MOST:
        return ranked
    return [ranked[round(i * (len(ranked) - 1) / (MOST - 1))] for i in range(MOST)]


def _dot(track: str, value: float, index: int, y: float, limits: tuple[float, float], unit: str) -> str:
    """A dot, moved up or down so that it covers few others; a triangle at the edge for a score beyond the axis."""
    low, high = limits
    y += STRIP * 0.55 * ((7 * index % 11) / 10 - 0.5)
    title = f"<title>{html.escape(printable(track))}: {score(value)} {html.escape(unit)}</title>"
    if low <= value <= high:
        x = LEFT + (value - low) / (high - low) * (WIDTH - LEFT - RIGHT)
        return f'<circle cx="{x:.1f}" cy="{y:.1f}" r="2.6">{title}</circle>'
    x, side = (LEFT - 5, -6) if value < low else (WIDTH - RIGHT + 5, 6)
    return f'<path class="beyond" d="M{x} {y - 3.5:.1f}v7l{side} -3.5z">{title}</path>'
