"""The loggers TensorBoard, Weights & Biases and MLflow."""

import os
import subprocess
import sys

import numpy as np
import pytest
import torch

from separate.cli import train
from separate.config import LoggerConfig
from separate.figures import SeparatedExamples, embeddings, embeddings_figure
from separate.parts import build_separator
from separate.training.interruption import Interruption, Stopped
from separate.training.runlog import RunLog
from separate.training.trainer import fit
from tests.conftest import TINY_TOY
from tests.test_pipeline import refusal
from tests.test_trainer import start
from tests.tiny import batch_of, config_of

LOGGED = [a for a in TINY_TOY if not a.startswith("logger.")]


def events_of(folder):
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    events = EventAccumulator(str(folder / "tensorboard"), size_guidance={"scalars": 0, "audio": 0, "images": 0})
    events.Reload()
    return events


def test_tensorboard_has_curves_within_an_epoch_the_options_and_the_final_score(tmp_path, call):
    code, _, err = call(
        train, *LOGGED, "trainer.steps_per_epoch=6", "logger.steps=2", "loss=sum", "target=waveform",
        "+loss.terms={waveform_l1: 1.0, si_sdr: 0.1}", "run=r", cwd=tmp_path,
    )  # fmt: skip
    assert code == 0, err
    events = events_of(tmp_path / "r")
    scalars = {tag: [point.step for point in events.Scalars(tag)] for tag in events.Tags()["scalars"]}
    assert scalars["step/loss"] == scalars["step/learning_rate"] == [2, 4, 6]
    assert {
        "step/gradient_norm",
        "step/waveform_l1",
        "step/si_sdr",
        "train/waveform_l1",
        "train/waiting",
        "learning_rate",
    } <= set(scalars)
    assert {"train/examples_per_second", "train/memory", "train/skipped", "valid/si_sdri"} <= set(scalars)
    assert scalars["best/valid/loss"] == [6]
    means = [point.value for point in events.Scalars("step/loss")]
    assert np.mean(means) == pytest.approx(events.Scalars("train/loss")[0].value, rel=1e-5)
    assert "_hparams_/session_start_info" in events.summary_metadata
    assert b"optimizer.lr" in events.summary_metadata["_hparams_/session_start_info"].plugin_data.content


def test_a_run_stopped_within_an_epoch_and_resumed_has_no_doubled_points(tmp_path, monkeypatch):
    def stop_after(step):
        def check(self):
            if state.step == step:
                self.reason = "interrupted"
            Interruption_check(self)

        return check

    Interruption_check = Interruption.check
    for last in (3, 7, None):
        state, training = start(tmp_path, epochs=2, steps_per_epoch=4)
        if last != 3:
            from separate import checkpoint

            state.restore(checkpoint.read(tmp_path / "checkpoints" / "last.ckpt"))
        training.log = RunLog(tmp_path, LoggerConfig(steps=1, examples=0), state.epoch, state.step)
        monkeypatch.setattr(Interruption, "check", stop_after(last))
        if last is None:
            fit(state, training)
        else:
            with pytest.raises(Stopped):
                fit(state, training)
        training.log.close()
    events = events_of(tmp_path)
    assert [point.step for point in events.Scalars("valid/loss")] == [4, 8]
    steps = [point.step for point in events.Scalars("step/loss")]
    assert steps == sorted(set(steps))
    assert set(range(1, 9)) - set(steps) <= {3, 7}  # the point of the step after which the run stopped


def test_mixture_references_and_estimates_are_heard_at_one_level(tmp_path, call):
    code, _, err = call(train, *LOGGED, "logger.examples=1", "run=r", cwd=tmp_path)
    assert code == 0, err
    events = events_of(tmp_path / "r")
    tags = events.Tags()["audio"]
    assert set(tags) == {f"example_0/{name}" for name in ("mixture", *names_with_references(tags))}
    import io

    import soundfile

    heard = {
        tag.partition("/")[2]: soundfile.read(io.BytesIO(events.Audio(tag)[0].encoded_audio_string))[0] for tag in tags
    }
    references = sum(audio for name, audio in heard.items() if name.endswith("_reference"))
    assert np.abs(references - heard["mixture"]).max() < 5 / 2**15  # the references add up to the mixture
    assert max(np.abs(audio).max() for audio in heard.values()) == pytest.approx(1.0, abs=1e-3)


def names_with_references(tags):
    names = {tag.partition("/")[2] for tag in tags} - {"mixture"}
    sources = {name for name in names if not name.endswith("_reference")}
    assert names == sources | {f"{name}_reference" for name in sources}
    return names


def test_mlflow_keeps_options_curves_and_figures_and_a_resumed_run_goes_on(tmp_path, call, monkeypatch):
    from mlflow.tracking import MlflowClient

    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    own = [*LOGGED, "logger.tensorboard=false", "logger.mlflow=true", "logger.project=toys", "run=r"]
    for arguments in (own, ["run=r", "resume=true", "trainer.epochs=2"]):
        code, _, err = call(train, *arguments, cwd=tmp_path)
        assert code == 0, err
    client = MlflowClient(f"sqlite:///{tmp_path}/r/mlflow.db")
    (run,) = client.search_runs([client.get_experiment_by_name("toys").experiment_id])
    assert run.info.status == "FINISHED"
    assert run.data.params["batch_size"] == "2"
    assert [point.step for point in client.get_metric_history(run.info.run_id, "valid/loss")] == [2, 4]
    assert any(file.path == "example_0" for file in client.list_artifacts(run.info.run_id))


def test_mlflow_marks_a_run_that_was_stopped_as_failed(tmp_path, call, monkeypatch):
    from mlflow.tracking import MlflowClient

    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    own = [*LOGGED, "logger.tensorboard=false", "logger.mlflow=true", "logger.project=toys", "run=r"]
    code, _, _ = call(train, *own, "trainer.max_hours=1e-9", cwd=tmp_path)
    client = MlflowClient(f"sqlite:///{tmp_path}/r/mlflow.db")
    (run,) = client.search_runs([client.get_experiment_by_name("toys").experiment_id])
    assert (code, run.info.status) == (75, "FAILED")


def test_weights_and_biases_keeps_a_run_offline(tmp_path):
    environment = {**os.environ, "WANDB_MODE": "offline", "WANDB_SILENT": "true"}
    arguments = [*LOGGED, "logger.tensorboard=false", "logger.wandb=true", "logger.examples=1", "run=r"]
    done = subprocess.run(
        [sys.executable, "-m", "separate.cli.train", *arguments],
        cwd=tmp_path, env=environment, capture_output=True, text=True, timeout=300,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    (run,) = (tmp_path / "r" / "wandb").glob("offline-run-*")
    written = b"".join(file.read_bytes() for file in run.rglob("*.wandb"))
    assert b"valid/loss" in written and b"train/gradient_norm" in written and b"final/best/valid/loss" in written


@pytest.mark.parametrize("package", ["wandb", "mlflow"])
def test_a_logger_that_is_not_installed_is_named_with_the_command_that_installs_it(
    package, tmp_path, call, monkeypatch
):
    monkeypatch.setitem(sys.modules, {"wandb": "wandb", "mlflow": "mlflow.tracking"}[package], None)
    said = refusal(call(train, *LOGGED, f"logger.{package}=true", "run=r", cwd=tmp_path), 2)
    assert f"logger.{package}=true needs the package {package}; install it with pip install 'separate[loggers]'" in said


def test_embeddings_are_drawn_for_networks_that_have_them_and_separated_ones_apart():
    separator = build_separator(config_of("deep_clustering", interchangeable=True)).eval()
    batch = batch_of(separator.stft)
    with torch.inference_mode():
        separation = separator.separate(batch)
    drawn = dict(embeddings(SeparatedExamples(separator, [separation, separation], ["a", "b"])))
    assert list(drawn) == ["embeddings_0", "embeddings_1"]
    owners = batch.source_spectrograms[0].abs().square().mean(1).argmax(0)
    ideal = torch.nn.functional.one_hot(owners, 4).float().unsqueeze(0)  # an axis of its own for each source
    separation.heads = {"embeddings": ideal}
    figure = embeddings_figure(separation, ["a", "b"])
    (axis,) = figure.axes
    clouds = [line.get_xydata() for line in axis.lines]
    assert all(len(np.unique(cloud.round(4), axis=0)) == 1 for cloud in clouds)
    assert np.linalg.norm(clouds[0][0] - clouds[1][0]) == pytest.approx(2**0.5, rel=1e-4)
    blind = build_separator(config_of("blstm")).eval()
    assert not list(embeddings(SeparatedExamples(blind, [blind.separate(batch_of(blind.stft))], ["a", "b"])))
