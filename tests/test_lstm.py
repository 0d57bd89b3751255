"""LSTM layers on the CPU against torch's own."""

from __future__ import annotations

import signal
import subprocess
import sys
from collections.abc import Iterator

import pytest
import torch
from torch import Tensor, nn

from separate.models import lstm
from separate.models.layers import Recurrent

BFLOAT16 = pytest.mark.skipif(not lstm._has_bfloat16(), reason="the CPU has no bfloat16")


@pytest.fixture(params=[1, 2, 5])
def threads(request: pytest.FixtureRequest) -> Iterator[int]:
    before = torch.get_num_threads()
    torch.set_num_threads(request.param)
    yield request.param
    torch.set_num_threads(before)


def layers(dropout: float = 0.0) -> Recurrent:
    torch.manual_seed(0)
    return Recurrent("lstm", 33, 3, 20, bidirectional=True, dropout=dropout)


def signal_of(batch: int = 4, frames: int = 50) -> Tensor:
    return torch.randn(batch, frames, 33, generator=torch.Generator().manual_seed(1)).requires_grad_()


def gradients(output: Tensor, x: Tensor, network: nn.Module) -> list[Tensor]:
    weights = torch.linspace(-1, 1, output.numel()).view(output.shape)
    return list(torch.autograd.grad((output.float() * weights).sum(), [x, *network.parameters()]))


@pytest.mark.parametrize(("batch", "frames"), [(4, 50), (1, 1), (1, 30), (7, 2)])
def test_float32_equals_torch_bit_for_bit(threads: int, batch: int, frames: int) -> None:
    network, x = layers(), signal_of(batch, frames)
    assert lstm.is_supported(network.layers, x)
    ours, theirs = network(x), network.layers(x)[0]
    assert torch.equal(ours, theirs)
    pairs = zip(gradients(ours, x, network), gradients(theirs, x, network), strict=True)
    assert all(torch.equal(own, other) for own, other in pairs)


@BFLOAT16
def test_bfloat16_equals_torch_within_its_rounding(threads: int) -> None:
    network, x = layers(), signal_of()
    with torch.autocast("cpu", torch.bfloat16):
        ours, theirs = network(x), network.layers(x)[0]
    assert ours.dtype == torch.bfloat16
    assert torch.equal(ours, theirs)
    exact = gradients(network.layers(x)[0], x, network)
    for own, reference in zip(gradients(ours, x, network), exact, strict=True):
        assert torch.linalg.vector_norm(own - reference) < 0.05 * torch.linalg.vector_norm(reference)


@pytest.mark.parametrize("train", [True, False])
def test_without_gradients_equals_torch(threads: int, train: bool) -> None:
    network = layers().train(train)
    with torch.inference_mode():
        x = signal_of().detach()
        assert torch.equal(network(x), network.layers(x)[0])


def test_gradients_in_evaluation_mode(threads: int) -> None:
    network, x = layers().eval(), signal_of()
    own = gradients(network(x), x, network)
    reference = gradients(network.train()(x), x, network)
    assert all(torch.equal(a, b) for a, b in zip(own, reference, strict=True))


def test_bits_do_not_depend_on_the_number_of_threads() -> None:
    network, x, before, found = layers(dropout=0.3), signal_of(), torch.get_num_threads(), []
    try:
        for count in (1, 2, 4):
            torch.set_num_threads(count)
            torch.manual_seed(2)
            output = network(x)
            found.append([output, *gradients(output, x, network)])
            assert torch.get_num_threads() == count
    finally:
        torch.set_num_threads(before)
    for other in found[1:]:
        assert all(torch.equal(a, b) for a, b in zip(found[0], other, strict=True))


def test_another_dtype_or_kind_is_left_to_torch() -> None:
    x = signal_of()
    assert not lstm.is_supported(layers().double().layers, x.double())
    assert not lstm.is_supported(Recurrent("gru", 33, 1, 20, bidirectional=True).layers, x)
    assert not lstm.is_supported(Recurrent("lstm", 33, 1, 20, bidirectional=False).layers, x)
    assert layers().double()(x.double()).dtype == torch.float64


def test_its_threads_block_signals() -> None:
    """oneDNN moves the stack pointer: see separate/interrupts.py."""
    pool = lstm._direction_pool(2)
    masks = list(pool.map(lambda _: signal.pthread_sigmask(signal.SIG_BLOCK, []), range(8)))
    assert all({signal.SIGINT, signal.SIGTERM} <= mask for mask in masks)


@pytest.mark.parametrize("probability", [0.0, 0.2, 0.5, 0.999])
def test_dropout_keeps_share_and_mean(probability: float) -> None:
    torch.manual_seed(0)
    x = torch.ones(1_000_003, requires_grad=True)
    y = lstm.dropout(x, probability)
    share = (y == 0).double().mean().item()
    assert share == pytest.approx(probability, abs=4 * (probability * (1 - probability) / 1e6) ** 0.5)
    assert y.unique().tolist() == pytest.approx([0.0, 1 / (1 - probability)] if probability else [1.0])
    y.sum().backward()
    assert torch.equal(x.grad, y.detach())


def test_dropout_is_independent_for_each_value() -> None:
    """Neighbours that share a random word are uncorrelated, as are those of other rows."""
    torch.manual_seed(0)
    kept = (lstm.dropout(torch.ones(2**20), 0.3) > 0).double() - 0.7
    for lag in (1, 2, 3, 4, 8):
        correlation = (kept[lag:] * kept[:-lag]).mean() / 0.21
        assert abs(correlation) < 5 / 2**10
    assert [round(kept[start::4].mean().item(), 2) for start in range(4)] == [0.0] * 4


def test_dropout_acts_between_layers_and_in_training_only() -> None:
    network, x = layers(dropout=0.5), signal_of()
    assert not torch.equal(network(x), network(x))
    network.eval()
    assert torch.equal(network(x), network.layers(x)[0])
    single = Recurrent("lstm", 33, 1, 20, bidirectional=True, dropout=0.5)
    assert torch.equal(single(x), single.layers(x)[0])


def test_the_compiler_of_torch_is_loaded_only_to_compile():
    script = "import sys, separate.separator; sys.exit('torch._dynamo' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", script]).returncode == 0
