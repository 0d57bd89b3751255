"""Gradient clipping: what a step of SGD moves is bounded by value, by norm, and by a percentile of earlier norms."""

from copy import deepcopy

import numpy as np
import pytest
import torch

from separate.config import TrainerConfig
from separate.training.clipping import largest_norm, percentile
from separate.training.step import flush, train_step
from tests.test_trainer import first_batch, start, weights

RATE = 100.0  # so large that the float32 rounding of the weights does not count


def moved(state, before) -> torch.Tensor:
    """The change of all parameters by a step, as one vector."""
    return torch.cat([(now - old).flatten() for now, old in zip(state.separator.parameters(), before, strict=True)])


def step(state, training, batch) -> tuple[torch.Tensor, float]:
    """The gradient that one step of SGD applied, and the gradient norm of the log."""
    before = [parameter.detach().clone() for parameter in state.separator.parameters()]
    norm = train_step(state, training, batch)["gradient_norm"]
    return -moved(state, before).detach() / RATE, norm


def sgd(folder, **options):
    state, training = start(folder, **options)
    state.optimizer = torch.optim.SGD(state.separator.parameters(), lr=RATE)
    return state, training, first_batch(training)


def test_a_gradient_is_clipped_to_a_norm_and_its_direction_stays(tmp_path):
    free, norm = step(*sgd(tmp_path, clip=None))
    clipped, logged = step(*sgd(tmp_path, clip=norm / 4))
    assert free.norm().item() == pytest.approx(norm, rel=1e-4)
    assert logged == pytest.approx(norm)
    torch.testing.assert_close(clipped, free / 4, rtol=1e-3, atol=1e-8)


def test_each_element_of_a_gradient_is_clipped_to_a_value(tmp_path):
    free, _ = step(*sgd(tmp_path, clip=None))
    value = free.abs().median().item()
    clipped, norm = step(*sgd(tmp_path, clip=None, clip_value=value))
    torch.testing.assert_close(clipped, free.clamp(-value, value), rtol=1e-3, atol=1e-7)
    assert norm == pytest.approx(clipped.norm().item(), rel=1e-4)  # the log has the norm that `clip` sees


@pytest.mark.parametrize("lags", [False, True])
def test_autoclip_clips_to_a_percentile_of_the_norms_before(lags, tmp_path):
    state, training, batch = sgd(tmp_path, clip="auto", clip_percentile=30.0)
    training.lags = lags
    norms = []
    for _ in range(8):
        known = list(state.norms)
        before = [parameter.detach().clone() for parameter in state.separator.parameters()]
        norms += [found["gradient_norm"] for found in [train_step(state, training, batch)] if found]
        bound = np.percentile(known, 30.0) if known else np.inf
        assert moved(state, before).norm().item() <= RATE * bound * (1 + 1e-3)
    norms += [found["gradient_norm"] for found in [flush(state, training)] if found]
    assert state.norms == sorted(norms)
    assert len(norms) == 8


def test_a_step_that_is_not_finite_leaves_no_norm(tmp_path):
    state, training, batch = sgd(tmp_path, clip="auto")
    batch.sources[0, 0, 0, 7] = torch.nan
    train_step(state, training, batch)
    assert state.norms == []


def test_a_resumed_run_clips_as_one_that_was_never_stopped(tmp_path):
    state, training, batch = sgd(tmp_path, clip="auto", clip_percentile=50.0)
    for _ in range(3):
        train_step(state, training, batch)
    saved = deepcopy(state.capture())
    resumed, _, _ = sgd(tmp_path, clip="auto", clip_percentile=50.0)
    resumed.restore(saved)
    assert len(resumed.norms) == 3
    for each in (state, resumed):
        torch.manual_seed(0)  # dropout
        for _ in range(3):
            train_step(each, training, batch)
    assert all(map(torch.equal, weights(state), weights(resumed)))
    assert state.norms == resumed.norms
    del saved["training"]["norms"]  # a run from before there was AutoClip
    resumed.restore(saved)
    assert resumed.norms == []


@pytest.mark.parametrize("percent", [0.0, 10.0, 37.5, 100.0])
def test_percentiles_are_those_of_numpy(percent):
    numbers = sorted(np.random.default_rng(0).exponential(size=23).tolist())
    assert percentile(numbers, percent) == pytest.approx(np.percentile(numbers, percent))
    assert percentile([3.0], percent) == 3.0
    assert largest_norm(TrainerConfig(clip="auto", clip_percentile=percent), []) == np.inf
