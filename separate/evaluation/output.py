"""The files of an evaluation: scores, summary, tables, museval's JSON, and the page with tracks to hear."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from separate.evaluation import museval_json, report, results, tables
from separate.evaluation.candidates import Candidate
from separate.evaluation.results import Results, Summary
from separate.evaluation.scores import arrange
from separate.files import printable, replace_file

MUSEVAL = "museval"


def write(found: Results, candidate: Candidate, folder: Path) -> Summary:
    """Write all files and return the summary; summary.json is the last one."""
    summary = results.summarise(found)
    page = report.page(found, summary, Heard(found, candidate, report.tracks_to_hear(found)))
    museval_json.write(found, folder / MUSEVAL, str(found.about.get("split", "test")))
    texts = {"report.html": page, "table.md": tables.markdown(summary), "table.tex": tables.latex(summary)}
    for name, text in texts.items():
        replace_file(folder / name, printable(text).encode())
    return results.write(found, folder)


@dataclass(frozen=True)
class Heard(Sequence[report.Listening]):
    """The signals of tracks, separated again where they are used, so that one is in memory at a time."""

    found: Results
    candidate: Candidate
    tracks: list[str]

    def __len__(self) -> int:
        return len(self.tracks)

    def __getitem__(self, index: Any) -> Any:
        track, sources = self.tracks[index], self.found.sources
        number = self.found.tracks.index(track)
        batch, rate = self.candidate.read(number)
        estimates = self.candidate.estimate(number, batch)
        if self.candidate.interchangeable:
            estimates = arrange(estimates, batch.sources)
        references = dict(zip(sources, batch.sources[0], strict=True))
        return report.Listening(
            track, rate, batch.mixture[0], references, dict(zip(sources, estimates[0], strict=True))
        )
