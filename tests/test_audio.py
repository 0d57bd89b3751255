"""Reading, seeking, resampling and refusing audio files."""

from pathlib import Path

import numpy as np
import pytest
import soundfile
import torch

from separate import audio
from tests.conftest import tone, write

rng = np.random.default_rng(0)


@pytest.mark.parametrize("rate", [8000, 16000, 11025, 44100])
def test_spans_of_a_file_agree_with_the_whole_resampled(tmp_path, rate):
    path = write(tmp_path / "a.wav", rng.standard_normal((30000, 1)) * 0.1, rate, subtype="FLOAT")
    info = audio.probe(path)
    length = audio.frames_at(info, 8000)
    whole = audio.resample(torch.from_numpy(audio.read(path, 0, info.frames)), rate, 8000).numpy()[:, :length]
    for start, frames in [(0, 100), (1, 1000), (length // 2, 777), (length - 50, 50), (0, length)]:
        span = audio.read_span(path, info, start, frames, 8000, 1)
        np.testing.assert_allclose(span, whole[:, start : start + frames], atol=1e-5)


@pytest.mark.parametrize(("old", "new"), [(44100, 22050), (8000, 16000), (44100, 8000), (48000, 44100), (11025, 8000)])
@pytest.mark.parametrize("length", [1, 2, 127, 5000])
def test_resampling_is_torchaudios(old, new, length):
    from torchaudio.transforms import Resample

    x = torch.randn(2, 3, length)
    options = {"lowpass_filter_width": audio.LOWPASS_WIDTH, "rolloff": audio.ROLLOFF, "beta": audio.BETA}
    expected = Resample(old, new, "sinc_interp_kaiser", **options)(x)
    torch.testing.assert_close(audio.resample(x, old, new), expected, atol=1e-5, rtol=1e-5)


def test_a_tone_keeps_its_frequency_and_level_when_resampled():
    x = torch.from_numpy(tone(440, rate=44100)[:, 0]).float()
    y = audio.resample(x, 44100, 8000)
    np.testing.assert_allclose(y[200:-200].numpy(), tone(440)[200 : len(y) - 200, 0], atol=1e-4)


def test_past_the_end_there_is_silence(tmp_path):
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
def test_a_sample_that_is_no_number_is_named(tmp_path, value):
    samples = np.zeros(100, np.float32)
    samples[42] = value
    path = write(tmp_path / "a.wav", samples, subtype="FLOAT")
    assert audio.probe(path).floating
    with pytest.raises(audio.NonFiniteError, match="at 42"):
        audio.read(path, 0, 100)
    assert audio.read(path, 43, 57).shape == (1, 57)


def test_what_is_created_is_read_back(tmp_path):
    samples = rng.standard_normal((300, 2)).astype(np.float32)
    with audio.create(tmp_path / "a.wav", 300, 8000, 2) as file:
        file.write(samples[:100])
        file.write(samples[100:])
    assert np.array_equal(audio.read(tmp_path / "a.wav", 0, 300), samples.T)
    assert soundfile.info(tmp_path / "a.wav").subtype == "FLOAT"
