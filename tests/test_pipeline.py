"""The programs together, as a user runs them."""

import json
import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
import soundfile
import torch

import separate
from separate import checkpoint
from separate.cli import evaluate, infer, train
from tests.conftest import TINY, TINY_TOY, tone, write


def refusal(result: tuple[int, str, str], code: int) -> str:
    """The sentence of a refused call, which must have that exit code and no traceback."""
    assert result[0] == code, result
    assert "Traceback" not in result[2]
    return result[2].strip().splitlines()[-1] if code else ""


# --------------------------------------------------------------------------------------------------------------- train


def test_a_run_writes_the_documented_files(trained):
    run = trained / "runs" / "tiny"
    lines = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    assert len(lines) == 1
    assert {"epoch", "step", "learning_rate", "train/loss", "valid/loss", "valid/si_sdr", "valid/si_sdri"} <= set(
        lines[0]
    )
    assert "tpsa" in (run / "config.yaml").read_text()
    assert (run / ".hydra" / "overrides.yaml").exists()
    assert "best valid/loss" in (run / "train.log").read_text()
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    events = EventAccumulator(str(run / "tensorboard"))
    events.Reload()
    tags = events.Tags()
    assert "valid/si_sdri" in tags["scalars"]
    assert "example_0" in tags["images"]
    assert {"example_0/mixture", "example_0/voice"} <= set(tags["audio"])


@pytest.mark.parametrize(
    ("layout", "fixture", "options", "names"),
    [
        ("stems", "stems", ["data.sample_rate=8000", "stft=speech"], ["low", "high"]),
        ("wsj0mix", "wsj0mix", [], ["s1", "s2"]),
        ("wsj0mix", "wsj0mix3", ["data.sources=[s1,s2,s3]"], ["s1", "s2", "s3"]),
        ("pools", "pools", ["data.examples=2"], ["s1", "s2"]),
    ],
)
def test_every_file_layout_trains_evaluates_and_infers(layout, fixture, options, names, request, tmp_path, call):
    named = [f"data={layout}", f"data.root={request.getfixturevalue(fixture)}", f"data.sources=[{','.join(names)}]"]
    code, out, err = call(train, "debug=fast", *named, *options, *TINY, "run=r", cwd=tmp_path)
    assert code == 0, err
    assert out.splitlines()[-1] == f"run: {tmp_path / 'r'}"
    code, out, err = call(evaluate, "run=r", "device=cpu", cwd=tmp_path)
    assert code == 0, err
    assert re.search(rf"mixture as estimate +{names[0]}\s+-?[\d.]+\s+-?[\d.]+\s+0.00\s+0.00", out)
    mixture = write(tmp_path / "mix.wav", tone(300, channels=2), 16000)
    code, out, err = call(infer, "-c", "r", "-o", "out", "--device", "cpu", str(mixture), cwd=tmp_path)
    assert code == 0, err
    assert sorted(path.name for path in (tmp_path / "out" / "mix").iterdir()) == sorted(f"{n}.wav" for n in names)


@pytest.mark.parametrize("layout", ["stems", "pools"])
def test_a_training_is_the_same_with_every_cache(layout, request, tmp_path, call):
    root = request.getfixturevalue(layout)
    sources = ["data.sources=[low,high]", "data.sample_rate=8000", "stft=speech"] if layout == "stems" else []
    arguments = ["debug=fast", f"data={layout}", f"data.root={root}", *sources, *TINY, "trainer.steps_per_epoch=4"]
    arguments.append("trainer.precision=fp32")
    facts = {}
    for cache in ("none", "audio", "spectrogram"):
        folder = f"cache.folder={tmp_path / 'cache'}"
        code, _, err = call(train, *arguments, f"cache={cache}", folder, f"run={cache}", cwd=tmp_path)
        assert code == 0, err
        facts[cache] = json.loads((tmp_path / cache / "metrics.jsonl").read_text().splitlines()[-1])
        for name in ("train/loss", "train/gradient_norm", "valid/loss", "valid/si_sdr"):
            exact = cache != "spectrogram" or layout == "stems"  # clips that are joined are only the same to rounding
            assert facts[cache][name] == pytest.approx(facts["none"][name], rel=0 if exact else 1e-4, abs=0)
    code, _, err = call(evaluate, "run=spectrogram", "device=cpu", cwd=tmp_path)
    assert code == 0, err


@pytest.mark.slow
def test_a_sweep_trains_every_combination(program, tmp_path):
    done = program("separate-train", "-m", "optimizer.lr=1e-3,3e-4", "batch_size=1,2", *TINY_TOY, cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    runs = sorted(path.parents[1] for path in tmp_path.glob("multirun/*/*/*/checkpoints/best.ckpt"))
    assert len(runs) == 4
    tried = [checkpoint.read(run / "checkpoints" / "best.ckpt")["config"] for run in runs]
    assert {(c["optimizer"]["lr"], c["batch_size"]) for c in tried} == {(1e-3, 1), (1e-3, 2), (3e-4, 1), (3e-4, 2)}
    assert done.stdout.splitlines()[-1] == f"sweep: {runs[0].parent.relative_to(tmp_path)}"


def test_own_configs_are_added_from_a_folder(call, tmp_path):
    write_yaml = tmp_path / "mine" / "experiment" / "wide.yaml"
    write_yaml.parent.mkdir(parents=True)
    write_yaml.write_text("# @package _global_\nmodel: {units: 24}\ntrainer: {clip: 1.5}\n")
    arguments = [a for a in TINY_TOY if not a.startswith("model.units")]
    code, _, err = call(train, "--config-dir", "mine", "experiment=wide", *arguments, "run=r", cwd=tmp_path)
    assert code == 0, err
    config = checkpoint.read(tmp_path / "r" / "checkpoints" / "last.ckpt")["config"]
    assert (config["model"]["units"], config["trainer"]["clip"]) == (24, 1.5)


# -------------------------------------------------------------------------------------------------------------- resume

LONGER = [a for a in TINY_TOY if a != "debug=fast"] + [
    "batch_size=2", "data.excerpt=1", "trainer.epochs=3", "trainer.steps_per_epoch=30", "model.layers=2", "seed=7",
]  # fmt: skip


def start(folder: Path, *arguments: str) -> "subprocess.Popen[str]":
    path = Path(sys.executable).parent / "separate-train"
    return subprocess.Popen(
        [str(path), *arguments], cwd=folder, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )


def wait_for(path: Path, process: "subprocess.Popen[str]") -> None:
    deadline = time.monotonic() + 100
    while not path.exists():
        assert process.poll() is None, process.communicate()
        assert time.monotonic() < deadline
        time.sleep(0.002)


@pytest.mark.slow
def test_a_run_killed_within_an_epoch_and_resumed_equals_an_uninterrupted_one(tmp_path, call):
    """SIGKILL inside the second epoch; weights and metrics must come out the same, bit for bit."""
    often = [*LONGER, "trainer.save_every=1e-6"]  # after every step
    code, _, err = call(train, *often, "run=whole", cwd=tmp_path)
    assert code == 0, err
    process = start(tmp_path, *often, "hydra.run.dir=killed", "resume=auto")  # resume=auto starts where nothing is
    wait_for(tmp_path / "killed" / "checkpoints" / "best.ckpt", process)
    last = tmp_path / "killed" / "checkpoints" / "last.ckpt"
    while checkpoint.read(last)["training"]["step"] < 35:
        assert process.poll() is None, process.communicate()
    process.send_signal(signal.SIGKILL)
    process.communicate()
    assert 35 <= checkpoint.read(last)["training"]["step"] < 60, "not killed inside the second epoch"
    code, _, err = call(train, *often, "hydra.run.dir=killed", "resume=auto", cwd=tmp_path)  # and goes on here
    assert code == 0, err
    for name in ("last", "best"):
        whole, killed = (
            checkpoint.read(tmp_path / run / "checkpoints" / f"{name}.ckpt") for run in ("whole", "killed")
        )
        assert whole["training"]["step"] == killed["training"]["step"]
        for key, value in whole["model"].items():
            assert torch.equal(value, killed["model"][key]), key
        assert whole["training"]["best"] == killed["training"]["best"]
    epochs = [json.loads(line) for line in (tmp_path / "killed" / "metrics.jsonl").read_text().splitlines()]
    wanted = [json.loads(line) for line in (tmp_path / "whole" / "metrics.jsonl").read_text().splitlines()]
    timed = {"minutes", "train/steps_per_second", "train/examples_per_second", "train/waiting", "train/memory"}
    for line, other in zip(epochs, wanted, strict=True):
        assert {k: v for k, v in line.items() if k not in timed} == {k: v for k, v in other.items() if k not in timed}


def test_a_run_cannot_be_resumed_with_other_data(stems, call, tmp_path):
    data = ["data=stems", f"data.root={stems}", "data.sources=[low,high]", "data.sample_rate=8000", "stft=speech"]
    code, _, err = call(train, "debug=fast", *data, *TINY, "run=r", cwd=tmp_path)
    assert code == 0, err
    write(stems / "train" / "song 000" / "low.wav", tone(200, channels=2))
    write(stems / "train" / "song 000" / "high.wav", tone(900, channels=2))
    said = refusal(call(train, "run=r", "resume=true", "trainer.epochs=2", cwd=tmp_path), 2)
    assert "the data now gives 20 training and 2 validation examples, and gave 18 and 2" in said


@pytest.mark.slow
@pytest.mark.parametrize("workers", [0, 1])
def test_ctrl_c_saves_names_the_command_to_resume_and_loses_nothing(tmp_path, call, workers):
    longer = [*LONGER, f"data.workers={workers}"]
    process = start(tmp_path, *longer, "run=stopped")
    wait_for(tmp_path / "stopped" / "checkpoints" / "last.ckpt", process)
    process.send_signal(signal.SIGINT)
    out, err = process.communicate(timeout=60)
    assert process.returncode == 130, (out, err)
    assert "Traceback" not in err
    found = re.search(r"separate-train run=(\S+) resume=true", err)
    assert found, err
    stopped = checkpoint.read(tmp_path / "stopped" / "checkpoints" / "last.ckpt")
    assert 30 <= stopped["training"]["step"] < 90
    code, _, err = call(train, f"run={found[1]}", "resume=true", cwd=tmp_path)
    assert code == 0, err
    code, _, err = call(train, *longer, "run=whole", cwd=tmp_path)
    assert code == 0, err
    whole, resumed = (checkpoint.read(tmp_path / run / "checkpoints" / "last.ckpt") for run in ("whole", "stopped"))
    assert all(torch.equal(value, resumed["model"][key]) for key, value in whole["model"].items())


def test_a_folder_that_holds_a_run_is_not_overwritten(trained, call, tmp_path):
    run = trained / "runs" / "tiny"
    before = (run / "checkpoints" / "last.ckpt").read_bytes()
    said = refusal(call(train, *TINY_TOY, f"run={run}", cwd=tmp_path), 2)
    assert "holds a run already; go on with it by resume=true" in said
    said = refusal(call(train, f"run={run}", "resume=true", "optimizer.lr=0.5", cwd=tmp_path), 2)
    assert "optimizer.lr=0.5 is not what this run was started with (0.001)" in said
    assert (run / "checkpoints" / "last.ckpt").read_bytes() == before
    said = refusal(call(train, "run=nothing", "resume=true", cwd=tmp_path), 2)
    assert "holds no run to go on with" in said
    code, out, _ = call(train, f"run={run}", "resume=true", cwd=tmp_path)
    assert code == 0
    assert "the run had ended already, after 1 epochs; to go on, raise the limit that ended it" in out


def test_a_resumed_checkpoint_builds_only_what_is_trusted(trained, call, tmp_path):
    contents = checkpoint.read(trained / "runs" / "tiny" / "checkpoints" / "last.ckpt")
    contents["config"]["model"]["_target_"] = "subprocess.Popen"
    checkpoint.save(tmp_path / "evil" / "checkpoints" / "last.ckpt", contents)
    said = refusal(call(train, "run=evil", "resume=true", cwd=tmp_path), 2)
    assert "subprocess.Popen comes from a package that is not trusted" in said


def test_an_own_network_trains_and_is_loaded_when_trusted(call, tmp_path, monkeypatch):
    (tmp_path / "mynets.py").write_text(
        "import torch\n"
        "class Gain(torch.nn.Module):\n"
        "    provides = ('waveforms',)\n"
        "    def __init__(self, sources: int, start: float = 0.5):\n"
        "        super().__init__()\n"
        "        self.gain = torch.nn.Parameter(torch.full((sources, 1, 1), start))\n"
        "    def forward(self, mixture):\n"
        "        return {'waveforms': mixture.unsqueeze(1) * self.gain}\n"
    )
    write_yaml = tmp_path / "mine" / "model" / "gain.yaml"
    write_yaml.parent.mkdir(parents=True)
    write_yaml.write_text("_target_: mynets.Gain\nstart: 0.25\n")
    monkeypatch.syspath_prepend(tmp_path)
    own = [a for a in TINY_TOY if not a.startswith("model.")]
    code, _, err = call(train, "--config-dir", "mine", "model=gain", "loss=si_sdr", *own, "run=r", cwd=tmp_path)
    assert code == 0, err
    said = refusal(call(train, "--config-dir", "mine", "model=gain", *own, "run=r2", cwd=tmp_path), 2)
    assert "SpectralLoss needs masks, and Gain provides waveforms. This model works with loss=log_mse" in said
    said = refusal(call(evaluate, "run=r", "device=cpu", cwd=tmp_path), 2)
    assert "mynets.Gain comes from a package that is not trusted" in said
    code, _, err = call(evaluate, "run=r", "device=cpu", "trust=[mynets]", cwd=tmp_path)
    assert code == 0, err
    assert separate.load(tmp_path / "r", trust=["mynets"]).network.gain.shape == (3, 1, 1)


# ------------------------------------------------------------------------------------------------------------ evaluate


def test_the_validation_score_is_the_score_of_separate_eval(call, tmp_path):
    songs = [*TINY_TOY, "data.excerpt=8"]  # an excerpt is a whole song, so both see the same signals
    code, _, err = call(train, *songs, "run=r", cwd=tmp_path)
    assert code == 0, err
    code, out, err = call(evaluate, "run=r", "split=valid", "device=cpu", cwd=tmp_path)
    assert code == 0, err
    assert f"checkpoint: r{os.sep}checkpoints" in out
    scores = json.loads((tmp_path / "r" / "eval" / "valid" / "summary.json").read_text())["scores"]
    validated = json.loads((tmp_path / "r" / "metrics.jsonl").read_text())
    for metric in ("si_sdr", "si_sdri", "snr"):
        assert scores["model"]["all"][metric]["mean"] == pytest.approx(validated[f"valid/{metric}"], abs=1e-4)


def test_the_table_has_model_mixture_and_tpsa_mask(trained, call):
    code, out, err = call(evaluate, "device=cpu", cwd=trained)  # the newest run
    assert code == 0, err
    folder = trained / "runs" / "tiny" / "eval" / "test"
    summary = json.loads((folder / "summary.json").read_text())
    assert summary["tracks"] == 2
    scores = summary["scores"]
    for method in ("model", "mixture as estimate", "IBM", "IRM", "tPSA mask"):
        assert method in out
        assert set(scores[method]) == {"voice", "chords", "drums", "all"}
    assert scores["mixture as estimate"]["all"]["si_sdri"] == {"mean": 0.0, "median": 0.0}
    assert scores["tPSA mask"]["all"]["si_sdri"]["mean"] > 10
    rows = (folder / "scores.csv").read_text().splitlines()
    assert rows[0] == "track,source,method,metric,score"
    assert len(rows) == 1 + 2 * 3 * 5 * len(summary["metrics"])
    page = (folder / "report.html").read_text()
    assert page.count("<audio") == 2 * (1 + 2 * 3)  # the mixture, the references and the estimates of both tracks
    assert not re.search(r"(src|href)=.https?:", page)  # it stands alone
    assert (folder / "table.md").exists() and (folder / "table.tex").exists()
    assert not (folder / "unfinished").exists()


def test_other_data_with_other_sources_is_refused(trained, call, wsj0mix):
    said = refusal(call(evaluate, "data=wsj0mix", f"data.root={wsj0mix}", "device=cpu", cwd=trained), 2)
    assert "the separator gives voice, chords, drums and the data has s1, s2" in said


# --------------------------------------------------------------------------------------------------------------- infer

NAMES = ["plain.wav", "a=b, c d.wav", "naïve – 音.flac"]


@pytest.fixture
def recordings(tmp_path) -> Path:
    for index, name in enumerate(NAMES):
        audio = tone(300, 1.7, rate=44100, channels=index + 1) + 0.05 * np.random.default_rng(0).standard_normal((1, 1))
        write(tmp_path / "in" / name, audio, 44100)
    return tmp_path / "in"


def test_stems_have_the_format_of_the_input_and_agree_with_python(trained, call, recordings, tmp_path):
    code, out, err = call(infer, "-c", str(trained / "runs" / "tiny"), "-o", "out", "--device", "cpu",
                          *(str(recordings / name) for name in NAMES), cwd=tmp_path)  # fmt: skip
    assert code == 0, err
    separator = separate.load(trained / "runs" / "tiny")
    for name in NAMES:
        audio, rate = soundfile.read(recordings / name, dtype="float32", always_2d=True)
        expected = separator(audio.T, rate)
        for source in separator.sources:
            path = tmp_path / "out" / Path(name).stem / f"{source}.wav"
            stem, stem_rate = soundfile.read(path, dtype="float32", always_2d=True)
            assert (stem.shape, stem_rate) == (audio.shape, rate)
            assert soundfile.info(path).subtype == "FLOAT"
            assert np.array_equal(stem.T, expected[source].numpy())
        assert str(Path("out") / Path(name).stem) in out
    assert sorted(p.name for p in (tmp_path / "out").iterdir()) == sorted(Path(name).stem for name in NAMES)


def test_a_folder_keeps_its_shape_and_pcm_gets_one_common_gain(trained, call, tmp_path):
    loud = 30 * tone(300, 1.0)
    write(tmp_path / "in" / "deep" / "loud.wav", loud, subtype="FLOAT")
    run = str(trained / "runs" / "tiny")
    for kind in ("float32", "pcm16"):
        code, out, err = call(
            infer, "-c", run, "-o", kind, "--device", "cpu", "--format", kind, "in", cwd=tmp_path
        )  # fmt: skip
        assert code == 0, err
    gain = float(re.search(r"all lowered by one gain of ([\d.]+)", out)[1])
    for source in ("voice", "chords", "drums"):
        plain, _ = soundfile.read(tmp_path / "float32" / "deep" / "loud" / f"{source}.wav")
        lowered, _ = soundfile.read(tmp_path / "pcm16" / "deep" / "loud" / f"{source}.wav")
        assert soundfile.info(tmp_path / "pcm16" / "deep" / "loud" / f"{source}.wav").subtype == "PCM_16"
        np.testing.assert_allclose(lowered, plain * gain, atol=2e-3 * gain * np.abs(plain).max() + 2**-15)
        assert np.abs(lowered).max() <= 1


def test_bad_input_is_named_all_at_once_and_nothing_is_written(trained, call, tmp_path):
    good = write(tmp_path / "good.wav", tone(300))
    for name, samples in (("empty.wav", 0), ("one.wav", 1)):
        write(tmp_path / name, np.zeros(samples))
    (tmp_path / "text.wav").write_text("text")
    cut = write(tmp_path / "cut.wav", tone(300))
    cut.write_bytes(cut.read_bytes()[:9000])
    names = ["good.wav", "empty.wav", "one.wav", "text.wav", "cut.wav", "nowhere.wav"]
    result = call(infer, "-c", str(trained / "runs" / "tiny"), "-o", "out", *names, cwd=tmp_path)
    assert result[0] == 1
    assert "Traceback" not in result[2]
    for words in ("empty.wav: holds 0 samples", "one.wav: holds 1 samples", "text.wav: not readable as audio",
                  "cut.wav: truncated", "nowhere.wav: is missing"):  # fmt: skip
        assert words in result[2]
    assert "good.wav" not in result[2]
    assert not (tmp_path / "out").exists()
    samples = tone(300)
    samples[9000] = np.nan
    write(tmp_path / "nan.wav", samples, subtype="FLOAT")
    result = call(infer, "-c", str(trained / "runs" / "tiny"), "-o", "out", "nan.wav", cwd=tmp_path)
    assert "nan.wav: NaN or infinite sample at 9000" in refusal(result, 1)
    assert list((tmp_path / "out").iterdir()) == []
    assert good.exists()


def test_extreme_headers_are_separated_or_refused_in_bounded_memory(trained, tmp_path):
    """655,351 Hz shares no factor with any usual rate: the kernel of that ratio would take 42 GB."""
    for rate in (655351, 2**31 - 1):
        path = write(tmp_path / f"{rate}.wav", tone(300, channels=2), subtype="FLOAT")
        raw = bytearray(path.read_bytes())
        raw[24:28] = rate.to_bytes(4, "little")
        path.write_bytes(raw)
    arguments = ["-c", str(trained / "runs" / "tiny"), "-o", "out", "--device", "cpu"]
    program = str(Path(sys.executable).parent / "separate-infer")
    measured = (  # in a small process, since a child begins with the peak of the one that forked it
        "import resource, subprocess, sys; code = subprocess.call(sys.argv[1:]); "
        "print(resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss); sys.exit(code)"
    )
    command = [sys.executable, "-c", measured, program, *arguments, "655351.wav"]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert int(done.stdout.split()[-1]) < 1.5e6  # KB
    stem, rate = soundfile.read(tmp_path / "out" / "655351" / "voice.wav")
    assert (stem.shape, rate) == ((16000, 2), 655351)
    done = subprocess.run([program, *arguments, f"{2**31 - 1}.wav"], cwd=tmp_path, capture_output=True, text=True)
    assert done.returncode == 1
    assert "its header claims a sample rate of 2147483647 Hz, and files of 1000 to 1000000 Hz are read" in done.stderr


def test_stems_that_do_not_fit_on_the_disk_leave_nothing_behind(trained, tmp_path):
    """A limit on the size of files stands in for a full disk: writing fails in the same place."""
    import resource

    write(tmp_path / "a.wav", tone(300))
    arguments = ["-c", str(trained / "runs" / "tiny"), "-o", "out", "--device", "cpu", "a.wav"]
    done = subprocess.run(
        [str(Path(sys.executable).parent / "separate-infer"), *arguments],
        cwd=tmp_path,
        capture_output=True,
        text=True,
        preexec_fn=lambda: resource.setrlimit(resource.RLIMIT_FSIZE, (30000, 30000)),
    )
    assert done.returncode == 1
    assert "a.wav could not be written to out/a (is the disk full?)" in done.stderr
    assert "Traceback" not in done.stderr
    assert list((tmp_path / "out").iterdir()) == []


def test_an_input_is_never_overwritten_and_stems_are_not_separated_again(trained, call, tmp_path):
    run = ["-c", str(trained / "runs" / "tiny"), "--device", "cpu"]
    path = write(tmp_path / "voice" / "voice.wav", tone(300))
    before = path.read_bytes()
    said = refusal(call(infer, *run, "-o", ".", "voice/voice.wav", cwd=tmp_path), 2)
    assert "would overwrite the input voice/voice.wav" in said
    assert path.read_bytes() == before
    for _ in range(2):
        code, out, err = call(infer, *run, ".", cwd=tmp_path)
        assert code == 0, err
        assert out.count("->") == 1


@pytest.mark.parametrize(
    ("arguments", "code", "message"),
    [
        (["-c", "nowhere", "a.wav"], 2, "nowhere does not exist; give a run's folder or a checkpoint"),
        (["-c", "a.wav", "a.wav"], 2, "a.wav is not a checkpoint of separate-train"),
        (["a.wav"], 2, "there is no run with a best checkpoint under runs/ or multirun/"),
        (["a.wav", "b/a.wav"], 2, "a.wav and b/a.wav would both be written to separated/a"),
        (["--chunk", "2", "--overlap", "1.5", "a.wav"], 2, "--overlap=1.5 must be at most half of --chunk=2"),
        (["--chunk", "inf", "a.wav"], 2, "--chunk=inf"),
        (["empty"], 2, "empty holds no audio files"),
        (["-o", "a.wav", "b"], 2, "a.wav is a file"),
    ],
)
def test_infer_names_missing_and_invalid_arguments(call, tmp_path, arguments, code, message):
    write(tmp_path / "a.wav", tone(300))
    write(tmp_path / "b" / "a.wav", tone(300))
    (tmp_path / "empty").mkdir()
    assert message in refusal(call(infer, *arguments, cwd=tmp_path), code)


# ----------------------------------------------------------------------------------------------------------- bad input


@pytest.mark.parametrize(
    ("arguments", "code", "message"),
    [
        (["model=transformer"], 2, "there is no model=transformer; did you mean attractor? (there are attractor, bgru"),
        (["optimizer.lrr=1"], 2, "there is no key optimizer.lrr; did you mean lr?"),
        (["summary=true"], 2, "there is no key summary yet; add it with +summary=VALUE"),
        (["batchsize=1"], 2, "there is no key batchsize; did you mean batch_size?"),
        (["batch_size=0"], 2, "batch_size=0 must be at least 1"),
        (
            ["loss=si_sdr", "target=psa"],
            2,
            "SISDRLoss compares a waveform and the target is a spectrogram; it works with target=waveform",
        ),
        (["data=stems"], 2, "data.root"),
        (["data=stems", "data.root=nowhere"], 1, "data.root=nowhere is not a folder"),
        (["device=cuda:77"], 2, "device=cuda:77 is not on this machine; use device=auto"),
        (["device=gpu"], 2, "device=gpu is unknown; choose from auto"),
        (["batch_size"], 2, "batch_size is not KEY=VALUE"),
        (["scheduler=null"], 2, "a group is chosen by a name, as in scheduler=none"),
        (["experiment=mine"], 2, "there is no experiment=mine"),
        (["run=file"], 1, "file"),
    ],
)
def test_impossible_trainings_are_refused_in_one_sentence(call, tmp_path, arguments, code, message):
    (tmp_path / "file").touch()
    assert message in refusal(call(train, *arguments, cwd=tmp_path), code)
    assert [path.name for path in tmp_path.iterdir()] == ["file"]


# ------------------------------------------------------------------------------------------------------------- start-up


@pytest.mark.parametrize(
    ("module", "arguments"),
    [
        ("infer", ["--help"]),
        ("train", ["--help"]),
        ("train", ["--cfg", "job"]),
        ("evaluate", ["--help"]),
    ],
)
def test_help_does_not_import_torch(module, arguments, tmp_path):
    script = (
        f"import sys; sys.argv = ['x', *{arguments}]\n"
        f"from separate.cli.{module} import main\n"
        "try: main()\n"
        "except SystemExit: pass\n"
        "sys.exit('torch' in sys.modules)"
    )
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert len(done.stdout) > 500
    assert list(tmp_path.iterdir()) == []


def test_importing_separate_does_not_import_torch():
    script = "import sys, separate; separate.__version__; sys.exit('torch' in sys.modules or 'numpy' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", script]).returncode == 0
