"""The files of an evaluation: scores, summary, tables, museval's JSON, and the page with tracks to hear."""

from __future__ import annotations

from pathlib import Path

from separate.evaluation import museval_json, report, results, tables
from separate.evaluation.candidates import Candidate
from separate.evaluation.results import Results, Summary
from separate.evaluation.scores import arrange
from separate.files import printable, replace_file

MUSEVAL = "museval"


def write(found: Results, candidate: Candidate, folder: Path) -> Summary:
    """Write all files and return the summary; summary.json is the last one."""
    summary = results.summarise(found)
    page = report.page(found, summary, [_heard(found, candidate, track) for track in report.tracks_to_hear(found)])
    museval_json.write(found, folder / MUSEVAL, str(found.about.get("split", "test")))
    texts = {"report.html": page, "table.md": tables.markdown(summary), "table.tex": tables.latex(summary)}
    for name, text in texts.items():
        replace_file(folder / name, printable(text).encode())
    return results.write(found, folder)


def _heard(found: Results, candidate: Candidate, track: str) -> report.Listening:
    """The signals of a track, separated again."""
    number = found.tracks.index(track)
    batch, rate = candidate.read(number)
    estimates = candidate.estimate(number, batch)
    if candidate.interchangeable:
        estimates = arrange(estimates, batch.sources)
    references = dict(zip(found.sources, batch.sources[0], strict=True))
    return report.Listening(
        track, rate, batch.mixture[0], references, dict(zip(found.sources, estimates[0], strict=True))
    )
