"""Score recordings: separate one while others are scored, and keep the scores of each."""

from __future__ import annotations

import math
import sys
from collections.abc import Iterator
from functools import partial
from typing import Any

from torch import Tensor
from tqdm import tqdm

from separate.data.batch import Batch
from separate.evaluation.candidates import Candidate, Task
from separate.evaluation.processes import Processes
from separate.evaluation.recordings import MIXTURE, ORACLES, baselines
from separate.evaluation.results import Leak, Results, Row, unlike
from separate.evaluation.scores import score_recording
from separate.evaluation.unfinished import Part, Unfinished, samples_of
from separate.process import release


def evaluate(candidate: Candidate, task: Task, kept: Unfinished | None = None) -> Results:
    """The scores of the candidate, of the mixture and of the oracle masks for each recording.

    kept: recordings that were scored before a stop are taken from there, and each new one is kept there.
    """
    count = len(candidate)
    parts: dict[int, Part] = {}
    bar = tqdm(total=count, desc="evaluating", unit="track", leave=False, disable=None)
    try:
        with bar, Processes(task.workers) as processes:
            for number, part in _parts(candidate, task, kept, processes):
                parts[number] = part
                if kept is not None:
                    kept.keep(number, part)
                bar.update()
    except (KeyboardInterrupt, SystemExit):
        if kept is not None and parts:
            print(f"{len(parts)} of {count} recordings are scored; repeat the command to go on", file=sys.stderr)
        raise
    return assemble(candidate, task, [parts[number] for number in range(count)])


def _parts(
    candidate: Candidate, task: Task, kept: Unfinished | None, processes: Processes
) -> Iterator[tuple[int, Part]]:
    """(number, scores) of each recording, in the order in which they end."""
    known = kept.numbers() if kept is not None else set()
    for number in range(len(candidate)):
        batch, rate = candidate.read(number)
        if kept is not None and number in known and (part := kept.read(number, samples_of(batch))) is not None:
            yield number, part
            continue
        estimates = candidate.estimate(number, batch)
        yield from processes.run(number, batch.tracks[0], partial(score_all, candidate, task, batch, rate, estimates))
        del batch, estimates
        release()
    yield from processes.finish()


def score_all(candidate: Candidate, task: Task, batch: Batch, rate: int, estimates: Tensor) -> Part:
    """The scores of one recording by every method, as JSON.  estimates: (1, M, C, T), those of the candidate."""
    rows: list[list[Any]] = []
    leaks: list[list[Any]] = []
    ways = [(candidate.method, estimates, candidate.interchangeable)]
    for method, signals, free in _all(ways, batch, rate):
        found = score_recording(signals, batch.sources, batch.mixture, rate, task.metrics, free)
        for number, source in enumerate(candidate.sources):
            for name, values in found.values.items():
                frames = found.frames[name][0, number].tolist() if name in found.frames else []
                rows.append([source, method, name, values[0, number].item(), frames])
            if not math.isnan(level := found.leaked[0, number].item()):
                leaks.append([source, method, level])
    return {"track": batch.tracks[0], "samples": samples_of(batch), "rows": rows, "leaks": leaks}


def _all(ways: list[tuple[str, Tensor, bool]], batch: Batch, rate: int) -> Iterator[tuple[str, Tensor, bool]]:
    yield from ways
    for method, signals in baselines(batch, rate):
        yield method, signals, False


def methods_of(candidate: Candidate) -> list[str]:
    return [candidate.method, MIXTURE, *ORACLES]


def assemble(candidate: Candidate, task: Task, parts: list[Part]) -> Results:
    """The results of all recordings.  parts: in the order of the recordings."""
    results = Results(list(candidate.sources), methods_of(candidate), task.metrics, {})
    for part in parts:
        track = unlike(part["track"], results.tracks)
        results.tracks.append(track)
        for source, method, metric, value, frames in part["rows"]:
            results.rows.append(Row(track, source, method, metric, value, tuple(frames)))
        results.leaks += [Leak(track, *leak) for leak in part["leaks"]]
    return results
