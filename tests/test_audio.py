"""Reading, seeking, resampling and refusing audio files."""

import json
import os
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import soundfile
import torch

from separate import audio, resampling
from tests.conftest import tone, write

rng = np.random.default_rng(0)


@pytest.mark.parametrize("rate", [8000, 16000, 11025, 44100])
def test_spans_of_a_file_agree_with_the_whole_resampled(tmp_path, rate):
    path = write(tmp_path / "a.wav", rng.standard_normal((30000, 1)) * 0.1, rate, subtype="FLOAT")
    info = audio.probe(path)
    length = audio.frames_at(info, 8000)
    whole = resampling.resample(torch.from_numpy(audio.read(path, 0, info.frames)), rate, 8000).numpy()[:, :length]
    for start, frames in [(0, 100), (1, 1000), (length // 2, 777), (length - 50, 50), (0, length)]:
        span = audio.read_span(path, info, start, frames, 8000, 1)
        np.testing.assert_allclose(span, whole[:, start : start + frames], atol=1e-5)


@pytest.mark.parametrize(("old", "new"), [(44100, 22050), (8000, 16000), (44100, 8000), (48000, 44100), (11025, 8000)])
@pytest.mark.parametrize("length", [1, 2, 127, 5000])
def test_resampling_is_torchaudios(old, new, length):
    from torchaudio.transforms import Resample

    x = torch.randn(2, 3, length)
    options = {"lowpass_filter_width": resampling.LOWPASS_WIDTH, "rolloff": resampling.ROLLOFF, "beta": resampling.BETA}
    expected = Resample(old, new, "sinc_interp_kaiser", **options)(x)
    torch.testing.assert_close(resampling.resample(x, old, new), expected, atol=1e-5, rtol=1e-5)


def test_a_tone_keeps_its_frequency_and_level_when_resampled():
    x = torch.from_numpy(tone(440, rate=44100)[:, 0]).float()
    y = resampling.resample(x, 44100, 8000)
    np.testing.assert_allclose(y[200:-200].numpy(), tone(440)[200 : len(y) - 200, 0], atol=1e-4)


def test_reading_past_the_end_gives_silence(tmp_path):
    path = write(tmp_path / "a.wav", tone(440, 0.1))
    span = audio.read_span(path, audio.probe(path), 700, 200, 8000, 2)
    assert span.shape == (2, 200)
    assert np.abs(span[:, :100]).max() > 0
    assert np.abs(span[:, 100:]).max() == 0


def test_channels_become_mono_by_their_mean_and_more_by_copies():
    stereo = rng.standard_normal((2, 10)).astype(np.float32)
    np.testing.assert_allclose(audio.convert_channels(stereo, 1), stereo.mean(0, keepdims=True))
    assert np.array_equal(audio.convert_channels(stereo[:1], 2), stereo[[0, 0]])
    with pytest.raises(ValueError, match="3 channels"):
        audio.convert_channels(rng.standard_normal((3, 10)), 2)


def cut(path: Path, bytes_left: int) -> Path:
    path.write_bytes(path.read_bytes()[:bytes_left])
    return path


@pytest.mark.parametrize("ending", ["wav", "flac"])
def test_a_truncated_file_is_refused(tmp_path, ending):
    path = write(tmp_path / f"a.{ending}", rng.standard_normal(8000) * 0.1)
    assert audio.probe(path).frames == 8000
    with pytest.raises(audio.UnreadableError, match=r"truncated|not readable"):
        audio.probe(cut(path, path.stat().st_size // 2))


def test_a_text_file_named_wav_is_refused(tmp_path):
    path = tmp_path / "a.wav"
    path.write_text("This is not audio.\n")
    with pytest.raises(audio.UnreadableError, match="not readable as audio"):
        audio.probe(path)


def test_a_wav_from_a_pipe_with_unknown_length_is_read(tmp_path):
    path = write(tmp_path / "a.wav", tone(440, 0.1))
    raw = bytearray(path.read_bytes())
    place = raw.index(b"data") + 4
    raw[place : place + 4] = b"\xff\xff\xff\xff"
    path.write_bytes(raw)
    assert audio.probe(path).frames == 800


@pytest.mark.parametrize("value", [np.nan, np.inf])
def test_a_sample_that_is_not_finite_is_named(tmp_path, value):
    samples = np.zeros(100, np.float32)
    samples[42] = value
    path = write(tmp_path / "a.wav", samples, subtype="FLOAT")
    assert audio.probe(path).floating
    with pytest.raises(audio.NonFiniteError, match="at 42"):
        audio.read(path, 0, 100)
    assert audio.read(path, 43, 57).shape == (1, 57)


def test_a_created_file_is_read_back(tmp_path):
    samples = rng.standard_normal((300, 2)).astype(np.float32)
    with audio.create(tmp_path / "a.wav", 300, 8000, 2) as file:
        file.write(samples[:100])
        file.write(samples[100:])
    assert np.array_equal(audio.read(tmp_path / "a.wav", 0, 300), samples.T)
    assert soundfile.info(tmp_path / "a.wav").subtype == "FLOAT"


# ------------------------------------------------------------------------------------------- limits on headers --------


@pytest.mark.parametrize(
    ("old", "new", "kind"),
    [
        (44101, 8000, resampling.Interpolator), (655351, 8000, resampling.Interpolator),
        (8000, 8001, resampling.Polyphase), (44056, 44100, resampling.Polyphase),
        (1009, 16000, resampling.Polyphase), (44100, 8192, resampling.Polyphase),
    ],
)  # fmt: skip
def test_odd_ratios_are_resampled_by_the_same_kernel(old, new, kind):
    """The reference is the windowed sinc of the definition, in float64 for a few samples."""
    x = torch.randn(2, 3000, generator=torch.Generator().manual_seed(0))
    found = resampling.resample(x, old, new)
    assert type(resampling.resampler(old, new)) is kind
    assert found.shape == (2, -(-3000 * new // old))
    cutoff = min(old, new) * resampling.ROLLOFF / old
    for place in np.linspace(0, found.shape[1] - 1, 12).astype(int):
        t = (np.arange(3000) - place * old / new) * cutoff  # zero crossings from the output's place
        window = np.i0(resampling.BETA * np.sqrt(np.clip(1 - (t / resampling.LOWPASS_WIDTH) ** 2, 0, None))) / np.i0(
            resampling.BETA
        )
        kernel = np.where(np.abs(t) < resampling.LOWPASS_WIDTH, np.sinc(t) * window * cutoff, 0)
        np.testing.assert_allclose(found[:, place].numpy(), x.double().numpy() @ kernel, atol=5e-6)


@pytest.mark.parametrize(("old", "new"), [(44101, 8000), (44100, 8192), (8000, 8001)])
def test_spans_of_a_file_with_an_odd_rate_agree_with_the_whole(tmp_path, old, new, monkeypatch):
    path = write(tmp_path / "a.wav", rng.standard_normal((60000, 2)) * 0.1, old, subtype="FLOAT")
    info = audio.probe(path)
    length = audio.frames_at(info, new)
    whole = resampling.resample(torch.from_numpy(audio.read(path, 0, info.frames)), old, new).numpy()[:, :length]
    monkeypatch.setattr(
        resampling.resampler(old, new), "block_frames", 2500
    )  # several blocks, which begin within a period
    for start, frames in [(0, 100), (1, 1000), (length // 2, 777), (length - 50, 50), (0, length)]:
        span = audio.read_span(path, info, start, frames, new, 2)
        np.testing.assert_allclose(span, whole[:, start : start + frames], atol=1e-6)
    assert np.array_equal(audio.read_span(path, info, length + 5000, 10, new, 2), np.zeros((2, 10)))


def test_a_tone_at_an_odd_rate_keeps_its_frequency_and_level():
    x = torch.from_numpy(tone(440, rate=44101)[:, 0]).float()
    y = resampling.resample(x, 44101, 8000)
    np.testing.assert_allclose(y[200:-200].numpy(), tone(440)[200 : len(y) - 200, 0], atol=1e-4)


def test_the_memory_of_a_kernel_does_not_grow_with_the_rates():
    for old, new in (
        (44101, 8000),
        (11025, 2048),
        (44056, 44100),
        (655351, 8000),
        (999983, 999979),
        (8000, 999983),
        (1009, 1000000),
    ):
        kernel = resampling.resampler(old, new)
        kept = [value for value in vars(kernel).values() if isinstance(value, torch.Tensor)]
        assert sum(value.numel() for value in kept) <= resampling.LARGEST_KERNEL


@pytest.mark.parametrize("rate", [0, 999, 1_000_001, 2**31 - 1])
def test_a_sample_rate_that_no_recording_has_is_refused(tmp_path, rate):
    path = with_rate(write(tmp_path / "a.wav", tone(440)), rate)
    with pytest.raises(audio.UnreadableError, match=rf"claims a sample rate of {rate} Hz, and files of|not readable"):
        audio.probe(path)


def with_rate(path: Path, rate: int) -> Path:
    """A WAV file that claims another sample rate."""
    raw = bytearray(path.read_bytes())
    raw[24:28] = rate.to_bytes(4, "little")
    path.write_bytes(raw)
    return path


def test_more_channels_than_anyone_records_are_refused(tmp_path):
    path = write(tmp_path / "a.wav", np.zeros((100, 65)))
    with pytest.raises(audio.UnreadableError, match="claims 65 channels, and up to 64 are read"):
        audio.probe(path)
    assert audio.probe(write(tmp_path / "b.wav", np.zeros((100, 64)))).channels == 64


def test_a_file_that_changed_after_its_header_was_read_is_refused(tmp_path):
    path = write(tmp_path / "a.wav", tone(440))
    info = audio.probe(path)
    with pytest.raises(audio.UnreadableError, match=r"holds 1 channels at 8000 Hz, and held 2 at 16000 Hz"):
        audio.read_span(path, replace(info, sample_rate=16000, channels=2), 0, 100, 8000, 1)
    with pytest.raises(audio.UnreadableError, match=rf"truncated after {info.frames} samples"):
        audio.read_span(path, replace(info, frames=1000 * info.frames), 500 * info.frames, 100, 8000, 1)


FLIPPED = [
    ("wav", "FLOAT"), ("wav", "PCM_16"), ("flac", "PCM_16"), ("ogg", "VORBIS"), ("aiff", "FLOAT"), ("w64", "FLOAT"),
    ("au", "FLOAT"), ("caf", "FLOAT"), ("rf64", "FLOAT"), ("mp3", "MPEG_LAYER_III"),
]  # fmt: skip
FUZZ = """
import json, resource, sys
import numpy as np, torch
from separate import audio, resampling
torch.set_num_threads(1)
resampling.resample(torch.randn(1, 9000), 44100, 8000)  # loads what is loaded once
pages = int(open("/proc/self/statm").read().split()[0]) * resource.getpagesize()
resource.setrlimit(resource.RLIMIT_AS, (pages + 2**30,) * 2)
resource.setrlimit(resource.RLIMIT_CPU, (240, 240))
found = {}
for path in sys.argv[1:]:
    try:
        info = audio.probe(path)
        samples = torch.from_numpy(audio.read(path, 0, min(info.frames, 10 * info.sample_rate)))
        back = resampling.resample(resampling.resample(samples, info.sample_rate, 8000), 8000, info.sample_rate)
        length = audio.frames_at(info, 8000)
        audio.read_span(path, info, max(length - 8000, 0), 8000, 8000, 1)
        found[path] = "read"
    except audio.UnreadableError as error:
        found[path] = f"refused: {error}"
print(json.dumps(found))
"""


def test_damaged_headers_are_read_or_refused_in_bounded_memory_and_time(tmp_path):
    """Bits flipped in the first bytes of every format, and sample rates that share no factor with the network's."""
    paths = []
    for ending, subtype in FLIPPED:
        whole = write(tmp_path / f"whole.{ending}", rng.standard_normal((4000, 2)) * 0.1, 44100, subtype=subtype)
        raw = whole.read_bytes()
        generator = np.random.default_rng(len(paths))
        # each format has the sample rate at another place, so its bytes are searched for
        big, little = (raw.find((44100).to_bytes(4, order)) for order in ("big", "little"))
        rate = next((place for place in (little, big) if 0 <= place < 100), 0)
        flips = [(rate + byte, bit) for byte, bit in ((0, 0), (0, 3), (1, 2), (1, 6), (2, 1), (3, 6))]
        flips += [(int(generator.integers(4, 96)), int(generator.integers(8))) for _ in range(6)]
        for number, (place, bit) in enumerate(flips):
            damaged = bytearray(raw)
            damaged[place] ^= 1 << bit
            paths.append(tmp_path / f"{subtype}-{number}.{ending}")
            paths[-1].write_bytes(damaged)
    for claimed in (655351, 2**31 - 1, 44101, 1):
        paths.append(with_rate(write(tmp_path / f"rate{claimed}.wav", tone(440, channels=2), subtype="FLOAT"), claimed))
    done = subprocess.run(
        [sys.executable, "-c", FUZZ, *map(str, paths)],
        capture_output=True, text=True, env={**os.environ, "OMP_NUM_THREADS": "1"},
    )  # fmt: skip
    assert done.returncode == 0, done.stderr[-2000:]
    found = json.loads(done.stdout)
    assert len(found) == len(paths) == 10 * 12 + 4
    assert sum(what == "read" for what in found.values()) > 30
    assert sum(what.startswith("refused") for what in found.values()) > 30
    assert found[str(tmp_path / "rate655351.wav")] == found[str(tmp_path / "rate44101.wav")] == "read"
    assert "claims a sample rate of 2147483647 Hz" in found[str(tmp_path / f"rate{2**31 - 1}.wav")]
    assert "claims a sample rate of 1 Hz" in found[str(tmp_path / "rate1.wav")]


def test_silence_in_a_flac_file_may_be_longer_than_its_bytes(tmp_path):
    path = write(tmp_path / "a.flac", np.zeros(400_000))
    assert path.stat().st_size < 40_000
    assert audio.probe(path).frames == 400_000


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_resampling_has_a_gradient_after_it_was_first_used_in_inference_mode(dtype):
    x = torch.randn(1, 700, dtype=dtype)
    resampling.resampler.cache_clear()
    with torch.inference_mode():
        expected = resampling.resample(x, 44100, 8192)
    found = resampling.resample(x.requires_grad_(), 44100, 8192)
    assert torch.equal(found, expected)
    found.square().sum().backward()
    assert x.grad.abs().max() > 0
