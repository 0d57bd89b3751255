"""The table of an evaluation as text, Markdown and LaTeX."""

from __future__ import annotations

import math
import re
from dataclasses import replace

import pytest

from separate.evaluation import tables
from separate.evaluation.results import summarise
from tests.evaluations import METRICS, results

FORMATS = [tables.text, tables.markdown, tables.latex]


def rows(markdown: str) -> list[list[str]]:
    """The cells of a table in Markdown, without its two head lines."""
    lines = [line for line in markdown.splitlines() if line.startswith("|")]
    return [[cell.strip() for cell in line.strip("|").split(" | ")] for line in lines[2:]]


def numbers(text: str) -> list[str]:
    return re.findall(r"-?\d+\.\d\d", text)


def test_all_formats_hold_the_same_numbers_in_the_same_order():
    summary = summarise(results())
    plain, marked, typeset = (numbers(form(summary, 200) if form is tables.text else form(summary)) for form in FORMATS)
    assert len(plain) == 3 * 3 * 3 * 2  # methods, sources with all, metrics, mean and median
    assert plain == marked == typeset


def test_the_numbers_are_those_of_the_summary():
    summary = summarise(results())
    table = rows(tables.markdown(summary))
    found = summary["scores"]["tPSA mask"]["drums"]
    cells = [f"{found[metric][kind]:.2f}" for metric in METRICS for kind in ("mean", "median")]
    assert [row[2:] for row in table if row[:2] == ["tPSA mask", "drums"]] == [cells]


def test_the_best_score_of_each_source_without_the_oracles_is_bold():
    found = results()
    summary = summarise(found)
    for row in rows(tables.markdown(summary)):
        bold = [cell.startswith("**") for cell in row[2:]]
        assert bold == [row[0] == "model"] * 6, row  # of the distance the model's is the lowest, and so the best
    typeset = tables.latex(summary)
    assert typeset.count(r"\mathbf") == 3 * 6
    worse = [
        replace(row, score=-50.0) if row.method == "model" and row.metric == "si_sdr" else row for row in found.rows
    ]
    table = rows(tables.markdown(summarise(replace(found, rows=worse))))
    assert {row[0] for row in table if row[2].startswith("**")} == {"mixture as estimate"}
    assert not any("**" in cell for row in rows(tables.markdown(summarise(results(methods=["model"])))) for cell in row)


def test_the_columns_name_their_aggregate():
    summary = summarise(results())
    summary["metrics"]["si_sdr"]["aggregate"] = "median over frames"
    assert tables.column_name(summary["metrics"]["si_sdr"], "median") == "median over tracks of median over frames"
    assert tables.column_name(summary["metrics"]["lsd"], "mean") == "mean over tracks"
    for form in FORMATS:
        text = " ".join(form(summary).split())
        assert "SI-SDR: mean and median over tracks of the median over frames." in text
        assert "log-spectral distance, ESTOI: mean and median over tracks of one score for each track." in text
        assert "Lower is better for log-spectral distance" in text


def test_silent_references_are_counted_and_their_leak_is_stated():
    for form in FORMATS:
        text = " ".join(form(summarise(results())).split())
        assert "1 silent reference has no scores." in text
        assert "model -30.0 dB" in text and "tPSA mask -50.0 dB" in text
    assert "silent" not in tables.text(summarise(replace(results(), leaks=[])))
    quiet = [replace(leak, level=-math.inf) for leak in results().leaks]
    assert "model silent" in tables.text(summarise(replace(results(), leaks=quiet)))


def test_metrics_that_do_not_fit_into_the_terminal_go_below():
    summary = summarise(results())
    narrow, wide = tables.text(summary, 60).splitlines(), tables.text(summary, 200).splitlines()
    assert max(map(len, wide[:10])) > 80
    block = [line for line in narrow if "mean" in line and "over" not in line]
    assert len(block) == 3
    assert numbers("\n".join(narrow)) != [] and sorted(numbers("\n".join(narrow))) == sorted(numbers("\n".join(wide)))
    assert max(len(line) for line in narrow if numbers(line) and "dB" not in line) <= 60


def test_undefined_and_infinite_scores_are_written():
    found = results()
    scores = {"si_sdr": -math.inf, "lsd": math.nan}
    changed = [replace(row, score=scores.get(row.metric, row.score)) for row in found.rows]
    summary = summarise(replace(found, rows=changed))
    assert rows(tables.markdown(summary))[0][2:6] == ["**-inf**", "**-inf**", "-", "-"]
    assert r"$\mathbf{-\infty}$ & $\mathbf{-\infty}$ & -- & --" in tables.latex(summary)


@pytest.mark.parametrize("name", ["a|b", "*a* _b_", "<b>", "`x`", "a\nb", "[a](b)"])
def test_a_name_does_not_break_a_table_in_markdown(name):
    table = tables.markdown(summarise(results(sources=[name, "b"])))
    assert {len(re.findall(r"(?<!\\)\|", line)) for line in table.splitlines() if line.startswith("|")} == {9}
    cell = rows(table)[0][1]
    assert cell.replace("\\", "") == name.replace("\n", "n")
    assert not re.search(r"(?<!\\)[*_<`|\[]", cell)


@pytest.mark.parametrize("sign", sorted(tables.LATEX))
def test_a_sign_with_a_meaning_in_latex_is_escaped(sign):
    typeset = tables.latex(summarise(results(sources=[f"a{sign}b", "b"])))
    assert f"& a{tables.LATEX[sign]}b &" in typeset
    assert typeset.count("{") - typeset.count(r"\{") == typeset.count("}") - typeset.count(r"\}")
    rules = [typeset.count(rule) for rule in (r"\toprule", r"\bottomrule", r"\midrule")]
    assert rules == [1, 1, 3]
    widths = {line.count("&") - line.count(r"\&") for line in typeset.splitlines() if line.startswith((" &", "m", "t"))}
    assert widths == {7}
