"""The files of an evaluation."""

import csv
import dataclasses
import json
import math
import os

import pytest

from separate.errors import UsageError
from separate.evaluation import results as files
from separate.evaluation.metrics import METRICS
from separate.evaluation.results import Leak, Results, Row

NAN = math.nan


def three_tracks(odd: str = "c") -> Results:
    """Two sources of three tracks; the reference of b is silent in the last one."""
    found = Results(["a", "b"], ["model", "IRM"], METRICS, {"split": "test"}, ["x, 1", "y\n", odd])
    for level, method in enumerate(found.methods):
        for number, track in enumerate(found.tracks):
            for source in found.sources:
                silent = (track, source) == (odd, "b")
                score = NAN if silent else 10.0 * level + number + 1 / 3
                frames = (NAN, -math.inf, score) if source == "a" else ()
                found.rows += [Row(track, source, method, metric, score, frames) for metric in METRICS]
                if silent:
                    found.leaks.append(Leak(track, source, method, -30.0 if method == "model" else -math.inf))
    return found


def same(left: object, right: object) -> bool:
    return repr(left) == repr(right)  # NaN is not equal to itself


def test_the_results_that_are_written_are_read_again(tmp_path):
    found = three_tracks()
    summary = files.write(found, tmp_path)
    again = files.read(tmp_path)
    for name in ("sources", "methods", "tracks", "about", "rows", "leaks"):
        assert same(getattr(found, name), getattr(again, name)), name
    described = {name: metric.description for name, metric in again.metrics.items()}
    assert described == {name: metric.description for name, metric in METRICS.items()}
    before = {path.name: path.read_bytes() for path in tmp_path.iterdir()}
    files.write(again, tmp_path)
    assert {path.name: path.read_bytes() for path in tmp_path.iterdir()} == before
    assert json.loads((tmp_path / "summary.json").read_text()) == summary


def test_a_summary_has_mean_and_median_by_source_and_reports_silence_apart():
    summary = files.summarise(three_tracks())
    assert summary["tracks"] == 3 and summary["split"] == "test"
    model = summary["scores"]["model"]
    assert model["a"]["si_sdr"] == pytest.approx({"mean": 1 + 1 / 3, "median": 1 + 1 / 3})
    assert model["b"]["si_sdr"] == pytest.approx({"mean": 0.5 + 1 / 3, "median": 0.5 + 1 / 3})
    assert model["all"]["si_sdr"]["mean"] == pytest.approx((0 + 0 + 1 + 1 + 2) / 5 + 1 / 3)
    assert summary["unscored"] == dict.fromkeys(METRICS, 1)
    assert summary["silent"]["references"] == 1
    leaked = summary["silent"]["leaked"]
    assert leaked == {"model": {"median": -30.0, "worst": -30.0}, "IRM": {"median": None, "worst": None}}


def test_scores_have_a_row_for_each_track_source_method_and_metric(tmp_path):
    files.write(three_tracks(), tmp_path)
    with (tmp_path / "scores.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    assert len(rows) == 3 * 2 * 2 * 3 + 2  # and the leaks
    assert rows[0] == {"track": "x, 1", "source": "a", "method": "model", "metric": "si_sdr", "score": repr(1 / 3)}
    assert {row["score"] for row in rows if row["metric"] == "leak"} == {"-30.0", "-inf"}


def test_any_name_of_a_track_can_be_written(tmp_path):
    files.write(three_tracks(os.fsdecode(b"\xff")), tmp_path)
    assert files.read(tmp_path).tracks[-1] == "\\udcff"


def test_frames_of_an_earlier_evaluation_do_not_stay(tmp_path):
    found = three_tracks()
    files.write(found, tmp_path)
    assert (tmp_path / "frames.json").exists()
    found.rows = [dataclasses.replace(row, frames=()) for row in found.rows]
    files.write(found, tmp_path)
    assert not (tmp_path / "frames.json").exists()


@pytest.mark.parametrize("damage", ["summary.json", "scores.csv", "older"])
def test_a_folder_without_scores_is_refused(tmp_path, damage):
    files.write(three_tracks(), tmp_path)
    if damage == "older":
        (tmp_path / "scores.csv").write_text("track,source,method,si_sdr\nx,a,model,1.0\n")
    else:
        (tmp_path / damage).unlink()
    with pytest.raises(UsageError, match="run separate-eval again" if damage == "older" else "is missing"):
        files.read(tmp_path)
