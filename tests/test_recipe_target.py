"""The recipe for a target: a function and a YAML of one's own."""

import pytest
import torch

from separate import checkpoint
from separate.targets import target


def test_a_target_of_ones_own_trains(recipe):
    mine = recipe("separate/losses/README.md", "Add a target")
    code, _, err = mine.run(0)
    assert code == 0, err
    saved = checkpoint.read(mine.folder / "runs" / "mine" / "checkpoints" / "last.ckpt")["config"]
    assert saved["target"] == {"_target_": "mypackage.targets.soft_mask", "_partial_": True, "slope": 0.5}
    code, _, err = mine.run(0, "loss=si_sdr", "target=soft_mask", "run=runs/other")
    assert code == 2
    assert "SISDRLoss compares a waveform and the target is a mask; it works with target=waveform" in err


def test_the_target_of_the_recipe_is_a_half_where_source_and_rest_are_equal(recipe):
    recipe("separate/losses/README.md", "Add a target")
    from mypackage.targets import soft_mask

    sources = torch.ones(1, 2, 1, 3, 4, dtype=torch.complex64)
    torch.testing.assert_close(soft_mask(sources, sources.sum(1)), torch.full((1, 2, 1, 3, 4), 0.5))


def test_a_target_of_an_unknown_domain_and_one_without_are_refused(call, tmp_path):
    with pytest.raises(ValueError, match="unknown domain masks; choose from spectrogram, mask, complex_mask, waveform"):
        target("masks")
    from separate.cli import train

    options = ["target._target_=torch.sub", "loss=mse", "device=cpu"]
    code, _, err = call(train, *options, cwd=tmp_path)
    assert code == 2
    assert "torch.sub" in err
