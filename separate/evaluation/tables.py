"""The table of an evaluation for the terminal, Markdown and LaTeX: a row for each method and source.

A summary has, as `results.summarise` gives it, tracks, metrics {name: {label, unit, higher_is_better, aggregate}} and
scores {method: {source or all: {metric: {mean, median}}}}; silent references are in `silent` (see `silent_lines`).
"""

from __future__ import annotations

import math
import shutil
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from separate.files import printable

Summary = Mapping[str, Any]
STATISTICS = ("mean", "median")
ORACLES = ("IBM", "IRM", "tPSA mask")  # masks of the true sources; no separator reaches them, so none is marked best
OWN = ("model", "estimates")  # methods that an evaluation is about
ABSENT = "-"
LATEX = {
    "\\": r"\textbackslash{}", "{": r"\{", "}": r"\}", "$": r"\$", "&": r"\&", "#": r"\#", "_": r"\_", "%": r"\%",
    "~": r"\textasciitilde{}", "^": r"\textasciicircum{}", "<": r"\textless{}", ">": r"\textgreater{}",
    "|": r"\textbar{}", '"': "''", "`": r"\textasciigrave{}",
}  # fmt: skip
MARKDOWN = {sign: "\\" + sign for sign in r"\`*_[]<>|~&$"}


def evaluated(methods: Sequence[str]) -> str:
    """The method that an evaluation is about."""
    return next((method for method in OWN if method in methods), methods[0])


@dataclass(frozen=True)
class Cell:
    """A score, None where it is undefined, and whether it is the best of its source among all but the oracles."""

    value: float | None
    best: bool = False


@dataclass(frozen=True)
class Line:
    """The scores of a method for a source, in the order of `columns`."""

    method: str
    source: str
    cells: list[Cell]


def columns(summary: Summary) -> list[tuple[str, str]]:
    """(metric, statistic) of each column."""
    return [(metric, statistic) for metric in summary["metrics"] for statistic in STATISTICS]


def lines(summary: Summary) -> Iterator[Line]:
    """The rows of the table; two scores that round to the same number are both the best."""
    heads = columns(summary)
    best = {
        (source, column): _best(summary, source, *column)
        for source in dict.fromkeys(source for found in summary["scores"].values() for source in found)
        for column in heads
    }
    for method, sources in summary["scores"].items():
        for source, found in sources.items():
            cells = []
            for metric, statistic in heads:
                value, top = found[metric][statistic], best[source, (metric, statistic)]
                is_best = method not in ORACLES and value is not None and top == rounded(value)
                cells.append(Cell(value, is_best))
            yield Line(method, source, cells)


def _best(summary: Summary, source: str, metric: str, statistic: str) -> str | None:
    """The best score of a source as it is printed; None for a single method, or without any score."""
    values = [
        found[source][metric][statistic]
        for method, found in summary["scores"].items()
        if method not in ORACLES and source in found
    ]
    known = [value for value in values if value is not None]
    if len(known) < 2:
        return None
    return rounded(max(known) if summary["metrics"][metric]["higher_is_better"] else min(known))


def rounded(value: float | None) -> str:
    """Two decimals; `-` without a value."""
    if value is None or math.isnan(value):
        return ABSENT
    return f"{value:.2f}" if abs(value) < 1e6 else f"{value:.3g}"


def heading(metric: Mapping[str, Any]) -> str:
    """The label with its unit, e.g. "SI-SDR, dB"."""
    return ", ".join(filter(None, (metric["label"], metric["unit"])))


def column_name(metric: Mapping[str, Any], statistic: str) -> str:
    """What a column holds, e.g. "median over tracks of median over frames"."""
    return " of ".join(filter(None, (f"{statistic} over tracks", metric.get("aggregate", ""))))


def notes(summary: Summary) -> list[str]:
    """Sentences below the table: what the columns and rows aggregate, and the silent references."""
    return [*_aggregates(summary), *silent_lines(summary), *_undefined(summary)]


def _aggregates(summary: Summary) -> Iterator[str]:
    by_aggregate: dict[str, list[str]] = {}
    for metric in summary["metrics"].values():
        by_aggregate.setdefault(metric.get("aggregate", ""), []).append(metric["label"])
    for aggregate, labels in by_aggregate.items():
        inner = f"of the {aggregate}" if aggregate else "of one score for each track"
        yield f"{', '.join(labels)}: mean and median over tracks {inner}."
    lower = [metric["label"] for metric in summary["metrics"].values() if not metric["higher_is_better"]]
    if lower:
        yield f"Lower is better for {', '.join(lower)}; higher for the others."
    if any("all" in found for found in summary["scores"].values()):
        yield "all: every source of every track has the same weight."


def silent_lines(summary: Summary) -> Iterator[str]:
    """summary["silent"]: {references: count, leaked: {method: {median, worst}}}, levels in dB; None for silence."""
    silent = summary.get("silent") or {}
    if not (count := silent.get("references")):
        return
    yield f"{count} silent {'reference has' if count == 1 else 'references have'} no scores."
    levels = [
        f"{method} {_level(found['median'])} (worst {_level(found['worst'])})"
        for method, found in silent.get("leaked", {}).items()
    ]
    if levels:
        yield f"Level of their estimates relative to the mixture, median: {'; '.join(levels)}."


def _undefined(summary: Summary) -> Iterator[str]:
    """summary["unscored"]: {metric: undefined scores of the first method}, of which those of silent references."""
    silent = (summary.get("silent") or {}).get("references", 0)
    counts = {name: count - silent for name, count in (summary.get("unscored") or {}).items() if count > silent}
    if counts:
        found = ", ".join(f"{summary['metrics'][name]['label']} {count}" for name, count in counts.items())
        yield f"Undefined scores of other references, left out ({next(iter(summary['scores']))}): {found}."


def _level(value: float | None) -> str:
    return "silent" if value is None or value == -math.inf else f"{value:.1f} dB"


def text(summary: Summary, width: int | None = None) -> str:
    """The table for a terminal: metrics that do not fit side by side go into further blocks.

    width: of the terminal in characters, by default as it is.
    """
    width = width or shutil.get_terminal_size((120, 24)).columns
    rows = list(lines(summary))
    names = [(printable(row.method), printable(row.source)) for row in rows]
    left = [max(map(len, column), default=0) for column in zip(("", ""), *names, strict=True)]
    count = f"{summary['tracks']} tracks"
    margin = max(sum(left) + 2, len(count))
    metrics = list(summary["metrics"])
    each = [max(20, len(heading(summary["metrics"][name])) + 2) for name in metrics]
    blocks = _blocks(each, max(width - margin, max(each, default=0)))
    printed = []
    for block in blocks:
        heads = "".join(f"{heading(summary['metrics'][metrics[i]]):>{each[i]}}" for i in block)
        kinds = "".join(f"{'mean':>{each[i] - 10}}{'median':>10}" for i in block)
        printed.append([" " * margin + heads, count.ljust(margin) + kinds])
        for (method, source), row in zip(names, rows, strict=True):
            scores = "".join(
                f"{rounded(row.cells[2 * i].value):>{each[i] - 10}}{rounded(row.cells[2 * i + 1].value):>10}"
                for i in block
            )
            printed[-1].append(f"{method.ljust(left[0])}  {source.ljust(left[1])}".ljust(margin) + scores)
    return "\n".join(["\n\n".join(map("\n".join, printed)), *map(printable, notes(summary))])


def _blocks(sizes: Sequence[int], width: int) -> list[list[int]]:
    """Indices of columns of these sizes, grouped so that each group fits into a width if it can."""
    blocks: list[list[int]] = [[]]
    for index, size in enumerate(sizes):
        if blocks[-1] and sum(sizes[i] for i in blocks[-1]) + size > width:
            blocks.append([])
        blocks[-1].append(index)
    return blocks


def markdown(summary: Summary) -> str:
    """The table in Markdown; the best score of each source without the oracle masks is bold."""
    escape = _escape(MARKDOWN)
    heads = [f"{escape(_directed(summary, metric))}, {statistic}" for metric, statistic in columns(summary)]
    printed = [["method", "source", *heads], ["---", "---", *["---:"] * len(heads)]]
    for row in lines(summary):
        cells = [f"**{rounded(cell.value)}**" if cell.best else rounded(cell.value) for cell in row.cells]
        printed.append([escape(row.method), escape(row.source), *cells])
    table = "\n".join(f"| {' | '.join(row)} |" for row in printed)
    below = [_count(summary), *notes(summary), *bold(summary)]
    return "\n".join([table, "", *(f"- {escape(note)}" for note in below), ""])


def latex(summary: Summary) -> str:
    r"""A `table` environment with `\usepackage{booktabs}`; the best score without the oracles is bold."""
    escape = _escape(LATEX)
    metrics = list(summary["metrics"])
    groups = " & ".join(rf"\multicolumn{{2}}{{c}}{{{escape(_directed(summary, name))}}}" for name in metrics)
    rules = " ".join(rf"\cmidrule(lr){{{2 * i + 3}-{2 * i + 4}}}" for i in range(len(metrics)))
    body: list[str] = []
    before = None
    for row in lines(summary):
        if before not in (None, row.method):
            body.append(r"\midrule")
        cells = [_math(cell) for cell in row.cells]
        method = escape(row.method) if row.method != before else ""
        body.append(" & ".join([method, escape(row.source), *cells]) + r" \\")
        before = row.method
    caption = " ".join(map(escape, [_count(summary), *notes(summary), *bold(summary)]))
    return "\n".join(
        [
            r"% \usepackage{booktabs,textcomp}",
            r"\begin{table}",
            r"\centering",
            rf"\caption{{{caption}}}",
            rf"\begin{{tabular}}{{ll{'rr' * len(metrics)}}}",
            r"\toprule",
            rf"& & {groups} \\",
            rules,
            rf"method & source & {' & '.join(['mean & median'] * len(metrics))} \\",
            r"\midrule",
            *body,
            r"\bottomrule",
            r"\end{tabular}",
            r"\end{table}",
            "",
        ]
    ).replace("↑", r"$\uparrow$").replace("↓", r"$\downarrow$")  # fmt: skip


def _count(summary: Summary) -> str:
    of = " of ".join(str(summary[key]) for key in ("split", "data") if summary.get(key))
    return f"Scores of {summary['tracks']} tracks{f' ({of})' if of else ''}."


def bold(summary: Summary) -> list[str]:
    best = any(cell.best for line in lines(summary) for cell in line.cells)
    without = " without the oracle masks" if set(ORACLES) & set(summary["scores"]) else ""
    return [f"Bold: the best score of each source{without}."] if best else []


def _directed(summary: Summary, metric: str) -> str:
    """The heading with an arrow to the better side."""
    found = summary["metrics"][metric]
    return f"{heading(found)} {'↑' if found['higher_is_better'] else '↓'}"


def _math(cell: Cell) -> str:
    """A score in LaTeX's mathematics, for a minus sign in place of a hyphen; the best one is bold."""
    if cell.value is None or math.isnan(cell.value):
        return "--"
    number = rounded(cell.value).replace("inf", r"\infty")
    return rf"$\mathbf{{{number}}}$" if cell.best else f"${number}$"


def _escape(signs: Mapping[str, str]) -> Callable[[str], str]:
    """Replace signs with a meaning in a markup; control characters and line ends become escapes."""

    def escape(name: str) -> str:
        shown = "".join(sign if sign.isprintable() else repr(sign)[1:-1] for sign in printable(name))
        return "".join(signs.get(sign, sign) for sign in shown)

    return escape
