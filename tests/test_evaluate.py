"""separate-eval: scoring processes, a stopped evaluation, stems of other tools, oracle masks, museval's files."""

import json
import math
import os
import shutil
import signal
import subprocess
import sys
import time
from functools import partial
from pathlib import Path

import numpy as np
import pytest
import torch

from separate.cli import evaluate
from separate.compose import data_config
from separate.config import shipped
from separate.data import open_split
from separate.data.batch import Batch
from separate.errors import DataError, SeparateError, UsageError
from separate.evaluation import museval_json
from separate.evaluation import results as files
from separate.evaluation.candidates import Model, Task
from separate.evaluation.metrics import METRICS
from separate.evaluation.processes import Processes, ScoringFault, process_count
from separate.evaluation.recordings import ORACLES, masked
from separate.evaluation.results import Results, Row, described
from separate.evaluation.runner import evaluate as score_all
from separate.evaluation.stems import open_stems
from separate.evaluation.unfinished import Unfinished, code_of
from separate.parts import build_separator
from separate.separator import Separation
from separate.stft import STFT
from tests.conftest import RATE, tone, write
from tests.test_pipeline import refusal
from tests.tiny import config_of, without_defaults

KILLING = Path(__file__).parent / "killing_evaluation.py"
FORKS = pytest.mark.skipif(sys.platform != "linux", reason="scoring processes are forked on Linux")
TOY = ["device=cpu", "+data.tracks={train: 4, valid: 2, test: 5}", "workers=2"]


def contents(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


# ---------------------------------------------------------------------------------------------------- processes --


@FORKS
def test_processes_give_the_scores_of_this_process_bit_for_bit(tmp_path):
    candidate = open_stems(tmp_path / "est", make_stems(tmp_path, tracks=5), STFT(64, 32))
    none, three = (score_all(candidate, Task(METRICS, workers)) for workers in (0, 3))
    assert repr(none) == repr(three) and len(none.rows) == 5 * 2 * 5 * len(METRICS)


@FORKS
def test_a_work_that_fails_or_dies_is_reported_with_its_track():
    def dies():
        os.kill(os.getpid(), signal.SIGKILL)

    def refused():
        raise UsageError("give another file")

    for work, said in (
        (dies, "song was not scored: the system ended a worker process, most likely because memory ran out; lower"),
        (refused, "song: give another file"),
        (lambda: {}["score"], "song: not scored, KeyError: 'score'"),
        (lambda: torch.empty(2**60), "song: out of memory; lower workers"),
    ):
        for count in (1, 0) if work is not dies else (1,):
            kind = UsageError if work is refused else ScoringFault if "KeyError" in said else SeparateError
            with pytest.raises(kind, match=said) as caught, Processes(count) as processes:
                list(processes.run(0, "song", work))
                list(processes.finish())
            assert ("KeyError" in str(caught.value.__cause__)) == ("KeyError" in said)


@FORKS
def test_processes_are_ended_with_the_context_and_never_exceed_their_number():
    running = []
    with pytest.raises(KeyboardInterrupt), Processes(2) as processes:
        for number in range(2):
            assert list(processes.run(number, "song", partial(time.sleep, 60))) == []
        running = [child.process for child in processes.children.values()]
        assert len(running) == 2 and all(process.is_alive() for process in running)
        raise KeyboardInterrupt
    assert [process.exitcode for process in running] == [-signal.SIGKILL] * 2
    most, found = 0, []
    with Processes(2) as processes:
        for number in range(6):
            found += processes.run(number, "song", partial(pow, number, 2))
            most = max(most, len(processes.children))
        found += processes.finish()
    assert sorted(found) == [(number, number**2) for number in range(6)] and most <= 2


def test_no_more_processes_than_recordings_and_none_if_asked():
    assert process_count(0, 9) == 0
    if sys.platform == "linux":
        assert process_count(4, 2) == 2 and process_count("auto", 1) == 1


# ------------------------------------------------------------------------------------------------- stop and go on --


@FORKS
def test_an_evaluation_that_is_killed_and_started_again_gives_the_same_files(trained, tmp_path):
    toy = [option.replace("test: 5", "test: 8") for option in TOY]
    command = [sys.executable, str(KILLING), "3", "3", f"run='{trained / 'runs' / 'tiny'}'", *toy]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    done = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stdout + done.stderr
    assert contents(tmp_path / "whole") == contents(tmp_path / "killed")


def facts() -> dict:
    return {"checkpoint": "a", "metrics": ["si_sdr"], "code": code_of([])}


def test_kept_scores_are_used_only_for_the_same_facts_and_samples(tmp_path):
    with Unfinished(tmp_path / "e", facts()) as kept:
        assert kept.threads(3) == 3
        kept.keep(4, {"samples": "x", "rows": [1.5, math.inf]})
    with Unfinished(tmp_path / "e", facts()) as kept:
        assert kept.threads(5) == 3  # those it began with
        assert kept.numbers() == {4}
        assert kept.read(4, "x") == {"samples": "x", "rows": [1.5, math.inf]}
        assert kept.read(4, "y") is None and kept.read(3, "x") is None
        with (
            pytest.raises(UsageError, match="another separate-eval writes its scores"),
            Unfinished(tmp_path / "e", facts()),
        ):
            pass
    for key, value in (("checkpoint", "b"), ("metrics", ["snr"]), ("code", {"separate": "other"})):
        with Unfinished(tmp_path / "other" / key, facts()) as kept:
            kept.keep(0, {"samples": "x"})
        with Unfinished(tmp_path / "other" / key, {**facts(), key: value}) as kept:
            assert kept.numbers() == set()
    assert not (tmp_path / "other").exists() or not list((tmp_path / "other").rglob("*.json"))


def test_the_code_of_a_metric_is_among_the_facts(tmp_path, monkeypatch):
    monkeypatch.syspath_prepend(tmp_path)
    (tmp_path / "ownmetric.py").write_text("a = 1\n")
    first = code_of(["ownmetric"])
    assert first["separate"] and first["ownmetric"] and first["torch"]
    from separate.evaluation import unfinished

    unfinished._sources.cache_clear()
    (tmp_path / "ownmetric.py").write_text("a = 2\n")
    second = code_of(["ownmetric"])
    assert second["ownmetric"] != first["ownmetric"] and second["separate"] == first["separate"]


def test_a_stopped_evaluation_says_how_to_go_on_and_goes_on(tmp_path, capsys):
    stems = make_stems(tmp_path, tracks=3)
    candidate = open_stems(tmp_path / "est", stems, STFT(64, 32))
    whole = score_all(candidate, Task(METRICS))
    estimate, stopped = candidate.estimate, iter([False, True, False, False])

    def stop(index, batch):
        if next(stopped):
            raise KeyboardInterrupt
        return estimate(index, batch)

    candidate.estimate = stop
    with pytest.raises(KeyboardInterrupt), Unfinished(tmp_path / "out", facts()) as kept:
        score_all(candidate, Task(METRICS), kept)
    assert "1 of 3 recordings are scored; repeat the command to go on" in capsys.readouterr().err
    with Unfinished(tmp_path / "out", facts()) as kept:
        assert repr(score_all(candidate, Task(METRICS), kept)) == repr(whole)
    assert next(stopped, None) is None  # two recordings were separated again, not three


# ------------------------------------------------------------------------------------------------------------ stems --


def make_stems(folder: Path, tracks: int = 2, rate: int = RATE, channels: int = 2) -> Path:
    """FOLDER/ref/TRACK/{low,high}.wav and FOLDER/est, estimates with noise 20 dB below; returns FOLDER/ref."""
    rng = np.random.default_rng(0)
    for number in range(tracks):
        for name, frequency in (("low", 200), ("high", 1500)):
            audio = tone(frequency + 10 * number, 1.5, rate, channels)
            noise = rng.standard_normal(audio.shape)
            noise *= np.sqrt((audio**2).sum() / (noise**2).sum()) / 10
            track = f"song {number}"
            write(folder / "ref" / track / f"{name}.flac", audio, rate)
            write(folder / "est" / track / f"{name}.wav", audio + noise, rate, subtype="FLOAT")
    return folder / "ref"


def test_stems_of_any_tool_are_scored(tmp_path, call):
    make_stems(tmp_path)
    code, out, err = call(evaluate, "estimates=est", "references=ref", "metrics=[bss_eval_v4]", cwd=tmp_path)
    assert code == 0, err
    assert "mixtures: sums of the references" in out
    found = files.read(tmp_path / "eval" / "est")
    assert found.methods == ["estimates", "mixture as estimate", "IBM", "IRM", "tPSA mask"]
    assert found.tracks == ["song 0", "song 1"] and sorted(found.sources) == ["high", "low"]
    snr = [row.score for row in found.rows if (row.method, row.metric) == ("estimates", "snr")]
    assert snr == pytest.approx([20.0] * 4, abs=0.02)
    assert found.about["mixtures"] == "sums of the references"
    published = museval_json.read(tmp_path / "eval" / "est" / "museval" / "estimates")
    ours = {(r.track, r.source, r.metric): r.score for r in found.rows if r.method == "estimates"}
    for row in published.rows:
        assert row.score == pytest.approx(ours[row.track, row.source, row.metric], abs=1e-5, nan_ok=True)
    assert {row.metric for row in published.rows} == set(museval_json.NAMES.values()) <= set(found.metrics)
    assert "<audio" in (tmp_path / "eval" / "est" / "report.html").read_text()


def test_a_mixture_beside_the_references_is_used(tmp_path):
    references = make_stems(tmp_path)
    for track in sorted(references.iterdir()):
        write(track / "mixture.wav", tone(50, 1.5, channels=2))
        break
    stems = open_stems(tmp_path / "est", references, STFT(64, 32))
    assert sorted(stems.sources) == ["high", "low"]
    assert stems.mixtures() == "files beside the references; sums of the references in 1 tracks"
    assert torch.equal(stems.read(0)[0].mixture[0], stems.tracks[0].mixture.read())
    batch = stems.read(1)[0]
    assert torch.equal(batch.mixture, batch.sources.sum(1))


def test_every_stem_that_cannot_be_scored_is_named_at_once(tmp_path, call):
    references = make_stems(tmp_path, tracks=6)
    given = [tmp_path / "est" / f"song {number}" for number in range(6)]
    (given[0] / "low.wav").unlink()
    write(given[1] / "low.wav", tone(200, 1.4, channels=2))
    write(given[2] / "high.wav", tone(200, 1.5, 2 * RATE, channels=2), 2 * RATE)
    write(given[3] / "low.wav", tone(200, 1.5))
    write(given[4] / "low.flac", tone(200, 1.5, channels=2))
    (given[5] / "high.wav").write_bytes(b"no audio")
    code, _, said = call(evaluate, "estimates=est", "references=ref", cwd=tmp_path)
    assert code == 1
    for part in (
        "6 files of stems cannot be scored",
        f"song 0{os.sep}low.wav: is missing",
        "has 11200 samples of 2 channels at 8000 Hz, and low.flac 12000 samples of 2 channels at 8000 Hz",
        "has 24000 samples of 2 channels at 16000 Hz, and high.flac 12000 samples",
        "has 12000 samples of 1 channels at 8000 Hz, and low.flac 12000 samples of 2 channels",
        f"song 4{os.sep}low: is there as .flac and .wav; keep one",
        f"song 5{os.sep}high.wav: not readable as audio",
        "data.sources=[...] chooses the sources",
    ):
        assert part in said, (part, said)
    assert not (tmp_path / "eval").exists()
    shutil.rmtree(tmp_path / "est" / "song 3")
    with pytest.raises(DataError, match=r"song 3.low\.wav: is missing"):
        open_stems(tmp_path / "est", references, STFT(64, 32), ["low"])


def test_a_silent_reference_is_counted_and_what_leaked_into_it_is_reported(tmp_path):
    references = make_stems(tmp_path)
    low = open_stems(tmp_path / "est", references, STFT(64, 32)).tracks[0].references[0].read()
    write(references / "song 0" / "low.flac", np.zeros((low.shape[1], low.shape[0])))
    write(tmp_path / "est" / "song 0" / "low.wav", 0.01 * tone(1500, 1.5, channels=2), subtype="FLOAT")
    summary = files.summarise(score_all(open_stems(tmp_path / "est", references, STFT(64, 32)), Task(METRICS)))
    assert summary["silent"]["references"] == 1 and summary["unscored"]["si_sdr"] == 2  # the other is the whole mixture
    leaked = summary["silent"]["leaked"]
    assert leaked["estimates"]["worst"] == pytest.approx(-40, abs=0.1)  # re the mixture, which is the other tone
    assert leaked["mixture as estimate"]["worst"] == pytest.approx(0, abs=1e-6)
    assert leaked["IBM"] == {"median": None, "worst": None}  # silent


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["estimates=est"], "both estimates=DIR and references=DIR"),
        (["references=ref"], "both estimates=DIR and references=DIR"),
        (["estimates=est", "references=ref", "run=r"], "give one of them"),
        (["estimates=est", "references=ref", "data.root=ref"], "of data only data.sources belongs to estimates=DIR"),
        (["permute=true"], "permute=true belongs to estimates=DIR"),
        (["estimates=est", "references=nowhere"], "references=nowhere cannot be read (No such file or directory)"),
        (["estimates=ref", "references='est/song 0'"], "expected in est/song 0/TRACK/SOURCE.wav"),
    ],
)
def test_stems_that_are_not_there_are_refused(tmp_path, call, options, message):
    make_stems(tmp_path)
    assert message in refusal(call(evaluate, *options, cwd=tmp_path), 2)


def test_the_stft_of_stems_changes_the_oracle_masks_and_permute_pairs_them(tmp_path):
    references = make_stems(tmp_path)
    for track in (tmp_path / "est").iterdir():
        (track / "low.wav").rename(track / "x")
        (track / "high.wav").rename(track / "low.wav")
        (track / "x").rename(track / "high.wav")

    def mean(method: str, permute: bool, n_fft: int) -> float:
        stems = open_stems(tmp_path / "est", references, STFT(n_fft, n_fft // 2), permute=permute)
        summary = files.summarise(score_all(stems, Task(METRICS)))
        return summary["scores"][method]["all"]["si_sdr"]["mean"]

    assert mean("estimates", True, 64) == pytest.approx(20, abs=0.1) and mean("estimates", False, 64) < 0
    assert abs(mean("IRM", False, 64) - mean("IRM", False, 512)) > 1


# ----------------------------------------------------------------------------------------------------------- chunks --


@pytest.mark.parametrize("model", ["dnn", "wave_unet"])  # one with masks and one with waveforms
def test_scores_in_chunks_are_those_of_whole_recordings_within_a_tenth_of_a_decibel(model):
    data = data_config({**without_defaults(shipped("data")["toy"]), "tracks": {"train": 1, "valid": 1, "test": 2}})
    torch.manual_seed(0)
    config = config_of(model)
    config["data"].update(sources=data.sources, sample_rate=data.sample_rate)
    separator, examples = build_separator(config).eval(), open_split(data, "test")

    def scores(chunk: float, overlap: float) -> torch.Tensor:
        found = score_all(Model(separator, examples, chunk, overlap), Task(METRICS))
        return torch.tensor([row.score for row in found.rows if row.method == "model"])

    whole = scores(60.0, 0.0)
    torch.testing.assert_close(scores(2.0, 0.5), whole, atol=0.1, rtol=0)
    assert not torch.equal(scores(2.0, 0.5), whole)  # it was separated in chunks


# ------------------------------------------------------------------------------------------------------------ masks --


@pytest.mark.parametrize(("n_fft", "hop", "length"), [(64, 16, 1003), (64, 32, 800), (63, 20, 777)])
def test_masks_computed_in_spans_are_those_of_the_whole_recording(n_fft, hop, length):
    stft = STFT(n_fft, hop)
    sources = torch.randn(1, 2, 2, length, generator=torch.Generator().manual_seed(0))
    batch = Batch(sources.sum(1), sources, ["x"], stft)
    for name, masks in ORACLES.items():
        whole = Separation(batch, {"masks": masks(batch.source_spectrograms, batch.spectrogram)}).estimates
        torch.testing.assert_close(masked(batch, masks, 100), whole, msg=name)


# ---------------------------------------------------------------------------------------------------------- museval --


def bss(frames: dict[str, list[float]], track: str = "A - B/C") -> Results:
    metrics = {own: described(own, museval_json._description(name)) for name, own in museval_json.NAMES.items()}
    found = Results(["vocals", "drums"], ["model", "IRM"], metrics, {}, [track])
    for method in found.methods:
        for source in found.sources:
            for name, own in museval_json.NAMES.items():
                values = tuple(frames[name])
                known = [value for value in values if not math.isnan(value)]
                found.rows.append(Row(track, source, method, own, float(np.median(known)), values))
    return found


@pytest.fixture
def museval(tmp_path, monkeypatch):
    """museval, whose import fails without ffmpeg and ffprobe on PATH; nothing here runs them."""
    for name in ("ffmpeg", "ffprobe"):
        if shutil.which(name) is None:
            (tmp_path / "bin").mkdir(exist_ok=True)
            (tmp_path / "bin" / name).write_text("#!/bin/sh\nexit 1\n")
            (tmp_path / "bin" / name).chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path / 'bin'}{os.pathsep}{os.environ['PATH']}")
    return pytest.importorskip("museval")


def test_museval_reads_the_files_and_its_own_are_read(tmp_path, museval):
    rng = np.random.default_rng(0)
    frames = {name: [*rng.normal(5, 3, 4).tolist(), math.nan, 1.23456789] for name in museval_json.NAMES}
    museval_json.write(bss(frames), tmp_path / "museval")
    store = museval.EvalStore()
    store.add_eval_dir(tmp_path / "museval" / "model")
    assert set(store.df["track"]) == {"A - B_C"} and set(store.df["target"]) == {"vocals", "drums"}
    read = store.agg_frames_scores()
    for name in museval_json.NAMES:
        assert read["A - B_C", "vocals", name] == pytest.approx(np.nanmedian(frames[name]), abs=1e-5)
    track = museval.TrackStore("song", win=1.0, hop=1.0)
    track.add_target("vocals", {name: np.array(values) for name, values in frames.items()})
    track.add_target("drums", {name: np.array(values) for name, values in frames.items()})
    (tmp_path / "theirs" / "test").mkdir(parents=True)
    track.save(tmp_path / "theirs" / "test" / "A - B_C.json")
    ours = json.loads((tmp_path / "museval" / "model" / "test" / "A - B_C.json").read_text())
    theirs = json.loads((tmp_path / "theirs" / "test" / "A - B_C.json").read_text())
    assert repr(ours) == repr(theirs)
    found = museval_json.read(tmp_path / "theirs")
    assert found.tracks == ["A - B_C"] and found.sources == ["vocals", "drums"]
    for row in found.rows:
        name = next(name for name, own in museval_json.NAMES.items() if own == row.metric)
        assert row.score == pytest.approx(np.nanmedian(frames[name]), abs=1e-5)
        assert row.frames == pytest.approx(frames[name], abs=1e-5, nan_ok=True)


@pytest.mark.parametrize("text", ["[]", "{}", '{"targets": [{"name": "a"}]}', "no JSON", '{"targets": 3}'])
def test_other_files_are_not_read_as_those_of_museval(tmp_path, text):
    (tmp_path / "a.json").write_text(text)
    with pytest.raises(UsageError, match="is not a file of museval's scores"):
        museval_json.read(tmp_path)


def test_the_scores_of_several_methods_are_not_mixed(tmp_path):
    museval_json.write(bss({name: [1.0, 2.0] for name in museval_json.NAMES}), tmp_path)
    assert len(list(tmp_path.rglob("*.json"))) == 2
    with pytest.raises(UsageError, match="twice; give the folder of one method"):
        museval_json.read(tmp_path)
    assert museval_json.read(tmp_path / "model").rows[0].score == 1.5


# ---------------------------------------------------------------------------------------------------------- program --


def test_compare_is_a_command_of_separate_eval(call, tmp_path):
    for number in range(2):
        make_stems(tmp_path / str(number))
        stems = open_stems(tmp_path / str(number) / "est", tmp_path / str(number) / "ref", STFT(64, 32))
        files.write(score_all(stems, Task(METRICS)), tmp_path / "eval" / str(number))
    code, out, err = call(evaluate, "compare", "eval/0", "eval/1", "--resamples", "200", cwd=tmp_path)
    assert code == 0, err
    assert "SI-SDR" in out and (tmp_path / "compare" / "compare.json").exists()


def test_what_a_run_has_computed_is_in_the_summary_and_nothing_else_is_left(trained, call, tmp_path):
    """The stft group serves stems; the masks of a run take its own."""
    for name in ("speech", "music"):
        code, _, err = call(
            evaluate, "run=runs/tiny", "device=cpu", f"stft={name}", f"out={tmp_path / name}", cwd=trained
        )
        assert code == 0, err
    assert (tmp_path / "speech" / "scores.csv").read_bytes() == (tmp_path / "music" / "scores.csv").read_bytes()
    about = files.read(tmp_path / "music").about
    assert about["split"] == "test" and about["versions"]["torch"] == torch.__version__
    assert about["config"]["model"]["units"] == 16
    assert not (tmp_path / "music" / "unfinished").exists()
