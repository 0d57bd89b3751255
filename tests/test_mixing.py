"""Remixing and augmentation: the random parameters, their effect on sources and mixture, and agreement with caches."""

import json
from dataclasses import asdict

import numpy as np
import pyloudnorm
import pytest
import torch

from separate.cli import train
from separate.config import AugmentConfig, CacheConfig
from separate.data import open_split
from separate.data.batch import total
from separate.data.example import Example
from separate.data.loader import TrainingSteps
from separate.data.mixing.augmentation import AudioFormat, Augmentation, Change, Encoding, per_example
from separate.data.mixing.augmenter import Augmenter
from separate.data.mixing.channels import ChannelMatrix
from separate.data.mixing.excerpts import TRIES
from separate.data.mixing.loudness import energies, integrated
from separate.data.mixing.raw_batch import RawBatch
from separate.errors import DataError, UsageError
from separate.stft import STFT
from tests.conftest import TINY, tone, write
from tests.test_data import speech_data, stems_data, toy_data

STFTS = STFT(256, 64)
CPU = torch.device("cpu")
SAME = {"train": "train", "valid": "train", "test": "train"}


def augmented(channels=2, frames=4000, cache=None, **options):
    return Augmenter(AugmentConfig(**options), AudioFormat(8000, channels, frames), cache)


def example(sources=3, channels=2, frames=4000, levels=None):
    return Example("x", np.zeros((sources, channels, frames), np.float32), levels=levels)


def parameters(augment, of, kind, seed=0):
    """The parameters that one augmentation draws for an example."""
    return dict(augment.draw(np.random.default_rng(seed), of))[kind]


def drawn(channels=2, times=200, sources=3, **options):
    augment, of = augmented(channels, **options), example(sources, channels)
    return np.stack([parameters(augment, of, ChannelMatrix, i)["matrices"] for i in range(times)])


def test_without_options_augmentation_changes_nothing():
    assert not augmented().active and not augmented(shift=0.5).active
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


def test_one_augmentation_does_not_change_the_random_numbers_of_others():
    alone, both = drawn(1, gain=[-6.0, 6.0]), drawn(1, gain=[-6.0, 6.0], polarity=0.5)
    np.testing.assert_array_equal(alone, np.abs(both))


def test_left_and_right_need_two_channels():
    for name in ("swap", "pan"):
        with pytest.raises(UsageError, match=f"augment.{name} needs stereo, and data.channels=1"):
            augmented(1, **{name: 0.5})


def batch_of(matrices, recorded=None):
    sources = torch.randn(2, 3, 2, 500, generator=torch.Generator().manual_seed(0))
    is_sum = torch.tensor([recorded is None, True])
    whole = None if recorded is None else torch.stack([sources[0].sum(0) + recorded, torch.zeros(2, 500)])
    changes = [Change(ChannelMatrix, {"matrices": matrices})]
    return sources, RawBatch(["a", "b"], sources, whole, is_sum, changes=changes).to(CPU, STFTS)


def test_the_mixture_is_the_sum_of_the_augmented_sources():
    matrices = torch.from_numpy(drawn(gain=[-6.0, 6.0], swap=0.5, times=2))
    sources, batch = batch_of(matrices)
    torch.testing.assert_close(batch.sources, torch.einsum("bscd,bsdt->bsct", matrices, sources))
    torch.testing.assert_close(batch.mixture, batch.sources.sum(1))


def test_the_rest_of_a_recorded_mixture_is_kept():
    noise = torch.randn(2, 500)
    matrices = torch.from_numpy(drawn(gain=[-6.0, 6.0], polarity=0.5, times=2))
    _, batch = batch_of(matrices, recorded=noise)
    torch.testing.assert_close(batch.mixture[0], batch.sources[0].sum(0) + noise, atol=1e-5, rtol=0)
    torch.testing.assert_close(batch.mixture[1], batch.sources[1].sum(0), atol=1e-5, rtol=0)


def test_augmented_batches_are_the_same_on_a_cached_spectrogram(stems, tmp_path):
    config = stems_data(stems, channels=2, coherent=0.5)
    augment = augmented(gain=[-6.0, 6.0], polarity=0.5, swap=0.5, pan=0.5, dropout=0.2)
    for step in range(3):
        batches = [
            TrainingSteps(open_split(config, "train", 0, cache, STFTS), 4, 0, augment)[step].to(CPU, STFTS)
            for cache in (None, CacheConfig("spectrogram", str(tmp_path / "cache")))
        ]
        torch.testing.assert_close(*(batch.source_spectrograms for batch in batches), atol=1e-5, rtol=1e-5)
        torch.testing.assert_close(*(batch.spectrogram for batch in batches), atol=1e-5, rtol=1e-5)


def test_recorded_mixtures_are_the_same_on_a_cached_spectrogram(wsj0mix, tmp_path):
    for path in (wsj0mix / "tr" / "mix").iterdir():
        write(path, tone(300) + tone(3000), subtype="FLOAT")
    augment = augmented(1, gain=[-6.0, 6.0], polarity=0.5)
    batches = [
        TrainingSteps(open_split(speech_data("wsj0mix", wsj0mix), "train", 0, cache, STFTS), 4, 0, augment)[0]
        for cache in (None, CacheConfig("spectrogram", str(tmp_path / "cache")))
    ]
    plain, cached = (batch.to(CPU, STFTS) for batch in batches)
    torch.testing.assert_close(plain.spectrogram, cached.spectrogram, atol=1e-4, rtol=1e-4)
    rest = plain.mixture - plain.sources.sum(1)
    recorded = batches[0].recorded - batches[0].sources.sum(1)
    torch.testing.assert_close(rest, recorded, atol=1e-5, rtol=0)
    torch.testing.assert_close(cached.mixture - cached.sources.sum(1), recorded, atol=1e-4, rtol=0)


def test_augmentation_does_not_change_the_drawn_excerpts(stems):
    config = stems_data(stems, channels=2)
    plain, changed = (
        TrainingSteps(open_split(config, "train"), 4, 0, augment)[1] for augment in (None, augmented(gain=[-6.0, 6.0]))
    )
    assert torch.equal(plain.sources, changed.sources) and plain.changes == []


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


def test_the_last_excerpt_is_taken_if_no_source_is_ever_heard(halves):
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
    config, augment = stems_data(halves, splits=SAME), augmented(1, loudness=[-30.0, -30.0])
    steps = TrainingSteps(open_split(config, "train", augment=augment.options), 8, 0, augment)
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


def test_augmentations_that_a_layout_draws_itself_are_refused(pools):
    for config in (speech_data("pools", pools), toy_data()):
        for options in (AugmentConfig(loudness=[-30.0, -20.0]), AugmentConfig(shift=0.1)):
            with pytest.raises(UsageError, match="draws the levels and positions of its sources itself"):
                open_split(config, "train", augment=options)


def test_sources_of_one_moment_are_shifted_each_by_itself(halves):
    def starts(shift, **changes):
        examples = open_split(stems_data(halves, splits=SAME, **changes), "train", augment=AugmentConfig(shift=shift))
        found = []
        examples.reader.source = lambda spans, frames: found.append(spans[0].start) or np.zeros((1, frames), np.float32)
        for index in range(40):
            examples.draw(index % len(examples), np.random.default_rng(index))
        return np.array(found).reshape(-1, 2)

    apart = np.diff(starts(0.25))
    assert 0 < np.abs(apart).max() <= 4000 and len(np.unique(apart)) > 20
    assert not np.diff(starts(0.0)).any()


@pytest.mark.parametrize("cache", ["none", "spectrogram"])
def test_noise_is_added_to_the_mixture_alone_at_its_level(stems, tmp_path, cache):
    noise = 0.3 * np.random.default_rng(0).standard_normal((3000, 1))  # shorter than an example: it goes round
    write(tmp_path / "noise" / "n.wav", noise, subtype="FLOAT")
    kept = CacheConfig(cache, str(tmp_path / "cache"))
    examples = open_split(stems_data(stems), "train", 0, kept, STFTS)
    audio = AudioFormat(8000, 1, 4000)
    options = AugmentConfig(noise=str(tmp_path / "noise"), noise_snr=[10.0, 10.0])
    augment = Augmenter(options, audio, kept, examples.reader)
    batch = TrainingSteps(examples, 4, 0, augment)[0].to(CPU, STFTS)
    left = batch.mixture - batch.sources.sum(1)
    ratio = 10 * torch.log10(batch.sources.sum(1).square().mean((1, 2)) / left.square().mean((1, 2)))
    torch.testing.assert_close(ratio, torch.full((4,), 10.0), atol=0.01 if cache == "none" else 0.3, rtol=0)
    torch.testing.assert_close(batch.spectrogram, STFTS(batch.mixture), atol=1e-4, rtol=0)
    options = AugmentConfig(noise=str(tmp_path / "noise"), noise_probability=0.0)
    never = Augmenter(options, audio, kept, examples.reader)
    batch = TrainingSteps(examples, 4, 0, never)[0].to(CPU, STFTS)
    torch.testing.assert_close(batch.mixture, batch.sources.sum(1), atol=1e-5, rtol=0)


def test_augmentations_of_samples_are_refused_on_cached_spectrograms(tmp_path):
    for name, value in (("speed", [0.9, 1.1]), ("pitch", [-1.0, 1.0]), ("equaliser", 6.0), ("reverb", "x")):
        with pytest.raises(UsageError, match=f"augment.{name} changes samples, and cache=spectrogram"):
            augmented(cache=CacheConfig("spectrogram"), **{name: value})


@pytest.mark.parametrize(
    ("options", "sentence"),
    [
        ({"gain": [6.0, -6.0]}, "augment.gain=[6.0, -6.0] must be [min, max], e.g. [-6,6]"),
        (
            {"speed": [0.0, 1.0]},
            "augment.speed[0]=0.0 must be at least 0.1 and at most 10, e.g. augment.speed=[0.9,1.1]",
        ),
        ({"pitch": [1.0]}, "augment.pitch=[1.0] must be [min, max]"),
        ({"polarity": 1.5}, "augment.polarity=1.5 must be at least 0 and at most 1"),
        ({"equaliser": -3.0}, "augment.equaliser=-3.0 must be at least 0 and at most 100 dB"),
    ],
)
def test_meaningless_values_are_refused(options, sentence):
    with pytest.raises(UsageError) as caught:
        augmented(**options)
    assert sentence in str(caught.value)


def test_folders_without_audio_or_with_bad_files_are_refused(tmp_path):
    with pytest.raises(DataError, match="augment.noise=.* is not a folder with audio files"):
        augmented(noise=str(tmp_path / "none"))
    write(tmp_path / "rooms" / "empty.wav", np.zeros((0, 1)))
    (tmp_path / "rooms" / "bad.wav").write_bytes(b"junk")
    with pytest.raises(DataError, match="(?s)2 bad files in augment.reverb.*bad.wav: not read.*empty.wav: holds no"):
        augmented(reverb=str(tmp_path / "rooms"))


class Inverted(Augmentation):
    """Every source upside down."""

    def draw(self, rng, example):
        return {"factor": -1.0}

    @staticmethod
    def apply(signals, parameters):
        return signals.change(lambda audio: audio * per_example(parameters["factor"], audio))


def test_every_option_of_augmentation_changes_the_batch(stems, tmp_path):
    write(tmp_path / "files" / "a.wav", 0.1 * np.random.default_rng(0).standard_normal((3000, 1)))
    on = {
        "gain": [-6.0, 6.0],
        "loudness": [-30.0, -20.0],
        "polarity": 0.5,
        "swap": 0.5,
        "pan": 0.5,
        "dropout": 0.5,
        "shift": 0.2,
        "speed": [0.9, 0.95],
        "tempo": [1.1, 1.2],
        "pitch": [1.0, 2.0],
        "equaliser": 6.0,
        "reverb": str(tmp_path / "files"),
        "noise": str(tmp_path / "files"),
        "extra": {"inverted": {"_target_": f"{__name__}.Inverted"}},
    }
    finer = {"reverb_probability": 0.5, "reverb_seconds": 0.1, "noise_probability": 0.5, "noise_snr": [-5.0, 0.0]}
    finer["reverb_reference"] = "early"
    assert {*on, *finer} == asdict(AugmentConfig()).keys()

    def batch(**options):
        augment = augmented(**options)
        config = stems_data(stems, channels=2, excerpt=0.5 * augment.stretch.read_factor)
        batch = TrainingSteps(open_split(config, "train", augment=augment.options), 6, 0, augment)[0].to(CPU, STFTS)
        return torch.cat([batch.mixture.unsqueeze(1), batch.sources], dim=1)

    plain = batch()
    for name, value in on.items():
        changed = batch(**{name: value})
        assert changed.shape == plain.shape and changed.isfinite().all() and not torch.allclose(changed, plain), name
    for name, value in finer.items():
        of = name.partition("_")[0]
        assert not torch.allclose(batch(**{of: on[of], name: value}), batch(**{of: on[of]})), name


def test_a_run_with_everything_at_once(halves, call, tmp_path):
    write(tmp_path / "files" / "a.wav", 0.1 * np.random.default_rng(0).standard_normal((3000, 1)))
    data = ["data=stems", f"data.root={halves}", "data.sources=[low,high]", "data.sample_rate=8000", "stft=speech"]
    data += ["data.splits={train: train, valid: train, test: train}", "data.coherent=0.5", "data.min_activity=0.2"]
    augment = ["augment=music", "augment.speed=[0.9,1.1]", "augment.tempo=[0.9,1.1]", "augment.pitch=[-2,2]"]
    augment += ["augment.equaliser=6", f"augment.reverb={tmp_path / 'files'}", f"augment.noise={tmp_path / 'files'}"]
    augment += ["augment.shift=0.1", "augment.loudness=[-30,-20]", "augment.pan=0.5", "augment.dropout=0.1"]
    code, _, err = call(train, *data, *augment, *TINY, "debug=fast", "cache=audio", "run=r", cwd=tmp_path)
    assert code == 0, err


@pytest.mark.parametrize("stored", [torch.int16, torch.float32])
def test_a_recorded_mixture_is_taken_as_it_is_and_converted_once(stored, monkeypatch):
    generator = torch.Generator().manual_seed(0)
    sources, recorded = (
        (3000 * torch.randn(*shape, generator=generator)).to(stored) for shape in ((2, 3, 1, 50), (2, 1, 50))
    )
    converted, of = [], Encoding.decode
    monkeypatch.setattr(Encoding, "decode", lambda self, signals: converted.append(signals) or of(self, signals))
    encoding = Encoding(scale=2**-15)
    batch = RawBatch(["a", "b"], sources, recorded, torch.tensor([True, False]), encoding=encoding).to(CPU, STFTS)
    assert [signals.ndim for signals in converted] == [4, 3]
    scale = 2**-15 if stored == torch.int16 else 1.0
    assert torch.equal(batch.mixture[1], recorded[1] * scale)
    assert torch.equal(batch.mixture[0], total(batch.sources)[0])
    assert not batch.additive
