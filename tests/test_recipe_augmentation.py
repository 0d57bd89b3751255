"""The recipe "Add an augmentation" of data/mixing/README.md, followed in a temporary folder, and its errors."""

import re
from pathlib import Path

import numpy as np
import pytest
import torch

from separate import checkpoint
from separate.cli import train
from separate.config import AugmentConfig, CacheConfig
from separate.data import mixing
from separate.data.example import Example
from separate.data.mixing.augmentation import AudioFormat, Augmentation
from separate.data.mixing.augmenter import Augmenter
from separate.data.mixing.raw_batch import collate
from separate.errors import UsageError
from separate.stft import STFT
from separate.training.run import prepare
from tests.conftest import TINY_TOY

CPU = torch.device("cpu")
README = (Path(mixing.__file__).parent / "README.md").read_text("utf-8")


def block(language: str) -> str:
    """The one fenced block of a language in the README."""
    (found,) = re.findall(rf"```{language}\n(.*?)```", README, re.DOTALL)
    return found


@pytest.fixture
def recipe(tmp_path, monkeypatch):
    """The files of the recipe, at the paths that it names."""
    for path, text in (("mine/level.py", block("python")), ("my_conf/augment/mine.yaml", block("yaml"))):
        assert f"`{path}`" in README
        (tmp_path / path).parent.mkdir(parents=True)
        (tmp_path / path).write_text(text)
    monkeypatch.syspath_prepend(tmp_path)
    return tmp_path


def levels(config, folder):
    """Mean power in dB of mixture and sources of the examples of the first batch, (B, 1 + S)."""
    state, training = prepare(config, folder)
    batch = training.steps[0].to(CPU, state.separator.stft)
    return 10 * torch.log10(torch.cat([batch.mixture.unsqueeze(1), batch.sources], dim=1).square().mean((2, 3)))


def test_the_recipe_trains_and_changes_the_sound_by_the_stated_decibels(recipe, call):
    command = block("sh").split()[1:]
    code, _, err = call(train, *command, *TINY_TOY, "run=r", cwd=recipe)
    assert code == 0, err
    config = checkpoint.read(recipe / "r" / "checkpoints" / "last.ckpt")["config"]
    plain, extra = {**config["augment"], "extra": {}}, config["augment"]["extra"]
    assert extra["level"]["decibels"] == [-12.0, 0.0]
    changed, unchanged = (levels({**config, "augment": augment}, recipe) for augment in (config["augment"], plain))
    gains = changed - unchanged
    torch.testing.assert_close(gains, gains[:, :1].expand_as(gains), atol=1e-3, rtol=0)  # one gain for all
    assert -12 <= gains.min() < gains.max() <= 0
    stated = {**config["augment"], "extra": {"level": {**extra["level"], "decibels": [-7.0, -7.0]}}}
    torch.testing.assert_close(
        levels({**config, "augment": stated}, recipe) - unchanged, torch.full_like(gains, -7.0), atol=1e-3, rtol=0
    )


def test_a_resumed_run_needs_the_configuration_file_or_trust(recipe, call):
    mine = ["--config-dir", "my_conf", "augment=mine"]
    options = [*TINY_TOY, "run=r", "trainer.epochs=1"]
    assert call(train, *mine, *options, cwd=recipe)[0] == 0
    code, _, err = call(train, "run=r", "resume=true", "trainer.epochs=2", cwd=recipe)
    assert code == 2 and "augment.extra.level._target_=mine.level.Level comes from a package that is not trusted" in err
    for epochs, chosen in ((2, mine), (3, ["trust=[mine]"])):
        code, _, err = call(train, *chosen, "run=r", "resume=true", f"trainer.epochs={epochs}", cwd=recipe)
        assert code == 0, err


class Drawn(Augmentation):
    """Keeps what it draws.  keys: what `draw` returns for each example in turn."""

    def __init__(self, sizes: list[int], sample_rate: int, channels: int, frames: int) -> None:
        self.sizes = list(sizes)
        self.format = sample_rate, channels, frames

    def draw(self, rng, example):
        size = self.sizes.pop(0)
        return {"numbers": rng.random(size), "name": example.track} if size else None

    @staticmethod
    def apply(signals, parameters):
        assert parameters["name"] == ["x"] * len(signals.sources)  # what is no number stays on the host
        return signals


def augmenter(cache=None, **extra):
    specs = {name: {"_target_": f"{__name__}.Drawn", "sizes": sizes} for name, sizes in extra.items()}
    return Augmenter(AugmentConfig(extra=specs), AudioFormat(8000, 1, 100), cache)


def numbers(made, count=2):
    example = Example("x", np.ones((2, 1, 100), np.float32))
    changes = [made.draw(np.random.default_rng([7, index]), example) for index in range(count)]
    raw = collate([example] * count, changes, 8000)
    raw.to(CPU, STFT(64, 32))
    return [parameters["numbers"] for kind, parameters in raw.changes if kind is Drawn]


def test_each_has_random_numbers_of_its_own_whatever_is_added():
    alone, (first, second) = numbers(augmenter(b=[3, 3])), numbers(augmenter(a=[2, 2], b=[3, 3]))
    assert torch.equal(alone[0], second) and first.shape == (2, 2) and second.dtype == torch.float32
    assert not torch.equal(first[:, 0], second[:, 0]) and not torch.equal(second[0], second[1])


def test_the_format_of_the_audio_is_filled_in():
    assert augmenter(a=[1])._extra["a"].format == (8000, 1, 100)


@pytest.mark.parametrize(
    ("sizes", "message"),
    [
        ([2, 3], "Drawn.draw() returns other parameters for one example than for another"),
        ([2, 0], "the draw() of an augmentation returns None for some examples"),
    ],
)
def test_parameters_of_different_shapes_are_refused(sizes, message):
    with pytest.raises(UsageError) as error:
        numbers(augmenter(a=sizes))
    assert message in str(error.value)


@pytest.mark.parametrize(
    ("spec", "message"),
    [
        ("torch.nn.Identity", "augment.extra.a._target_=torch.nn.Identity is not an augmentation; name a subclass of"),
        ({"_target_": f"{__name__}.Drawn", "size": [1]}, "there is no key augment.extra.a.size"),
        (3, "augment.extra.a._target_=3 must be the dotted name of a class"),
    ],
)
def test_an_object_that_is_not_an_augmentation_is_refused(spec, message):
    with pytest.raises(UsageError) as error:
        Augmenter(AugmentConfig(extra={"a": spec}), AudioFormat(8000, 1, 100))
    assert message in str(error.value)


def test_one_that_needs_samples_is_refused_on_cached_spectrograms():
    with pytest.raises(UsageError, match="augment.extra.a changes samples, and cache=spectrogram gives spectrograms"):
        augmenter(CacheConfig("spectrogram"), a=[1])
