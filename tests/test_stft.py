"""The STFT: an exact inverse at every length, and frames centred on multiples of the hop."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.signal import check_NOLA

from separate.stft import LEAST_OVERLAP, STFT, WINDOWS, overlap

torch.manual_seed(0)


@pytest.mark.parametrize("window", ["hann", "sqrt_hann", "hamming"])
@pytest.mark.parametrize("hop", [16, 24, 32])
def test_inverse_returns_every_sample_at_every_length(window, hop):
    stft = STFT(64, hop, window)
    for length in [*range(1, 200), 1000, 1023, 4096]:
        x = torch.randn(2, 3, length)
        y = stft.inverse(stft(x), length)
        assert y.shape == x.shape
        assert torch.allclose(x, y, atol=1e-5), length


@settings(deadline=None, max_examples=300)
@given(st.sampled_from(sorted(WINDOWS)), st.integers(1, 70), st.integers(1, 75), st.integers(1, 300))
def test_a_transform_is_refused_or_exact_for_every_window_size_hop_and_length(window, n_fft, hop, length):
    """The same sum over all frames decides which of the two; scipy's check of the overlap agrees."""
    whole = WINDOWS[window](n_fft).numpy()
    x = torch.from_numpy(np.random.default_rng(length).standard_normal((2, length))).float()
    try:
        stft = STFT(n_fft, hop, window)
    except ValueError:
        assert hop > n_fft / 2  # half of a window always suffices
        assert hop > n_fft or overlap(torch.from_numpy(whole), hop) < LEAST_OVERLAP
        return
    assert hop == n_fft or check_NOLA(whole, n_fft, n_fft - hop, tol=1e-6)
    spectrogram = stft(x)
    assert spectrogram.shape == (2, n_fft // 2 + 1, 1 - -length // hop)
    assert (stft.inverse(spectrogram, length) - x).abs().max() < 1e-5


def test_jansson_s_transform_is_inverted():
    stft = STFT(1024, 768, "hann")
    x = torch.randn(50_000)
    assert (stft.inverse(stft(x), 50_000) - x).abs().max() < 3e-6
    assert overlap(stft.window, 768) == pytest.approx(2 * np.cos(3 * np.pi / 8) ** 4, rel=1e-5)


@pytest.mark.parametrize("n_fft", [64, 63])
def test_frame_n_is_centred_on_sample_n_hop(n_fft):
    stft = STFT(n_fft, 16, "hann")
    x = torch.zeros(640)
    x[160] = 1.0
    assert stft(x).abs().sum(0).argmax() == 160 // 16
    assert stft(x).shape == (n_fft // 2 + 1, 1 + 640 // 16)


def test_a_tone_lies_in_its_bin():
    x = torch.sin(2 * torch.pi * 1000 * torch.arange(8000) / 8000)
    assert STFT(256, 64)(x).abs().mean(-1).argmax() == 1000 * 256 // 8000


def test_gradient_flows_through_the_inverse():
    stft = STFT(64, 16)
    x = torch.randn(1, 300, dtype=torch.float32, requires_grad=True)
    (gradient,) = torch.autograd.grad(stft.inverse(stft(x) * 0.5, 300).sum(), x)
    assert torch.allclose(gradient, torch.full_like(gradient, 0.5), atol=1e-5)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ((64, 63, "hann"), "hop=63 has no exact inverse with n_fft=64 and window=hann.*use a shorter hop, e.g. 32"),
        ((64, 65, "hamming"), "hop=65 has no exact inverse"),
        ((64, 0, "hann"), "hop=0 must be at least 1"),
        ((64, 16, "kaiser"), "kaiser"),
    ],
)
def test_transforms_without_an_inverse_are_refused(arguments, message):
    with pytest.raises(ValueError, match=message):
        STFT(*arguments)
