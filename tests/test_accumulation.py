"""Gradient accumulation: the parts of a batch add up to the step of the whole."""

import pytest
import torch

from separate.cli import train
from separate.config import TrainerConfig
from separate.data.batch import Batch
from separate.data.example import Example
from separate.data.mixing.raw_batch import collate
from separate.parts import build_loss, build_separator
from separate.training.state import State, Training
from separate.training.step import train_step
from tests.conftest import TINY_TOY
from tests.test_device import STEPS, config_for
from tests.test_trainer import first_batch, start


@pytest.mark.parametrize("cache", ["none", "spectrogram"])
def test_a_batch_is_split_into_parts_in_order(cache, tmp_path):
    state, training = start(tmp_path)
    whole = training.loss.prepare(first_batch(training).to(torch.device("cpu"), state.separator.stft))
    if cache == "spectrogram":
        whole = Batch.of_spectrograms(whole.spectrogram, whole.source_spectrograms, 4000, whole.tracks, whole.stft)
    assert [len(part) for part in whole.split(3)] == [2, 1, 1]
    assert len(whole.split(100)) == 4
    assert whole.split(1) == [whole]
    for name in ("mixture", "sources", "spectrogram", "source_spectrograms"):
        joined = torch.cat([getattr(part, name) for part in whole.split(3)])
        torch.testing.assert_close(joined, getattr(whole, name))
    assert [track for part in whole.split(3) for track in part.tracks] == whole.tracks


@pytest.mark.parametrize(
    ("model", "loss", "interchangeable"), [case for case in STEPS if case[0] in ("blstm", "attractor")]
)
def test_the_parts_of_a_batch_add_up_to_the_step_of_the_whole(model, loss, interchangeable, tmp_path):
    """For every loss, without dropout.  Running averages (the centres of attractors) see each part instead."""
    config = config_for(model, loss, interchangeable)
    config["model"].update(dropout=0.0, normalisation="none")
    generator = torch.Generator().manual_seed(0)
    signals = 0.1 * torch.randn(4, 2, 1, 320, generator=generator)
    raw = collate([Example("noise", signal.numpy()) for signal in signals])
    steps = []
    for parts in (1, 2, 4):
        torch.manual_seed(0)
        separator = build_separator(config).train()
        optimizer = torch.optim.SGD(separator.parameters(), lr=0.1)
        state = State(separator, optimizer, None, torch.amp.GradScaler("cpu", enabled=False))
        options = TrainerConfig(precision="fp32", clip=None, accumulate=parts)
        training = Training(
            loss=build_loss(config, separator),
            train=[],
            valid=[],
            options=options,
            batch_size=4,
            seed=0,
            workers=0,
            folder=tmp_path,
            config={},
        )
        torch.manual_seed(1)  # mixit draws its pairs
        metrics = train_step(state, training, raw)
        steps.append(
            [
                torch.tensor(list(dict(sorted(metrics.items())).values())),
                *(weight.detach().clone() for weight in separator.parameters()),
            ]
        )
    for split in steps[1:]:
        for ours, theirs in zip(split, steps[0], strict=True):
            torch.testing.assert_close(ours, theirs, rtol=5e-4, atol=1e-6)


def test_more_parts_than_examples_are_refused(call, tmp_path):
    code, _, err = call(train, *TINY_TOY, "batch_size=2", "trainer.accumulate=3", cwd=tmp_path)
    assert code == 2
    assert "trainer.accumulate=3 splits a batch into more parts than batch_size=2 has examples" in err
