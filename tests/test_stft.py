"""Facts about the transform: an exact inverse at every length, frames where they are said to be."""

import pytest
import torch

from separate.stft import STFT

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


def test_frame_n_is_centred_on_sample_n_hop():
    stft = STFT(64, 16, "hann")
    x = torch.zeros(640)
    x[160] = 1.0
    assert stft(x).abs().sum(0).argmax() == 160 // 16
    assert stft(x).shape == (33, 1 + 640 // 16)


def test_a_tone_lies_in_its_bin():
    x = torch.sin(2 * torch.pi * 1000 * torch.arange(8000) / 8000)
    assert STFT(256, 64)(x).abs().mean(-1).argmax() == 1000 * 256 // 8000


def test_gradient_flows_through_the_inverse():
    stft = STFT(64, 16)
    x = torch.randn(1, 300, dtype=torch.float32, requires_grad=True)
    (gradient,) = torch.autograd.grad(stft.inverse(stft(x) * 0.5, 300).sum(), x)
    assert torch.allclose(gradient, torch.full_like(gradient, 0.5), atol=1e-5)


@pytest.mark.parametrize(
    ("arguments", "message"), [((64, 33, "hann"), "hop=33"), ((64, 0, "hann"), "hop=0"), ((64, 16, "kaiser"), "kaiser")]
)
def test_refuses_what_has_no_inverse(arguments, message):
    with pytest.raises(ValueError, match=message):
        STFT(*arguments)
