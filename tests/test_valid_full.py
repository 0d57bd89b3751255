"""Validation of whole recordings: the scores of separate-eval, for any batch size."""

import json

import pytest

from separate import checkpoint
from separate.cli import evaluate, train
from separate.training.interruption import interruptible
from separate.training.validation import validate
from tests.conftest import TINY_TOY
from tests.test_trainer import start


@pytest.mark.parametrize("averages", [[], ["ema=0.5"]])
def test_the_scores_of_whole_recordings_are_those_of_separate_eval(call, tmp_path, averages):
    options = ["trainer.valid_full=true", "trainer.monitor=valid/si_sdr", "run=r"]
    code, _, err = call(train, *TINY_TOY, *options, *averages, cwd=tmp_path)
    assert code == 0, err
    line = json.loads((tmp_path / "r" / "metrics.jsonl").read_text().splitlines()[-1])
    code, _, err = call(evaluate, "run=r", "split=valid", cwd=tmp_path)
    assert code == 0, err
    scores = json.loads((tmp_path / "r" / "eval" / "valid" / "summary.json").read_text())["scores"]
    weights = checkpoint.read(tmp_path / "r" / "checkpoints" / "best.ckpt")["weights"]
    prefix = "valid" if weights == "raw" else f"valid_{weights}"
    for metric in ("si_sdr", "si_sdri", "snr"):
        assert line[f"{prefix}/{metric}"] == pytest.approx(scores["model"]["all"][metric]["mean"], abs=1e-4)


def test_whole_recordings_score_the_same_with_any_batch_size_and_not_as_excerpts(tmp_path):
    found = []
    for size, full in ((2, True), (5, True), (5, False)):
        state, training = start(tmp_path, valid_full=full)
        training.batch_size = size
        with interruptible() as interruption:
            found.append(validate(state, training, interruption))
    assert found[0]["valid/si_sdr"] == found[1]["valid/si_sdr"] != found[2]["valid/si_sdr"]
    assert found[1]["valid/loss"] == found[2]["valid/loss"]
