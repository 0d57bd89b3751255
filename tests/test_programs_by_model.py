"""Every model through the programs: trained, evaluated and used on a recording of another rate and channel count."""

import json

import pytest
import soundfile
from omegaconf import OmegaConf
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from separate import checkpoint
from separate.cli import evaluate, infer, train
from separate.config import shipped
from tests.conftest import tone, write
from tests.tiny import MODELS

QUICK = ["debug=fast", "data.tracks={train: 4, valid: 2, test: 2}", "logger.tensorboard=false", "device=cpu"]


def sized(model: str) -> list[str]:
    return [f"model={model}", *(f"model.{key}={value}".replace(" ", "") for key, value in MODELS[model].items())]


@pytest.mark.parametrize("model", MODELS)
def test_each_model_trains_under_its_own_loss_is_scored_and_separates(model, call, tmp_path):
    code, _, err = call(train, *QUICK, *sized(model), "logger.tensorboard=true", "run=r", cwd=tmp_path)
    assert code == 0, err
    code, out, err = call(evaluate, "run=r", "device=cpu", cwd=tmp_path)
    assert code == 0, err
    assert "tPSA mask" in out
    mixture = write(tmp_path / "mix.wav", tone(300, seconds=1.003, rate=11025, channels=2), 11025)
    code, out, err = call(infer, "-c", "r", "--device", "cpu", str(mixture), cwd=tmp_path)
    assert code == 0, err
    for stem in ("voice", "chords", "drums"):
        audio, rate = soundfile.read(tmp_path / "separated" / "mix" / f"{stem}.wav")
        assert (audio.shape, rate) == ((round(1.003 * 11025), 2), 11025)


def test_learned_filters_are_shown_in_tensorboard(call, tmp_path):
    code, _, err = call(train, *QUICK[:2], *sized("conv_tasnet"), "device=cpu", "run=r", cwd=tmp_path)
    assert code == 0, err
    events = EventAccumulator(str(tmp_path / "r" / "tensorboard"))
    events.Reload()
    assert {"filters/encoder", "example_0"} <= set(events.Tags()["images"])


def test_statistics_are_measured_once_and_kept(call, tmp_path):
    small = sized("blstm")
    code, _, err = call(train, *QUICK, *small, "model.normalisation=whiten", "run=r", cwd=tmp_path)
    assert code == 0, err
    first = checkpoint.read(tmp_path / "r" / "checkpoints" / "last.ckpt")["model"]
    shift = first["network.body.representation.normalise.shift"]
    assert shift.std() > 1  # dB between the mean levels of the frequencies
    code, _, err = call(train, "run=r", "resume=true", "trainer.epochs=2", cwd=tmp_path)
    assert code == 0, err
    second = checkpoint.read(tmp_path / "r" / "checkpoints" / "last.ckpt")["model"]
    assert (second["network.body.representation.normalise.shift"] == shift).all()


def test_the_parts_of_a_sum_are_logged(call, tmp_path):
    terms = "loss.terms={tpsa: 1, si_sdr: {weight: 0.1}}"
    code, _, err = call(train, *QUICK, *sized("blstm"), "loss=sum", terms, "run=r", cwd=tmp_path)
    assert code == 0, err
    line = json.loads((tmp_path / "r" / "metrics.jsonl").read_text())
    assert line["train/loss"] == pytest.approx(line["train/tpsa"] + 0.1 * line["train/si_sdr"], rel=1e-5)


def test_mixit_trains_more_estimates_than_sources_and_they_are_scored_by_the_best(pools, call, tmp_path):
    arguments = ["data=pools", f"data.root={pools}", "data.examples=2", "loss=mixit", "outputs=4", "run=r"]
    small = [*sized("conv_tasnet"), "debug=fast", "device=cpu", "logger.tensorboard=true"]
    code, _, err = call(train, *arguments, *small, cwd=tmp_path)
    assert code == 0, err
    code, _, err = call(evaluate, "run=r", "device=cpu", cwd=tmp_path)
    assert code == 0, err
    mixture = write(tmp_path / "mix.wav", tone(300))
    code, _, err = call(infer, "-c", "r", "--device", "cpu", str(mixture), cwd=tmp_path)
    assert code == 0, err
    assert len(list((tmp_path / "separated" / "mix").iterdir())) == 4
    code, _, err = call(train, *arguments[:3], "outputs=4", *small, "run=q", cwd=tmp_path)
    assert code == 2
    assert "SISDRLoss compares 2 sources with as many estimates, and outputs=4; leave outputs out" in err
    code, _, err = call(train, *arguments[:4], "outputs=3", *small, "run=q", cwd=tmp_path)
    assert code == 2
    assert "MixITLoss adds two mixtures of 2 sources each and needs 4 to 12 estimates" in err


def test_an_incompatible_pair_is_refused_before_data_is_read(call, tmp_path):
    code, _, err = call(train, "model=deep_clustering", "loss=tpsa", "data=stems", "data.root=nowhere", cwd=tmp_path)
    assert code == 2
    assert "SpectralLoss needs masks, and DeepClustering provides embeddings" in err
    assert "works with loss=attractor, dc, dc_weighted, dc_whitened, sum; this loss with model=attractor, bgru" in err


def test_the_printed_configuration_explains_each_key(call, tmp_path):
    for model, spec in shipped("model").items():
        code, out, err = call(train, f"model={model}", "--cfg", "job", cwd=tmp_path)
        assert code == 0, err
        section = out[out.index("\nmodel:") : out.index("\noptimizer:")]
        commented = {line.split(":")[0].strip() for line in section.splitlines() if "  # " in line}
        assert commented >= set(spec) - {"_target_", "defaults"}, model
    assert "batch_size: 16  # examples per step" in out
    assert OmegaConf.create(out).batch_size == 16
    code, out, err = call(evaluate, "--cfg", "job", cwd=tmp_path)
    assert "split: test  # test, valid or train" in out


def test_the_summary_trains_nothing_and_needs_no_data(call, tmp_path):
    small = sized("conv_tasnet")
    code, out, err = call(train, *small, "+summary=true", "data=stems", "data.root=nowhere", cwd=tmp_path)
    assert code == 0, err
    assert "multiply-accumulates" in out
    assert "run:" not in out
    assert list(tmp_path.iterdir()) == []
