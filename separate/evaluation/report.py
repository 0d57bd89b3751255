"""The page of an evaluation: one HTML file with tables, distributions, tracks to hear, and the configuration.

It holds everything it shows.  Its Content-Security-Policy forbids requests and foreign scripts, so that a name of a
track can do nothing but be read.
"""

from __future__ import annotations

import base64
import hashlib
import math
from collections.abc import Mapping, Sequence
from importlib import resources
from typing import TYPE_CHECKING, Any

import yaml

from separate.evaluation import distributions, tables
from separate.evaluation.excerpts import Listening
from separate.evaluation.page_tables import directed, score_table, silent_section, text, track_table
from separate.evaluation.page_tracks import listening_section, tracks_to_hear
from separate.files import printable

if TYPE_CHECKING:
    from separate.evaluation.results import Results

__all__ = ["Listening", "page", "tracks_to_hear"]

TILES = 5  # large numbers at the top


def page(results: Results, summary: Mapping[str, Any], listening: Sequence[Listening]) -> str:
    """The HTML page; listening: the recordings of `tracks_to_hear`, at full length."""
    style, script = (resources.files(__package__).joinpath(name).read_text("utf-8") for name in ("page.css", "page.js"))
    of = " of ".join(str(summary[key]) for key in ("split", "data") if summary.get(key)) or summary.get("estimates", "")
    title = f"Evaluation: {of}" if of else "Evaluation"
    sections = [
        f"<h1>{text(title)}</h1>",
        _lead(results, summary),
        "<h2>Scores</h2>",
        score_table(summary),
        *silent_section(results),
        "<h2>Distribution over the tracks</h2>",
        _distributions(results),
        *listening_section(results, listening),
        "<h2>Every track</h2>",
        track_table(results),
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
        f'<link rel="icon" href="data:,"><title>{text(title)}</title>\n<style>{style}</style></head>\n'
        f"<body><main>\n" + "\n".join(sections) + f"\n</main>\n<script>{script}</script></body></html>\n"
    )


def _hash(content: str) -> str:
    """The source of an inline style or script for a Content-Security-Policy."""
    return f"'sha256-{base64.b64encode(hashlib.sha256(content.encode()).digest()).decode()}'"


def _lead(results: Results, summary: Mapping[str, Any]) -> str:
    """The number of tracks and sources, and the median of the first metrics over all sources, in large type."""
    method = tables.evaluated(results.methods)
    tiles = [("tracks", f"{summary['tracks']}", f"{len(results.sources)} sources: {', '.join(results.sources)}")]
    total = summary["scores"][method].get("all", {})
    for name, metric in summary["metrics"].items():
        if (median := total.get(name, {}).get("median")) is not None:
            value = f"{distributions.score(median)} {metric['unit']}"
            tiles.append((metric["label"], value, tables.column_name(metric, "median")))
    shown = "".join(
        f"<div><dt>{text(label)}</dt><dd><strong>{text(value)}</strong><br><small>{text(below)}</small></dd></div>"
        for label, value, below in tiles[:TILES]
    )
    return f'<p class="quiet">{text(method)}, all sources</p><dl class="tiles">{shown}</dl>'


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
            f"<figure><figcaption>{text(source)}</figcaption>"
            f"{distributions.panel(one, limits, metric.heading, metric.unit, results.methods)}</figure>"
            for source, one in strips.items()
        )
        opened, wide = " open" if number < 2 else "", "three" if len(strips) % 3 == 0 or len(strips) > 4 else "two"
        title = text(directed(metric.description))
        if methods:
            groups.append(
                f'<details{opened}><summary>{title}</summary><div class="panels {wide}">{panels}</div></details>'
            )
    return "".join(groups)


def _facts(summary: Mapping[str, Any]) -> str:
    """Everything else in the summary: single values as a list, the rest as YAML."""
    left_out = ("scores", "metrics", "tracks", "silent", "unscored")
    facts = {key: value for key, value in summary.items() if key not in left_out and value is not None}
    single = {key: value for key, value in facts.items() if not isinstance(value, (dict, list))}
    listed = "".join(f"<dt>{text(key)}</dt><dd>{text(value)}</dd>" for key, value in single.items())
    blocks = "".join(
        f"<details><summary>{text(key)}</summary><pre>{_lines(_yaml(value))}</pre></details>"
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
    return "\n".join(map(text, block.splitlines()))
