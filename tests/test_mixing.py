"""Remixing and augmentation: what is drawn, what it does to sources and mixture, and that it is the same on caches."""

import json
from dataclasses import asdict

import numpy as np
import pyloudnorm
import pytest
import torch

from separate.cli import train
from separate.config import AugmentConfig, CacheConfig
from separate.data import open_split
from separate.data.augment import Augment
from separate.data.batches import TrainingSteps
from separate.data.excerpts import TRIES
from separate.data.loudness import energies, integrated
from separate.data.mixing import Drawn
from separate.errors import UsageError
from separate.stft import STFT
from tests.conftest import TINY, tone, write
from tests.test_data import speech_data, stems_data, toy_data

STFTS = STFT(256, 64)
CPU = torch.device("cpu")
SAME = {"train": "train", "valid": "train", "test": "train"}


def drawn(channels=2, times=200, sources=3, **options):
    augment = Augment(AugmentConfig(**options), channels)
    return np.stack([augment.draw(np.random.default_rng(i), sources) for i in range(times)])


def test_nothing_asked_for_changes_nothing():
    assert not Augment(AugmentConfig(), 2).active
    assert (drawn() == np.eye(2)).all()


def test_gains_lie_within_their_bounds():
    gains = 20 * np.log10(drawn(1, gain=[-6.0, 3.0])[..., 0, 0])
    assert -6 <= gains.min() < -5 and 2 < gains.max() <= 3


def test_polarity_swap_and_dropout_happen_as_often_as_asked():
    assert np.mean(drawn(polarity=0.25)[..., 0, 0] == -1) == pytest.approx(0.25, abs=0.05)
    swapped = drawn(swap=0.25)
    assert np.mean(swapped[..., 0, 1] == 1) == pytest.approx(0.25, abs=0.05)
    assert ((swapped == np.eye(2)) | (swapped == 1 - np.eye(2))).all()
    dropped = (drawn(dropout=0.5) == 0).all(axis=(2, 3))
    assert np.mean(dropped) == pytest.approx(0.5, abs=0.07)
    assert not dropped.all(axis=1).any()  # one source stays
    assert not (drawn(dropout=1.0) == 0).all(axis=(1, 2, 3)).any()


def test_pan_keeps_the_energy_and_the_centre():
    sides = np.diagonal(drawn(pan=1.0), axis1=2, axis2=3)
    np.testing.assert_allclose((sides**2).sum(-1), 2, rtol=1e-5)
    assert sides.min() < 0.05
    assert np.diagonal(drawn(pan=0.2), axis1=2, axis2=3).min() > 0.8


def test_one_change_leaves_what_others_draw_alone():
    alone, both = drawn(1, gain=[-6.0, 6.0]), drawn(1, gain=[-6.0, 6.0], polarity=0.5)
    np.testing.assert_array_equal(alone, np.abs(both))


def test_left_and_right_need_two_channels():
    for name in ("swap", "pan"):
        with pytest.raises(UsageError, match=f"augment.{name} is of left and right, and data.channels=1"):
            Augment(AugmentConfig(**{name: 0.5}), 1)


def batch_of(matrices, recorded=None):
    sources = torch.randn(2, 3, 2, 500, generator=torch.Generator().manual_seed(0))
    is_sum = torch.tensor([recorded is None, True])
    whole = None if recorded is None else torch.stack([sources[0].sum(0) + recorded, torch.zeros(2, 500)])
    return sources, Drawn(["a", "b"], sources, whole, is_sum, matrices=matrices).to(CPU, STFTS)


def test_the_mixture_is_made_of_what_the_sources_have_become():
    matrices = torch.from_numpy(drawn(gain=[-6.0, 6.0], swap=0.5, times=2))
    sources, batch = batch_of(matrices)
    torch.testing.assert_close(batch.sources, torch.einsum("bscd,bsdt->bsct", matrices, sources))
    torch.testing.assert_close(batch.mixture, batch.sources.sum(1))


def test_what_a_recorded_mixture_holds_besides_its_sources_stays():
    noise = torch.randn(2, 500)
    matrices = torch.from_numpy(drawn(gain=[-6.0, 6.0], polarity=0.5, times=2))
    _, batch = batch_of(matrices, recorded=noise)
    torch.testing.assert_close(batch.mixture[0], batch.sources[0].sum(0) + noise, atol=1e-5, rtol=0)
    torch.testing.assert_close(batch.mixture[1], batch.sources[1].sum(0), atol=1e-5, rtol=0)


def test_augmented_batches_are_the_same_on_a_cached_spectrogram(stems, tmp_path):
    config = stems_data(stems, channels=2, coherent=0.5)
    augment = Augment(AugmentConfig(gain=[-6.0, 6.0], polarity=0.5, swap=0.5, pan=0.5, dropout=0.2), 2)
    for step in range(3):
        batches = [
            TrainingSteps(open_split(config, "train", 0, cache, STFTS), 4, 0, augment)[step].to(CPU, STFTS)
            for cache in (None, CacheConfig("spectrogram", str(tmp_path / "cache")))
        ]
        torch.testing.assert_close(*(batch.source_spectrograms for batch in batches), atol=1e-5, rtol=1e-5)
        torch.testing.assert_close(*(batch.spectrogram for batch in batches), atol=1e-5, rtol=1e-5)


def test_augmentation_leaves_the_drawn_excerpts_alone(stems):
    config = stems_data(stems, channels=2)
    plain, changed = (
        TrainingSteps(open_split(config, "train"), 4, 0, augment)[1]
        for augment in (None, Augment(AugmentConfig(gain=[-6.0, 6.0]), 2))
    )
    assert torch.equal(plain.sources, changed.sources) and plain.matrices is None


def test_remixed_examples_take_each_source_from_a_track_of_its_own(stems):
    examples = open_split(stems_data(stems, coherent=0.0), "train")
    names = [examples.draw(i % len(examples), np.random.default_rng(i)).track.split("+") for i in range(60)]
    assert all(len(pair) == 2 for pair in names)
    assert np.mean([one != other for one, other in names]) > 0.7
    half = open_split(stems_data(stems, coherent=0.5), "train")
    kept = np.mean(["+" not in half.draw(0, np.random.default_rng(i)).track for i in range(200)])
    assert kept == pytest.approx(0.5, abs=0.1)
    whole = open_split(stems_data(stems), "train")
    assert not any("+" in whole.draw(0, np.random.default_rng(i)).track for i in range(20))


def test_remixed_examples_do_not_take_the_recorded_mixture(wsj0mix):
    for path in (wsj0mix / "tr" / "mix").iterdir():
        write(path, tone(3000), subtype="FLOAT")
    examples = open_split(speech_data("wsj0mix", wsj0mix, coherent=0.5), "train")
    batch = TrainingSteps(examples, 20, 0)[0].to(CPU, STFTS)
    remixed = torch.tensor(["+" in track for track in batch.tracks])
    assert 0 < remixed.sum() < 20
    same = (batch.mixture - batch.sources.sum(1)).abs().amax(dim=(1, 2)) < 1e-6
    assert torch.equal(same, remixed)


def test_validation_is_never_remixed(stems):
    examples = open_split(stems_data(stems, coherent=0.0), "valid")
    assert examples.fixed(0).track == "song 09"


@pytest.fixture
def halves(tmp_path):
    """Four tracks of two stems that sound in one half each, at levels of their own."""
    for index in range(4):
        for stem, loud in (("low", slice(0, 16000)), ("high", slice(16000, 32000))):
            audio = np.zeros((32000, 1))
            audio[loud] = tone(400 + 50 * index, 2.0) * 0.5**index
            write(tmp_path / "halves" / "train" / str(index) / f"{stem}.wav", audio, subtype="FLOAT")
    return tmp_path / "halves"


def test_excerpts_are_drawn_until_every_source_is_heard(halves):
    def heard(**changes):
        examples = open_split(stems_data(halves, splits=SAME, excerpt=1.0, **changes), "train")
        drawn = [examples.draw(i % len(examples), np.random.default_rng(i)) for i in range(60)]
        active = np.abs([example.samples[1:, 0] for example in drawn]) > 0
        return active.mean(axis=2).min(axis=1), [example.rejected for example in drawn]

    shares, rejected = heard()
    assert shares.min() == 0 and sum(rejected) == 0
    shares, rejected = heard(min_activity=0.3)  # only near the middle are both heard
    assert shares.min() > 0.2 and np.mean(rejected) > 1  # to a tenth of a second
    shares, _ = heard(min_activity=0.9, coherent=0.0)  # each from where it sounds
    assert shares.min() > 0.8


def test_no_excerpt_may_do_and_the_last_one_drawn_is_taken(halves):
    examples = open_split(stems_data(halves, splits=SAME, excerpt=1.0, min_activity=0.9), "train")
    example = examples.draw(0, np.random.default_rng(0))
    assert example.rejected == TRIES - 1 and np.abs(example.samples).max() > 0


def test_the_share_of_rejected_excerpts_is_logged(halves, call, tmp_path):
    data = ["data=stems", f"data.root={halves}", "data.sources=[low,high]", "data.sample_rate=8000", "stft=speech"]
    data += ["data.splits={train: train, valid: train, test: train}", "data.channels=1", "data.min_activity=0.3"]
    code, _, err = call(train, *data, *TINY, "debug=fast", "run=r", cwd=tmp_path)
    assert code == 0, err
    facts = json.loads((tmp_path / "r" / "metrics.jsonl").read_text().splitlines()[0])
    assert 0 < facts["train/rejected"] < 1


def test_sources_are_set_to_a_loudness(halves):
    config, augment = stems_data(halves, splits=SAME), Augment(AugmentConfig(loudness=[-30.0, -30.0]), 1)
    steps = TrainingSteps(open_split(config, "train", levels=True), 8, 0, augment)
    batch = steps[0].to(CPU, STFTS)
    tones = batch.sources.abs().amax(dim=(2, 3))
    assert tones.max() / tones[tones > 0].min() < 1.15  # whatever the track: K-weighting differs little here
    plain = TrainingSteps(open_split(config, "train"), 8, 0)[0].to(CPU, STFTS).sources.abs().amax(dim=(2, 3))
    assert plain.max() / plain[plain > 0].min() > 4


def test_loudness_is_that_of_bs1770():
    noise = 0.1 * np.random.default_rng(0).standard_normal((2, 8 * 48000)) * np.repeat([1, 0.001, 0.5, 0.8], 2 * 48000)
    for rate in (48000, 44100):
        meter = pyloudnorm.Meter(rate, filter_class="DeMan")
        expected = meter.integrated_loudness(noise.T)
        blocks = np.array_split(noise, 7, axis=1)
        assert integrated(energies(blocks, rate)) == pytest.approx(expected, abs=0.01)
    assert integrated(energies([np.zeros((1, 8000))], 8000)) == -np.inf


def test_levels_that_a_layout_sets_itself_are_not_set_again(pools):
    for config, reason in ((speech_data("pools", pools), "data.snr"), (toy_data(), "synthesised at its levels")):
        with pytest.raises(UsageError, match=f"{reason}.*set augment.loudness=null"):
            open_split(config, "train", levels=True)


def test_every_option_of_augmentation_changes_the_batch():
    off = AugmentConfig()
    on = {"gain": [-6.0, 6.0], "loudness": [-30.0, -20.0], "polarity": 0.5, "swap": 0.5, "pan": 0.5, "dropout": 0.5}
    assert on.keys() == asdict(off).keys()
    for name, value in on.items():
        augment = Augment(AugmentConfig(**{name: value}), 2)
        assert augment.active
        assert (augment.draw(np.random.default_rng(0), 8, [-35.0] * 8) != np.eye(2)).any()
