"""Effects of augmentation on sound: pitch in cents, levels in dB, phases between channels, mixtures as sums."""

import numpy as np
import pytest
import scipy.signal
import torch
from hypothesis import example as hypothesis_example
from hypothesis import given, settings
from hypothesis import strategies as st
from torch._subclasses.fake_tensor import FakeTensorMode

from separate.cli import train
from separate.data import open_split
from separate.data.example import Example
from separate.data.loader import TrainingSteps
from separate.data.mixing.equaliser import BANDS, equalise
from separate.data.mixing.fourier import convolve, resample_to
from separate.data.mixing.raw_batch import collate
from separate.data.mixing.reverb import Reverb
from separate.data.mixing.stretch import StretchPlan, stretch
from separate.data.mixing.vocoder import vocode
from separate.evaluation.sdr import si_sdr
from separate.stft import STFT
from tests.conftest import TINY, tone, write
from tests.test_data import speech_data
from tests.test_mixing import augmented, example, parameters

STFTS = STFT(256, 64)
CPU = torch.device("cpu")
FACTORS = [0.8, 0.9, 0.97, 1.05, 1.1, 1.25]


def noise(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def decibels(power):
    return 10 * np.log10(float(power))


def level_change(changed, audio, edge):
    """Mean power in dB, away from both ends."""
    return decibels(changed[..., edge:-edge].square().mean() / audio[..., edge:-edge].square().mean())


def hits(rate, seconds=3.0, decay=0.0):
    """Clicks, or bursts of noise that fall by 1/e in `decay` seconds, four in a second; (1, 1, T) and their samples."""
    audio = np.zeros(round(rate * seconds))
    places = np.arange(rate // 8, len(audio) - rate // 8, rate // 4)
    length = max(1, round(8 * decay * rate))
    shape = np.exp(-np.arange(length) / (decay * rate)) if decay else np.ones(1)
    for number, place in enumerate(places):
        burst = np.random.default_rng(number).standard_normal(length) if decay else np.ones(1)
        audio[place : place + length] += (burst * shape)[: len(audio) - place]
    return torch.from_numpy(audio.astype(np.float32))[None, None], places


def pitch(audio, rate):
    """Frequency in Hz of a tone (T,): its phase over the middle of the signal, around the peak of its spectrum."""
    audio = audio[len(audio) // 8 : -len(audio) // 8].astype(np.float64)
    size = 8 * 2 ** int(np.ceil(np.log2(len(audio))))
    coarse = np.abs(np.fft.rfft(audio * np.blackman(len(audio)), size)).argmax() * rate / size
    half = len(audio) // 2
    time = np.arange(len(audio)) / rate
    turned = audio * np.exp(-2j * np.pi * coarse * time)
    first, second = (np.sum(part[:half] * np.blackman(half)) for part in (turned, turned[half:]))
    return coarse + np.angle(second / first) / (2 * np.pi * half / rate)


def tones(*frequencies, frames=8000, channels=1):
    time = np.arange(frames) / 8000
    return torch.from_numpy(np.stack([np.sin(2 * np.pi * f * time) for f in frequencies]).astype(np.float32)[:, None])


def frequency(audio):
    """The loudest frequency in Hz of (T,) at 8 kHz, to a tenth of a bin."""
    window = np.hanning(len(audio))
    return np.abs(np.fft.rfft(audio * window, 10 * len(audio))).argmax() * 8000 / (10 * len(audio))


# lengths and factors ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("frames", "wanted"), [(7040, 6272), (6425, 7967), (16000, 13699), (1, 1), (1, 700), (700, 1)])
def test_the_vocoder_returns_the_requested_length(frames, wanted):
    assert vocode(noise(1, 1, frames), wanted, 8000).shape == (1, 1, wanted)


@settings(max_examples=100, deadline=None)
@given(st.integers(500, 5000), st.floats(0.3, 3.0), st.floats(0.3, 3.0), st.floats(-12, 12))
def test_every_length_and_factor_can_be_stretched(frames, speed, tempo, semitones):
    how = StretchPlan.of(frames, speed, tempo, semitones)
    found = stretch(noise(1, 1, how.read), how, 8000)
    assert found.shape == (1, 1, frames) and found.isfinite().all()


def test_a_run_at_a_tempo_whose_frames_round_up(call, tmp_path):
    options = ["augment.tempo=[1.168,1.168]", "data.excerpt=2", "debug=fast", *TINY, "run=r"]
    code, _, err = call(train, *options, cwd=tmp_path)
    assert code == 0, err
    assert float("5e-324") > 0  # Hypothesis, which runs next, needs denormals


@settings(max_examples=200, deadline=None)
@given(st.integers(300, 60000), st.floats(0.5, 2.0), st.floats(0.5, 2.0), st.floats(-12, 12))
@hypothesis_example(58953, 1.670250375745124, 1.2848606645615623, 0.927808119330118)  # the smallest margin, 1 sample
def test_an_excerpt_is_long_enough_for_every_stretch(frames, speed, tempo, semitones):
    bounds = {"speed": [0.5, speed], "tempo": [0.5, tempo], "pitch": [semitones, 12.0]}
    longest = augmented(1, frames, **bounds).stretch.read_factor
    for pitched in (semitones, 12.0):
        assert StretchPlan.of(frames, speed, tempo, pitched).read <= round(frames * longest)


# pitch and tempo ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("speed", "tempo", "semitones", "heard"),
    [(1.25, 1.0, 0.0, 500), (1.0, 1.25, 0.0, 400), (1.0, 1.0, 12.0, 800), (0.8, 1.1, -12.0, 160), (1.0, 1.0, 0.0, 400)],
)
def test_speed_tempo_and_pitch_change_pitch_and_tempo_as_named(speed, tempo, semitones, heard):
    how = StretchPlan.of(4000, speed, tempo, semitones)
    assert how.read == pytest.approx(4000 * speed * tempo, rel=0.02)
    rhythm = tones(400, frames=how.read) * torch.from_numpy((np.arange(how.read) < how.read // 2).astype(np.float32))
    changed = stretch(rhythm, how, 8000)
    assert changed.shape == (1, 1, 4000)
    audio = changed[0, 0].numpy()
    assert frequency(audio[200:1800]) == pytest.approx(heard, rel=0.02)
    loud = np.sqrt(np.mean(audio[200:1800] ** 2)), np.sqrt(np.mean(audio[2300:3700] ** 2))
    assert loud[0] == pytest.approx(np.sqrt(0.5), rel=0.1) and loud[1] < 0.05  # the beat is where it should be


@pytest.mark.parametrize("rate", [8000, 44100])
@pytest.mark.parametrize("seconds", [1.0, 2.37, 6.0])
def test_pitch_within_3_cents_and_tempo_within_a_thousandth(rate, seconds):
    rng, frames = np.random.default_rng(0), round(rate * seconds)
    cents, paces = [], []
    for number in range(12):
        (speed, tempo), semitones = rng.uniform(0.85, 1.15, 2), rng.uniform(-3, 3)
        asked = [(speed, 1, 0), (1, tempo, 0), (1, 1, semitones), (speed, tempo, semitones)][number % 4]
        frequency = rng.uniform(200, rate / 6)
        how = StretchPlan.of(frames, *asked)
        audio = np.sin(2 * np.pi * frequency * np.arange(how.read) / rate).astype(np.float32)
        heard = pitch(stretch(torch.from_numpy(audio)[None, None], how, rate)[0, 0].numpy(), rate)
        cents.append(1200 * np.log2(heard / (frequency * asked[0] * 2 ** (asked[2] / 12))))
        paces.append(how.read / how.between * how.resampled[0] / how.resampled[1] / (asked[0] * asked[1]) - 1)
    assert np.abs(cents).max() < 1.5 and abs(np.mean(cents)) < 0.5
    assert np.abs(paces).max() < 1e-3 and abs(np.mean(paces)) < 3e-4


@pytest.mark.parametrize("rate", [8000, 44100])
@pytest.mark.parametrize(("speed", "tempo", "semitones"), [(1, 0.9, 0), (1, 1.13, 0), (1.07, 1, 0), (1.05, 0.93, 1.3)])
def test_beats_are_where_the_tempo_puts_them(rate, speed, tempo, semitones):
    frames = 3 * rate
    how = StretchPlan.of(frames, speed, tempo, semitones)
    audio, places = hits(rate, how.read / rate, decay=0.004)
    found = stretch(audio, how, rate)[0, 0].numpy()
    expected = places / (speed * tempo)
    expected = expected[expected < frames - rate // 8]
    # the middle of each burst's energy
    heard = []
    for place in expected:
        near = np.arange(max(0, round(place) - rate // 20), min(frames, round(place) + rate // 10))
        heard.append((near * found[near] ** 2).sum() / (found[near] ** 2).sum())
    pace, _ = np.polyfit(expected, heard, 1)
    assert pace == pytest.approx(1, abs=1e-3)
    assert np.abs(np.array(heard) - expected).max() < 0.006 * rate


def test_factor_one_changes_nothing():
    for frames in (4000, 4001, 132300, 264599):
        audio, how = noise(2, 2, frames), StretchPlan.of(frames, 1.0, 1.0, 0.0)
        assert how.read == frames and torch.equal(stretch(audio, how, 44100), audio)


def test_tempo_alone_is_not_resampled():
    for frames in (4001, 264600, 264599):
        how = StretchPlan.of(frames, 1.0, 1.07, 0.0)
        assert how.between == how.frames == frames and how.read == round(1.07 * frames)


def test_long_resampling_has_fast_transforms():
    for ratio in np.linspace(0.85, 1.15, 61):
        for length in StretchPlan.of(264600, float(ratio), 1.0, 0.0).resampled:
            for factor in (2, 3, 5, 7, 11):
                while length % factor == 0:
                    length //= factor
            assert length == 1, ratio


def test_a_vocoder_at_its_own_speed_is_the_identity():
    audio = noise(2, 2, 6000)
    torch.testing.assert_close(vocode(audio, 6000, 8000), audio, atol=1e-5, rtol=0)


# levels -------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("rate", [8000, 44100])
@pytest.mark.parametrize("factor", FACTORS)
def test_the_vocoder_keeps_the_levels_of_noise_clicks_drums_and_tones(rate, factor):
    frames, edge = round(3 * rate / factor), rate // 4
    hiss = noise(1, 1, 3 * rate)
    assert level_change(vocode(hiss, frames, rate), hiss, edge) == pytest.approx(0, abs=0.2)
    for decay in (0.0, 0.01):
        beats, _ = hits(rate, 3.0, decay)
        found = vocode(beats, frames, rate)
        assert decibels(found.square().sum() / beats.square().sum()) == pytest.approx(0, abs=0.3)
        assert 2 * decibels(found.abs().max() / beats.abs().max()) == pytest.approx(0, abs=1.0)
    whistle = torch.sin(2 * torch.pi * 440 / rate * torch.arange(3 * rate))[None, None]
    assert level_change(vocode(whistle, frames, rate), whistle, edge) == pytest.approx(0, abs=0.1)


@pytest.mark.parametrize("factor", FACTORS)
def test_an_attack_keeps_its_waveform(factor):
    rate = 16000
    audio, places = hits(rate, 3.0, decay=0.003)
    tone = 0.1 * torch.sin(
        2 * torch.pi * 220 / rate * torch.arange(audio.shape[-1])
    )  # a tone that continues underneath
    found = vocode(audio + tone, round(audio.shape[-1] / factor), rate)[0, 0].numpy()
    for place in places[1:-1]:
        attack = audio[0, 0, place : place + 160].numpy()  # 10 ms
        expected = round(place / factor)
        near = found[expected - 80 : expected + 240]
        scores = np.correlate(near, attack) / np.linalg.norm(attack)
        energy = np.sqrt(np.convolve(near**2, np.ones(160), "valid"))
        assert (scores / energy).max() > 0.9


@pytest.mark.parametrize(("factor", "lost"), [(0.9, 0.8), (1.1, 0.8), (0.8, 1.5), (1.25, 1.5)])
@pytest.mark.parametrize("rate", [8000, 44100])
def test_weak_sources_and_dense_clicks_keep_most_of_their_level(rate, factor, lost):
    frames, time = round(2 * rate / factor), torch.arange(2 * rate) / rate
    partials = torch.arange(1, int(0.45 * rate / 150))
    loud = (torch.sin(2 * torch.pi * 150 * partials[:, None] * time) / partials[:, None]).sum(0)[None, None]
    hiss = 0.01 * noise(1, 1, 2 * rate)
    found = vocode(torch.cat([hiss, loud]), frames, rate)
    assert -lost < level_change(found[:1], hiss, rate // 4) < 0.2
    assert level_change(found[1:], loud, rate // 4) == pytest.approx(0, abs=0.1)
    clicks = torch.zeros(1, 1, 2 * rate)
    clicks[..., :: rate * 3 // 100] = 1  # 30 ms apart
    assert level_change(vocode(clicks, frames, rate), clicks, rate // 4) == pytest.approx(0, abs=0.4)


def test_the_vocoder_does_not_depend_on_the_level():
    audio = noise(1, 1, 8000)
    torch.testing.assert_close(vocode(audio * 1e-3, 7000, 8000) * 1e3, vocode(audio, 7000, 8000), atol=2e-2, rtol=0)
    assert not vocode(torch.zeros(1, 1, 8000), 7000, 8000).any()


# channels and sources -----------------------------------------------------------------------------------------------


def in_a_room(rate=16000):
    """Drums in a stereo room, (1, 2, T)."""
    beats, _ = hits(rate, 4.0, decay=0.02)
    tail = noise(2, rate // 3, seed=5) * torch.exp(-torch.arange(rate // 3) / (0.05 * rate)) * 0.03
    tail[:, 0] = 1.0
    return convolve(beats.expand(1, 2, -1), tail[None])


def correlation(audio):
    return float(torch.corrcoef(audio.reshape(2, -1))[0, 1])


@pytest.mark.parametrize("asked", [(1.0, 1.0, 1.0), (1.0, 1.0, -2.0), (1.0, 0.9, 0.0), (1.0, 1.2, 0.0)])
def test_stereo_stays_as_wide_as_it_was(asked):
    audio, rate = in_a_room(), 16000
    how = StretchPlan.of(3 * rate, *asked)
    assert correlation(stretch(audio, how, rate)) == pytest.approx(correlation(audio[..., : how.read]), abs=0.05)


@pytest.mark.parametrize("delay", [0, 3, 7])
@pytest.mark.parametrize("gain", [1.0, -1.0, 0.3])
def test_delay_level_and_polarity_between_channels_are_kept(delay, gain):
    left = noise(8007, seed=1)
    audio = torch.stack([left[7:], gain * left[7 - delay : 8007 - delay]])[None]
    found = vocode(audio, 7000, 8000)[0]
    spectra = torch.stft(found[:, 500:-500], 512, window=torch.hann_window(512), return_complex=True)
    cross = (spectra[0] * spectra[1].conj()).mean(-1)
    bins = torch.arange(257)
    aligned = cross * torch.exp(-2j * torch.pi * bins * delay / 512)  # only the gain remains
    assert (aligned.real.sum() / cross.abs().sum()).item() == pytest.approx(np.sign(gain), abs=0.02)
    assert level_change(found[1], found[0], 500) == pytest.approx(20 * np.log10(abs(gain)), abs=0.3)


def test_vocoded_sources_add_up_to_the_vocoded_mixture():
    beats = in_a_room(8000)
    sources = torch.cat(
        [beats, 0.2 * noise(*beats.shape), 0.1 * torch.sin(torch.arange(beats.shape[-1]) / 3).expand_as(beats)]
    )
    for frames in (28000, 35000):
        whole = vocode(sources.sum(0, keepdim=True), frames, 8000)
        torch.testing.assert_close(vocode(sources, frames, 8000).sum(0, keepdim=True), whole, atol=1e-4, rtol=0)


@pytest.mark.parametrize("turned", [[1.0, -1.0], [1.0, 1.0]])
def test_channels_and_sources_that_cancel_are_stretched_too(turned):
    one, signs = noise(8000), torch.tensor(turned)
    whole = vocode(one[None, None], 7000, 8000)[0, 0]
    torch.testing.assert_close(
        vocode((one * signs[:, None])[None], 7000, 8000)[0], whole * signs[:, None], atol=1e-3, rtol=0
    )
    opposed = vocode(torch.stack([one, -one])[:, None], 7000, 8000)
    assert opposed.isfinite().all()
    torch.testing.assert_close(opposed[0], -opposed[1])


def test_stretching_reads_no_value_from_the_device():
    with FakeTensorMode():
        for asked in ((1.0, 1.1, 0.0), (1.0, 1.0, 2.0), (0.9, 1.0, 0.0)):
            how = StretchPlan.of(20000, *asked)
            assert stretch(torch.empty(2, 2, how.read), how, 8000).shape == (2, 2, 20000)


# recorded mixtures --------------------------------------------------------------------------------------------------

CHANGES = [
    {"tempo": [0.9, 1.1]},
    {"pitch": [-2.0, 2.0]},
    {"speed": [0.9, 1.1]},
    {"tempo": [0.9, 1.1], "pitch": [-2.0, 2.0], "equaliser": 6.0, "gain": [-6.0, 6.0], "polarity": 0.5},
    {"equaliser": 6.0},
    {"tempo": [0.9, 1.1], "reverb": True},
]


@pytest.mark.parametrize("options", CHANGES, ids=lambda options: "+".join(options))
def test_a_recorded_mixture_stays_the_sum_of_its_references(wsj0mix, tmp_path, options):
    batch = changed_batch(wsj0mix, tmp_path, options)
    found = si_sdr(batch.mixture, batch.sources.sum(1))
    assert found.min() > 60, found  # dB


@pytest.mark.parametrize("options", CHANGES, ids=lambda options: "+".join(options))
def test_the_rest_of_a_recorded_mixture_is_stretched_with_its_sources(wsj0mix, tmp_path, options):
    for path in (wsj0mix / "tr" / "mix").iterdir():
        number = int(path.stem)
        write(path, tone(250 + 50 * number) + tone(900 + 100 * number) + 0.3 * tone(3000), subtype="FLOAT")
    batch = changed_batch(wsj0mix, tmp_path, options)
    rest = batch.mixture - batch.sources.sum(1)
    level = 20 * torch.log10(rest[..., 500:-500].square().mean(-1).sqrt() / (0.03 / np.sqrt(2)))
    torch.testing.assert_close(level, torch.zeros_like(level), atol=0.5, rtol=0)
    for one in rest[:, 0].numpy():
        assert 3000 * 0.87 <= pitch(one, 8000) <= 3000 * 1.13
    assert not batch.additive


def changed_batch(root, tmp_path, options):
    if options.get("reverb"):
        write(tmp_path / "rooms" / "a.wav", room(), subtype="FLOAT")
        options = {**options, "reverb": str(tmp_path / "rooms")}
    augment = augmented(1, 8000, **options)
    config = speech_data("wsj0mix", root, excerpt=augment.stretch.read_factor)
    return TrainingSteps(open_split(config, "train"), 6, 0, augment)[0].to(CPU, STFTS)


# resampling and equaliser -------------------------------------------------------------------------------------------


@pytest.mark.parametrize("length", [100, 101])
@pytest.mark.parametrize("frames", [60, 61, 80, 99, 100, 101, 102, 150, 151])
def test_resampling_is_that_of_scipy(length, frames):
    audio = noise(2, length).double()
    expected = scipy.signal.resample(audio.numpy(), frames, axis=-1)
    np.testing.assert_allclose(resample_to(audio, frames).numpy(), expected, atol=1e-12)


def test_resampling_by_the_spectrum_keeps_a_tone():
    audio = tones(400, frames=5000)[0]
    found = resample_to(audio, 4000)[0].numpy()
    np.testing.assert_allclose(found, tones(500, frames=4000)[0, 0].numpy(), atol=0.02)


def test_an_equaliser_changes_levels_by_its_curve():
    gains = torch.zeros(2, BANDS)
    gains[0] = 6.0
    gains[1] = torch.linspace(-6, 6, BANDS)
    audio = torch.cat([tones(100), tones(2000)]).reshape(2, 1, 1, 8000).expand(2, 2, 1, 8000)  # tone, source
    changed = equalise(audio, gains, 8000)
    levels = 20 * torch.log10(changed.square().mean(-1).sqrt() / np.sqrt(0.5)).squeeze(-1)
    torch.testing.assert_close(levels[:, 0], torch.tensor([6.0, 6.0]), atol=0.05, rtol=0)
    expected = [-6 + 12 * np.log2(f / 40) / np.log2(4000 / 40) for f in (100, 2000)]
    torch.testing.assert_close(levels[:, 1], torch.tensor(expected).float(), atol=0.1, rtol=0)


def test_a_room_is_a_convolution_that_begins_with_the_direct_sound(tmp_path):
    response = np.zeros((3000, 1))
    response[[500, 700, 2600], 0] = 0.8, 0.4, 0.2  # after 500 samples of silence; the last one is cut off
    write(tmp_path / "rooms" / "a.wav", response, subtype="FLOAT")
    augment = augmented(1, reverb=str(tmp_path / "rooms"), reverb_seconds=0.2)
    responses = parameters(augment, example(2, 1), Reverb)["responses"]
    assert responses.shape == (2, 1, 1600) and responses[0, 0, 0] / responses[0, 0, 200] == pytest.approx(2)
    assert (responses**2).sum(axis=-1) == pytest.approx(1)
    audio = torch.randn(2, 1, 4000)
    found = convolve(audio, torch.from_numpy(responses))
    expected = np.stack([np.convolve(a[0], r[0])[:4000] for a, r in zip(audio.numpy(), responses, strict=True)])
    np.testing.assert_allclose(found[:, 0], expected, atol=1e-4)
    dry = augmented(1, reverb=str(tmp_path / "rooms"), reverb_probability=0.0)
    response = torch.from_numpy(parameters(dry, example(2, 1), Reverb)["responses"])
    torch.testing.assert_close(convolve(audio, response), audio, atol=1e-5, rtol=0)


# references in rooms ------------------------------------------------------------------------------------------------


def room(rate=8000):
    """A response (T, 1): 40 ms of silence, a direct sound that rises for two samples, reflections at 20 and 90 ms."""
    response = np.zeros((3000, 1))
    response[[319, 320, 480, 1040], 0] = 0.3, -0.8, 0.4, 0.2
    return response


def heard_in_room(tmp_path, reference, response=None, channels=1, **options):
    """A batch of two sources of white noise in the room, and the dry sources."""
    write(tmp_path / "rooms" / "a.wav", room() if response is None else response, subtype="FLOAT")
    options = {"reverb": str(tmp_path / "rooms"), "reverb_reference": reference, **options}
    augment, sources = augmented(channels, **options), noise(1, 2, channels, 4000)
    changes = augment.draw(np.random.default_rng(0), example(2, channels))
    return collate([Example("x", sources[0].numpy())], [changes], 8000).to(CPU, STFTS), sources


def delayed(audio, response):
    """(..., T) convolved with the sparse response {sample: gain}."""
    found = torch.zeros_like(audio)
    for at, gain in response.items():
        found[..., at:] += gain * audio[..., : audio.shape[-1] - at]
    return found


def test_the_reference_is_the_chosen_part_of_the_reverberant_source(tmp_path):
    unit = np.sqrt(0.3**2 + 0.8**2 + 0.4**2 + 0.2**2)
    whole = {0: 0.3 / unit, 1: -0.8 / unit, 161: 0.4 / unit, 721: 0.2 / unit}
    parts = {"reverberant": [0, 1, 161, 721], "early": [0, 1, 161], "dry": [1]}
    for reference, kept in parts.items():
        batch, sources = heard_in_room(tmp_path, reference)
        expected = delayed(sources, {at: whole[at] for at in kept})
        torch.testing.assert_close(batch.sources, expected, atol=1e-4, rtol=0)
        torch.testing.assert_close(batch.mixture, delayed(sources, whole).sum(1), atol=1e-4, rtol=0)
        assert batch.additive == (reference == "reverberant")
        torch.testing.assert_close(batch.source_spectrograms, STFTS(batch.sources))
        torch.testing.assert_close(batch.spectrogram, STFTS(batch.mixture), atol=1e-3, rtol=0)


def test_a_dry_reference_is_aligned_with_the_direct_sound_of_each_channel(tmp_path):
    response = np.zeros((2000, 2))
    response[[300, 900], 0] = 0.9, 0.3
    response[[306, 700], 1] = -0.4, 0.35  # the far ear: later, softer, and a reflection nearly as loud
    batch, sources = heard_in_room(tmp_path, "dry", response, channels=2)
    unit = np.sqrt((0.9**2 + 0.3**2 + 0.4**2 + 0.35**2) / 2)
    torch.testing.assert_close(batch.sources[:, :, 0], sources[:, :, 0] * 0.9 / unit, atol=1e-4, rtol=0)
    expected = delayed(sources[:, :, 1], {6: -0.4 / unit})
    torch.testing.assert_close(batch.sources[:, :, 1], expected, atol=1e-4, rtol=0)


def test_the_direct_sound_comes_before_a_louder_reflection(tmp_path):
    response = np.zeros((2000, 1))
    response[[300, 500], 0] = 0.5, 0.8
    batch, sources = heard_in_room(tmp_path, "dry", response)
    torch.testing.assert_close(batch.sources, sources * 0.5 / np.hypot(0.5, 0.8), atol=1e-4, rtol=0)


@pytest.mark.parametrize("silent", [0, 1])
def test_a_silent_channel_of_a_room_does_not_delay_the_others(tmp_path, silent):
    response = np.zeros((2000, 2))
    response[[300, 500], 1 - silent] = 0.8, 0.6
    for reference, gains in (("dry", {0: 0.8}), ("reverberant", {0: 0.8, 200: 0.6})):
        batch, sources = heard_in_room(tmp_path, reference, response, channels=2)
        gains = {at: gain * np.sqrt(2) for at, gain in gains.items()}
        expected = delayed(sources[:, :, 1 - silent], gains)
        torch.testing.assert_close(batch.sources[:, :, 1 - silent], expected, atol=1e-4, rtol=0)
        assert batch.sources[:, :, silent].abs().max() < 1e-5
    batch, _ = heard_in_room(tmp_path, "dry", np.zeros((1999, 2)), channels=2)
    assert not batch.mixture.any()


def test_a_response_that_is_cut_before_its_peak_leaves_a_dry_reference(tmp_path):
    response = np.zeros((2000, 1))
    response[300:315, 0] = np.linspace(0.2, 1, 15)  # its peak is 14 samples after its start
    batch, sources = heard_in_room(tmp_path, "dry", response, reverb_seconds=0.0005)  # 4 samples
    unit = np.linalg.norm(response[300:304])
    kept = delayed(sources, {3: response[303, 0] / unit})
    torch.testing.assert_close(batch.sources, kept, atol=1e-4, rtol=0)


def test_outside_of_a_room_every_reference_is_the_source(tmp_path):
    for reference in ("reverberant", "early", "dry"):
        batch, sources = heard_in_room(tmp_path, reference, reverb_probability=0.0)
        torch.testing.assert_close(batch.sources, sources, atol=1e-5, rtol=0)
        torch.testing.assert_close(batch.mixture, sources.sum(1), atol=1e-5, rtol=0)


def test_gains_change_mixture_and_dry_reference_alike(tmp_path):
    plain, _ = heard_in_room(tmp_path, "dry")
    louder, _ = heard_in_room(tmp_path, "dry", gain=[6.0, 6.0])
    torch.testing.assert_close(louder.sources, plain.sources * 10**0.3)
    torch.testing.assert_close(louder.mixture, plain.mixture * 10**0.3)


def test_an_unknown_reference_is_refused(call, tmp_path):
    code, _, err = call(train, "augment.reverb_reference=direct", "debug=fast", cwd=tmp_path)
    assert code == 2 and "augment.reverb_reference=direct is unknown; choose from dry, early, reverberant" in err
