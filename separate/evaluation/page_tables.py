"""The tables of the page of an evaluation, with columns that sort."""

from __future__ import annotations

import html
import math
from collections.abc import Iterable, Mapping
from typing import TYPE_CHECKING, Any

from separate.evaluation import distributions, tables
from separate.files import printable

if TYPE_CHECKING:
    from separate.evaluation.results import Results

PORTRAIT = 5  # metrics that fit on a page in portrait
MOST_ROWS = 2000  # of the tables of tracks


def text(value: object) -> str:
    """Any value as text in HTML, also in an attribute; control characters become escapes."""
    shown = "".join(sign if sign.isprintable() else repr(sign)[1:-1] for sign in printable(str(value)))
    return html.escape(shown)


def score_table(summary: Mapping[str, Any]) -> str:
    """Mean and median of each method and source, with notes below."""
    metrics = summary["metrics"]
    groups = "".join(f'<th colspan="2" scope="colgroup">{text(directed(metric))}</th>' for metric in metrics.values())
    heads = "".join(
        head(number + 2, statistic, metrics[name]["higher_is_better"], tables.column_name(metrics[name], statistic))
        for number, (name, statistic) in enumerate(tables.columns(summary))
    )
    names = head(0, "method", rows=2) + head(1, "source", rows=2)
    body = "".join(
        f"<tr{' class=all' if line.source == 'all' else ''}>{name_cell(line.method)}{name_cell(line.source)}"
        + "".join(cell(one.value, one.best) for one in line.cells)
        + "</tr>"
        for line in tables.lines(summary)
    )
    notes = "".join(f"<li>{text(note)}</li>" for note in [*tables.notes(summary), *tables.bold(summary)])
    table = f"<table><thead><tr>{names}{groups}</tr><tr>{heads}</tr></thead><tbody>{body}</tbody></table>"
    kind = "wide" if len(metrics) > PORTRAIT else ""
    return f'{scroll("Scores", table, kind)}<ul class="notes">{notes}</ul>'


def silent_section(results: Results) -> Iterable[str]:
    """A table with the level of each estimate of a silent reference."""
    if not results.leaks:
        return
    levels = {(leak.track, leak.source, leak.method): leak.level for leak in results.leaks}
    heads = head(0, "track") + head(1, "source")
    heads += "".join(head(number + 2, method, False) for number, method in enumerate(results.methods))
    names = list(dict.fromkeys((leak.track, leak.source) for leak in results.leaks))
    body = "".join(
        f"<tr>{name_cell(track)}{name_cell(source)}"
        + "".join(cell(levels.get((track, source, method))) for method in results.methods)
        + "</tr>"
        for track, source in names[:MOST_ROWS]
    )
    yield "<h2>Silent references</h2>"
    yield (
        "<p>A silent reference has no scores. The level of its estimate, in dB relative to the mixture, is what leaked "
        "into it: lower is better, −∞ is silence.</p>"
    )
    yield scroll("Silent references", f"<table><thead><tr>{heads}</tr></thead><tbody>{body}</tbody></table>", "long")


def track_table(results: Results) -> str:
    """The scores of the evaluated method for each track and source."""
    method, metrics = tables.evaluated(results.methods), list(results.metrics)
    found: dict[tuple[str, str], dict[str, float]] = {}
    for row in results.rows:
        if row.method == method:
            found.setdefault((row.track, row.source), {})[row.metric] = row.score
    shown = list(found.items())[:MOST_ROWS]
    heads = head(0, "track") + head(1, "source")
    for number, metric in enumerate(results.metrics.values()):
        heads += head(number + 2, directed(metric.description), metric.higher_is_better, metric.aggregate)
    body = "".join(
        f"<tr>{name_cell(track)}{name_cell(source)}{''.join(cell(scores.get(name)) for name in metrics)}</tr>"
        for (track, source), scores in shown
    )
    missing = len(found) - len(shown)
    more = f'<p class="quiet">{missing} more rows are in scores.csv.</p>' if missing else ""
    table = f"<table><thead><tr>{heads}</tr></thead><tbody>{body}</tbody></table>"
    summary = f"<summary>Scores of the {text(method)} for {len(found)} tracks and sources</summary>"
    return f"<details>{summary}{scroll('Scores of every track', table, 'long')}{more}</details>"


def scroll(label: str, table: str, kind: str = "") -> str:
    """A table that scrolls sideways on a narrow screen, also by keyboard.

    kind: `long` for one that scrolls downwards too, `wide` for one in landscape on paper.
    """
    return f'<div class="scroll {kind}" tabindex="0" role="region" aria-label="{label}">{table}</div>'


def head(column: int, label: str, higher_is_better: bool | None = None, title: str = "", rows: int = 1) -> str:
    """The head of a column that sorts it, numbers the best first.  higher_is_better: None for a column of names."""
    kind = "text" if higher_is_better is None else "number"
    first = "descending" if higher_is_better else "ascending"
    span = ' rowspan="2"' if rows == 2 else ""
    name = ' class="name"' if kind == "text" else ""
    tip = f' title="{text(title)}"' if title else ""
    data = f'data-column="{column}" data-kind="{kind}" data-first="{first}"'
    return f'<th scope="col"{name}{span} {data}><button type="button"{tip}>{text(label)}</button></th>'


def name_cell(name: str) -> str:
    """The head of a row; a long name may break."""
    long = ' class="long"' if len(name) > 24 else ""
    return f'<th scope="row"{long}>{text(name)}</th>'


def cell(value: float | None, best: bool = False) -> str:
    """A score, with the number that it sorts by."""
    if value is None or math.isnan(value):
        return "<td>–</td>"
    number = {math.inf: "Infinity", -math.inf: "-Infinity"}.get(value, repr(float(value)))  # as JavaScript reads them
    return f'<td data-value="{number}"{" class=best" if best else ""}>{distributions.score(value)}</td>'


def directed(metric: Mapping[str, Any]) -> str:
    """The heading of a metric with an arrow to the better side."""
    return f"{tables.heading(metric)} {'↑' if metric['higher_is_better'] else '↓'}"
