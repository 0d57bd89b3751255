"""Paired comparison of evaluations: known differences, intervals, and evaluations that do not fit each other."""

from __future__ import annotations

import csv
import json
import math
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from matplotlib.image import imread
from scipy import stats

from separate.cli import compare as program
from separate.cli import evaluate
from separate.errors import UsageError
from separate.evaluation import compare_report
from separate.evaluation.compare import Options, bootstrap, compare
from separate.evaluation.results import Results, described, write
from tests.evaluations import METRICS, SOURCES, results

FAST = Options(resamples=500)
SONGS = [f"song {number}" for number in range(6)]


def evaluation(folder: Path, found: Results) -> Path:
    """The folder RUN/eval/test with these results; -> RUN."""
    write(found, folder / "eval" / "test")
    return folder


def noisy(shift: float, seed: int = 0) -> Results:
    """The usual results with another shift of each track around `shift`."""
    found = results()
    shifts = dict(zip(SONGS, np.random.default_rng(seed).normal(shift, 1.0, len(SONGS)), strict=True))
    return replace(found, rows=[replace(row, score=float(row.score + shifts[row.track])) for row in found.rows])


def defined(found: Results, **changes: str) -> Results:
    """The same results, whose SI-SDR is defined in another way."""
    description = {**found.metrics["si_sdr"].description, **changes}
    return replace(found, metrics={**found.metrics, "si_sdr": described("si_sdr", description)})


def museval_file(path: Path, scores: dict[str, list[float]]) -> None:
    """The scores of a track as museval writes them.  scores: {source: SDR of each frame}."""
    targets = [
        {
            "name": source,
            "frames": [
                {"time": n, "duration": 1.0, "metrics": {"SDR": x, "SIR": x + 5, "ISR": x + 2, "SAR": x + 1}}
                for n, x in enumerate(frames)
            ],
        }
        for source, frames in scores.items()
    ]
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps({"targets": targets}))


def test_a_constant_difference_is_found_exactly(tmp_path):
    a, b = evaluation(tmp_path / "a", results()), evaluation(tmp_path / "b", results(shift=0.5))
    found = compare([a, b], FAST)
    assert [entry.name for entry in found.entries] == ["a", "b"] and found.tracks == SONGS
    assert len(found.differences) == len(METRICS) * 3
    for one in found.differences:
        for statistic in (one.mean, one.median):
            assert [statistic.value, statistic.low, statistic.high] == pytest.approx([0.5] * 3, abs=1e-9)
        higher = METRICS[one.metric].higher_is_better
        assert len(one.tracks) == (5 if one.source == "drums" else 6)  # a silent reference has no score
        assert one.better == (len(one.tracks) if higher else 0)


def test_differences_are_of_the_other_minus_the_first_on_the_same_track(tmp_path):
    a, b = evaluation(tmp_path / "a", noisy(0, 1)), evaluation(tmp_path / "b", noisy(1, 2))
    there, back = compare([a, b], FAST), compare([b, a], FAST)
    for one, other in zip(there.differences, back.differences, strict=True):
        assert one.values == pytest.approx([-value for value in other.values])
        assert one.mean.value == pytest.approx(np.mean(one.values))
        assert one.median.value == pytest.approx(np.median(one.values))
        assert one.mean.low < one.mean.value < one.mean.high
    scores = {(row.track, row.source, row.method, row.metric): row.score for row in noisy(0, 1).rows}
    first = there.differences[0]
    assert first.tracks["song 3"][0] == scores["song 3", first.source, "model", first.metric]


def test_all_is_the_mean_over_the_sources_of_a_track(tmp_path):
    a, b = evaluation(tmp_path / "a", noisy(0, 1)), evaluation(tmp_path / "b", noisy(1, 2))
    found = {one.source: one for one in compare([a, b], FAST).differences if one.metric == "si_sdr"}
    for track in SONGS[1:]:
        sides = zip(found["vocals"].tracks[track], found["drums"].tracks[track], strict=True)
        assert found["all"].tracks[track] == pytest.approx([sum(side) / 2 for side in sides])
    assert found["all"].tracks["song 0"] == found["vocals"].tracks["song 0"]  # its drums are silent


def test_the_interval_of_a_mean_is_that_of_student_for_normal_differences():
    values = np.random.default_rng(0).normal(0.3, 2.0, 400)
    found = bootstrap(values, np.mean, "BCa", Options())
    low, high = stats.t.interval(0.95, 399, values.mean(), stats.sem(values))
    assert [found.low, found.high] == pytest.approx([low, high], abs=0.02)
    narrow = bootstrap(values, np.mean, "BCa", Options(confidence=0.5))
    assert narrow.high - narrow.low == pytest.approx((high - low) * 0.674 / 1.966, rel=0.05)


def test_the_interval_contains_the_true_mean_as_often_as_that_of_student():
    samples = np.random.default_rng(0).normal(0.0, 1.0, (400, 30))
    options = [Options(confidence=0.8, resamples=500, seed=seed) for seed in range(len(samples))]
    found = [bootstrap(sample, np.mean, "BCa", one) for sample, one in zip(samples, options, strict=True)]
    low, high = stats.t.interval(0.8, 29, samples.mean(axis=1), stats.sem(samples, axis=1))
    exact = np.mean((low < 0) & (high > 0))
    assert exact == pytest.approx(0.8, abs=0.05)
    assert np.mean([one.low < 0 < one.high for one in found]) == pytest.approx(exact, abs=0.03)


def test_the_seed_and_the_number_of_resamples_set_the_interval():
    values = np.random.default_rng(0).normal(0.0, 1.0, 20)
    same, again = (bootstrap(values, np.median, "percentile", Options()) for _ in range(2))
    assert same == again
    assert bootstrap(values, np.mean, "BCa", Options(seed=1)) != bootstrap(values, np.mean, "BCa", Options())
    assert bootstrap(values, np.mean, "BCa", FAST) != bootstrap(values, np.mean, "BCa", Options())


@pytest.mark.parametrize(
    ("values", "expected"), [([], (None, None)), ([2.0], (2.0, None)), ([1.0, -math.inf], (None, None))]
)
def test_too_few_or_infinite_differences_have_no_interval(values, expected):
    found = bootstrap(np.array(values), np.mean, "BCa", FAST)
    assert (found.value, found.low) == expected and not found.apart


def test_only_common_tracks_are_compared_and_the_others_are_named(tmp_path):
    a = evaluation(tmp_path / "a", results(tracks=[*SONGS, "only here"]))
    b = evaluation(tmp_path / "b", results(tracks=["only there", "also there", *SONGS[2:]]))
    found = compare([a, b], FAST)
    assert found.tracks == SONGS[2:]
    assert found.unmatched == {"a": ["song 0", "song 1", "only here"], "b": ["only there", "also there"]}
    text = compare_report.text(found)
    assert "3 of a that others lack: song 0, song 1, only here." in text and "Compared over 4 tracks" in text
    assert "fewer than 10 tracks" in text


def test_the_method_can_be_chosen(tmp_path):
    a, b = evaluation(tmp_path / "a", noisy(0, 1)), evaluation(tmp_path / "b", noisy(1, 2))
    masks = compare([a, b], replace(FAST, method="tPSA mask"))
    assert {entry.method for entry in masks.entries} == {"tPSA mask"}
    first = compare([a, b], FAST)
    assert {entry.method for entry in first.entries} == {"model"}
    assert masks.differences[0].tracks != first.differences[0].tracks
    with pytest.raises(UsageError, match="a has no scores of the method tPSA; did you mean tPSA mask?"):
        compare([a, b], replace(FAST, method="tPSA"))


def test_estimates_of_another_tool_stand_beside_a_model(tmp_path):
    a = evaluation(tmp_path / "a", results())
    b = evaluation(tmp_path / "b", results(methods=("estimates", "mixture as estimate"), shift=1.0))
    found = compare([a, b], FAST)
    assert [entry.method for entry in found.entries] == ["model", "estimates"]
    assert found.differences[0].mean.value == pytest.approx(1.0)


def test_published_scores_of_museval_stand_beside_a_model(tmp_path, call):
    description = {"label": "SDR", "unit": "dB", "higher_is_better": True, "aggregate": "median over frames"}
    own = results(metrics={"si_sdr": METRICS["si_sdr"]})
    rows = [replace(row, metric="sdr") for row in own.rows if not math.isnan(row.score)]
    a = evaluation(tmp_path / "a", replace(own, metrics={"sdr": described("sdr", description)}, rows=rows))
    theirs = {(row.track, row.source): row.score + 2 for row in rows if row.method == "model"}
    for track in [*SONGS, "another"]:
        frames = {source: [math.nan, 50.0, x, -50.0] for source in SOURCES if (x := theirs.get((track, source), 0.0))}
        museval_file(tmp_path / "SISEC" / "UMX" / "test" / f"{track}.json", frames)
    found = compare([a, tmp_path / "SISEC" / "UMX"], FAST)
    assert [entry.name for entry in found.entries] == ["a", "UMX"] and found.metrics == ["sdr"]
    assert found.tracks == SONGS and found.unmatched == {"UMX": ["another"]}
    for one in found.differences:
        assert one.mean.value == pytest.approx(2.0) and len(one.tracks) == (5 if one.source == "drums" else 6)
    code, out, err = call(evaluate, "compare", "a", "SISEC/UMX/test", cwd=tmp_path)
    assert code == 0, err
    assert "SDR, dB, higher is better: difference from a" in out and "Metrics of UMX that others lack: sir" in out


def test_evaluations_that_do_not_fit_are_refused_in_a_sentence(tmp_path):
    a, usual = evaluation(tmp_path / "a", results()), results()
    other_split = replace(usual, about={**usual.about, "split": "valid"})
    no_metric = replace(results(metrics={"estoi": METRICS["estoi"]}), about={})
    cases = {
        "split": (other_split, "a was evaluated with split=test and split with split=valid"),
        "unit": (defined(usual, unit="LUFS"), "unit of si_sdr: dB in a, LUFS in unit; evaluate both in the same way"),
        "tracks": (results(tracks=["x", "y"]), "no tracks in common (a: song 0, song 1, song 2, song 3; tracks: x, y)"),
        "sources": (results(sources=["s1", "s2"]), "no sources in common"),
    }
    for name, (found, message) in cases.items():
        with pytest.raises(UsageError) as error:
            compare([a, evaluation(tmp_path / name, found)], FAST)
        assert message in str(error.value)
    only = evaluation(tmp_path / "only", replace(results(metrics={"lsd": METRICS["lsd"]}), about={}))
    with pytest.raises(UsageError, match="no metrics in common"):
        compare([only, evaluation(tmp_path / "estoi", no_metric)], FAST)
    with pytest.raises(UsageError, match="only has no metric lds; did you mean lsd?"):
        compare([only, a], replace(FAST, metrics=["lds"]))


def test_a_folder_without_an_evaluation_is_refused_in_a_sentence(tmp_path):
    a = evaluation(tmp_path / "a", results())
    with pytest.raises(UsageError, match="one evaluation has nothing to be compared with"):
        compare([a], FAST)
    with pytest.raises(UsageError, match="nowhere is no folder"):
        compare([a, tmp_path / "nowhere"], FAST)
    (tmp_path / "empty").mkdir()
    with pytest.raises(UsageError, match=r"empty has neither summary.json nor JSON files of museval"):
        compare([a, tmp_path / "empty"], FAST)
    (tmp_path / "run" / "checkpoints").mkdir(parents=True)
    with pytest.raises(UsageError, match=r"run has no scores; make them with separate-eval run=.*run"):
        compare([a, tmp_path / "run"], FAST)
    (tmp_path / "stopped" / "unfinished").mkdir(parents=True)
    with pytest.raises(UsageError, match="the evaluation in .*stopped was stopped; repeat its command"):
        compare([a, tmp_path / "stopped"], FAST)
    write(results(), a / "eval" / "valid")
    with pytest.raises(UsageError, match="a has 2 evaluations; name one of .*a/eval/test, .*a/eval/valid"):
        compare([a, a], FAST)
    assert compare([a / "eval" / "test", a / "eval" / "valid"], FAST).tracks == SONGS


def test_the_program_prints_a_table_and_writes_files_that_agree(tmp_path, call):
    runs = [
        evaluation(tmp_path / name, noisy(shift, seed)) for name, shift, seed in (("a", 0, 1), ("b", 9, 2), ("c", 0, 3))
    ]
    arguments = [*map(str, runs), "--metric", "si_sdr", "--resamples", "500", "-o", "out", "--seed", "4"]
    code, out, err = call(program, *arguments, cwd=tmp_path)
    assert code == 0, err
    assert "SI-SDR, dB, higher is better: difference from a" in out and "ESTOI" not in out
    kept = json.loads((tmp_path / "out" / "compare.json").read_text("utf-8"))
    assert (kept["first"], kept["seed"], kept["tracks"]) == ("a", 4, SONGS)
    rows = list(csv.DictReader((tmp_path / "out" / "compare.csv").open(encoding="utf-8")))
    for one in kept["differences"]:
        values = [float(r["difference"]) for r in rows if (r["other"], r["source"]) == (one["other"], one["source"])]
        assert np.mean(values) == pytest.approx(one["mean"]["value"]) and len(values) == one["tracks"]
        line = f"{one['mean']['value']:+.2f} [{one['mean']['low']:+.2f}, {one['mean']['high']:+.2f}]"
        assert (f"{line} *" in out) if one["other"] == "b" else line in out
    picture = imread(tmp_path / "out" / "compare.png")
    assert picture.shape[0] > 150 and len(np.unique(picture[..., 0])) > 10
    assert call(program, *arguments, cwd=tmp_path)[1] == out


@pytest.mark.parametrize(
    ("option", "message"),
    [
        (("--confidence", "1"), "--confidence 1 must lie between 0 and 1"),
        (("--resamples", "3"), "--resamples 3 must lie between 100 and 1000000"),
        (("--seed", "-1"), "--seed -1 must be at least 0"),
    ],
)
def test_a_wrong_option_is_refused_in_a_sentence(tmp_path, call, option, message):
    code, _, err = call(program, "a", "b", *option, cwd=tmp_path)
    assert code == 2 and message in err and "Traceback" not in err


def test_any_name_is_drawn_and_written_as_text(tmp_path, recwarn):
    names = ["$\\frac$", "a\nb", "<b>é漢"]
    runs = [evaluation(tmp_path / name, results(tracks=names, sources=names[:2])) for name in ("$x$", "b")]
    found = compare(runs, FAST)
    compare_report.write(found, tmp_path / "out")
    kept = json.loads((tmp_path / "out" / "compare.json").read_text("utf-8"))
    assert kept["tracks"] == names and kept["first"] == "$x$"
    assert "$x$" in compare_report.text(found)
