"""Networks on a learned filterbank (Conv-TasNet, TasNet, DPRNN): references, causality, every option, every length."""

import pytest
import torch
import torchaudio
from torch import nn

from separate.models import tcn_gradient
from separate.models.conv_tasnet import ConvTasNet, state_from_torchaudio
from separate.models.dprnn import DPRNN
from separate.models.filterbank import Decoder, Encoder, frame, overlap_add
from separate.models.norms import CumulativeNorm
from separate.models.tasnet import TasNet
from separate.models.tcn import TemporalOptions, TemporalStack
from separate.models.tcn_gradient import StackFunction

SMALL = {
    ConvTasNet: {"filters": 8, "kernel": 4, "bottleneck": 5, "hidden": 7, "skip": 6, "layers": 3, "repeats": 2},
    TasNet: {"filters": 8, "kernel": 10, "layers": 4, "units": 6},
    DPRNN: {"filters": 8, "kernel": 4, "chunk": 6, "bottleneck": 5, "blocks": 2, "units": 6},
}
NETWORKS = list(SMALL)


def make(network, sources=2, channels=1, **options):
    torch.manual_seed(0)
    return network(sources, channels, **{**SMALL[network], **options})


def relative(a, b):
    return ((a - b).norm() / b.norm()).item()


# filterbank


@pytest.mark.parametrize(("kernel", "stride"), [(2, 1), (16, 8), (12, 4), (5, 5)])
@pytest.mark.parametrize("length", [1, 7, 16, 33])
def test_overlapping_frames_add_up_to_the_signal_as_often_as_they_overlap(kernel, stride, length):
    x = torch.randn(2, 3, length)
    frames = frame(x, kernel, stride)
    assert frames.shape == (2, 3, -(-length // stride) + kernel // stride - 1, kernel)
    torch.testing.assert_close(overlap_add(frames, stride, length), x * (kernel // stride))
    other = torch.randn_like(frames)  # and the two are each other's adjoint
    torch.testing.assert_close((frames * other).sum(), (x * overlap_add(other, stride, length)).sum())


def test_the_encoder_is_a_strided_convolution_and_the_decoder_its_transpose():
    encoder, decoder, x = Encoder(6, 2, 8), Decoder(6, 2, 8), torch.randn(3, 2, 40)
    features = encoder(x)
    reference = nn.functional.conv1d(x, encoder.weight, stride=4, padding=4)
    torch.testing.assert_close(features, reference.transpose(1, 2))
    back = nn.functional.conv_transpose1d(reference, decoder.weight, stride=4, padding=4)
    torch.testing.assert_close(decoder(features[:, None], 40)[:, 0], back)


# properties of all networks


@pytest.mark.parametrize("network", NETWORKS)
@pytest.mark.parametrize(("sources", "channels", "length"), [(2, 1, 1), (3, 2, 57), (1, 1, 64), (4, 2, 3)])
def test_every_length_channel_and_source_count_gives_waveforms_of_the_mixtures_shape(
    network, sources, channels, length
):
    model = make(network, sources, channels)
    assert model(torch.randn(2, channels, length))["waveforms"].shape == (2, sources, channels, length)


@pytest.mark.parametrize("network", NETWORKS)
def test_a_valid_length_is_one_that_padding_does_not_change(network):
    model = make(network).eval()
    length = model.valid_length(41)
    stride = model.encoder.stride
    assert length >= 41
    assert length - 41 < stride
    assert model.valid_length(length) == length
    x = torch.randn(1, 1, 41)
    padded = nn.functional.pad(x, (0, length - 41))
    whole, part = model(padded)["waveforms"], model(x)["waveforms"]
    torch.testing.assert_close(whole[..., :41], part)


@pytest.mark.parametrize("network", NETWORKS)
@pytest.mark.parametrize("options", [{}, {"causal": True}])
def test_silence_gives_finite_estimates_and_gradients(network, options):
    if options and network is TasNet:
        options = {"bidirectional": False}
    if options and network is ConvTasNet:
        options = {**options, "norm": "cumulative"}
    model = make(network, **options)
    x = torch.zeros(2, 1, 50, requires_grad=True)
    estimate = model(x)["waveforms"]
    estimate.square().sum().backward()
    assert estimate.isfinite().all()
    assert x.grad.isfinite().all()
    assert all(p.grad is not None and p.grad.isfinite().all() for p in model.parameters())


@pytest.mark.parametrize("network", NETWORKS)
def test_bfloat16_autocast_is_finite_and_near_float32(network):
    model, x = make(network), torch.randn(2, 1, 60)
    with torch.autocast("cpu", torch.bfloat16):
        estimate = model(x)["waveforms"]
    estimate.float().square().sum().backward()
    assert relative(estimate.float(), model(x)["waveforms"]) < 0.1
    assert all(p.grad.isfinite().all() for p in model.parameters())


@pytest.mark.parametrize("network", NETWORKS)
def test_examples_of_a_batch_are_independent(network):
    model, x = make(network).eval(), torch.randn(3, 1, 50)
    torch.testing.assert_close(model(x)["waveforms"][1:2], model(x[1:2])["waveforms"])


OPTIONS = [
    (ConvTasNet, {"filters": 9}),
    (ConvTasNet, {"kernel": 6}),
    (ConvTasNet, {"bottleneck": 6}),
    (ConvTasNet, {"hidden": 8}),
    (ConvTasNet, {"skip": 7}),
    (ConvTasNet, {"skip": 0}),
    (ConvTasNet, {"convolution": 2}),
    (ConvTasNet, {"layers": 2}),
    (ConvTasNet, {"repeats": 1}),
    (ConvTasNet, {"norm": "cumulative"}),
    (ConvTasNet, {"norm": "batch"}),
    (ConvTasNet, {"norm": "cumulative", "causal": True}),
    (ConvTasNet, {"activation": "relu"}),
    (ConvTasNet, {"encoder_activation": "relu"}),
    (ConvTasNet, {"padding": "replicate"}),
    (ConvTasNet, {"padding": "reflect"}),
    (ConvTasNet, {"inner_activation": "relu"}),
    (TasNet, {"filters": 9}),
    (TasNet, {"kernel": 8}),
    (TasNet, {"recurrent": "gru"}),
    (TasNet, {"layers": 3}),
    (TasNet, {"units": 7}),
    (TasNet, {"bidirectional": False}),
    (TasNet, {"dropout": 0.9}),
    (TasNet, {"activation": "sigmoid"}),
    (DPRNN, {"filters": 9}),
    (DPRNN, {"kernel": 6}),
    (DPRNN, {"chunk": 8}),
    (DPRNN, {"bottleneck": 6}),
    (DPRNN, {"blocks": 1}),
    (DPRNN, {"recurrent": "gru"}),
    (DPRNN, {"units": 7}),
    (DPRNN, {"causal": True}),
    (DPRNN, {"dropout": 0.9}),
    (DPRNN, {"activation": "relu"}),
]


@pytest.mark.parametrize(("network", "option"), OPTIONS)
def test_every_option_changes_the_estimates(network, option):
    x = torch.randn(2, 1, 60)
    before, after = make(network)(x)["waveforms"], make(network, **option)(x)["waveforms"]
    assert relative(after, before) > 1e-3


def test_a_causal_norm_differs_from_a_causal_convolution():
    x = torch.randn(2, 1, 60)
    estimates = [make(ConvTasNet, norm="cumulative", causal=causal)(x)["waveforms"] for causal in (False, True)]
    assert relative(*estimates) > 1e-3


@pytest.mark.parametrize(
    ("network", "options", "latency"),
    [
        (ConvTasNet, {"norm": "cumulative", "causal": True}, lambda t: (t // 2 + 2) * 2),
        (ConvTasNet, {"norm": "cumulative", "causal": True, "skip": 0}, lambda t: (t // 2 + 2) * 2),
        (ConvTasNet, {"norm": "batch", "causal": True}, lambda t: (t // 2 + 2) * 2),
        (
            ConvTasNet,
            {"norm": "cumulative", "causal": True, "padding": "replicate", "inner_activation": "elu"},
            lambda t: (t // 2 + 2) * 2,
        ),
        (TasNet, {"bidirectional": False}, lambda t: (t // 10 + 1) * 10),
        (DPRNN, {"causal": True}, lambda t: t + (6 - 1) * 2 + 4),
    ],
)
def test_a_causal_network_sees_the_future_by_its_latency_and_no_further(network, options, latency):
    model = make(network, **options).double().eval()
    for p in model.parameters():
        p.data += 0.1 * torch.randn_like(p)
    x = torch.randn(1, 1, 120, dtype=torch.double, requires_grad=True)
    sees = set()
    for t in (40, 41, 50, 59):
        (gradient,) = torch.autograd.grad(model(x)["waveforms"][0, :, 0, t].sum(), x)
        last = int(gradient[0, 0].nonzero().max())
        assert last < latency(t)
        sees.add(latency(t) - 1 - last)
        changed = x.detach().clone()
        changed[..., latency(t) :] = torch.randn(120 - latency(t))
        torch.testing.assert_close(model(changed)["waveforms"][..., : t + 1], model(x)["waveforms"][..., : t + 1])
    assert min(sees) == 0  # the latency in the docstring is reached


@pytest.mark.parametrize(("network", "option"), [(ConvTasNet, {"norm": "cumulative"}), (TasNet, {}), (DPRNN, {})])
def test_a_network_that_is_not_causal_sees_the_whole_mixture(network, option):
    model = make(network, **option).double()
    x = torch.randn(1, 1, 40, dtype=torch.double, requires_grad=True)
    (gradient,) = torch.autograd.grad(model(x)["waveforms"][0, 0, 0, 10], x)
    assert gradient[0, 0, -1] != 0


@pytest.mark.parametrize(
    ("network", "options", "message"),
    [
        (ConvTasNet, {"causal": True}, "norm=global averages over the whole recording.* use norm=cumulative or norm=b"),
        (ConvTasNet, {"norm": "layer"}, "unknown norm layer; choose from global, cumulative, batch"),
        (ConvTasNet, {"norm": "cumulative", "causal": True, "padding": "reflect"}, "padding=reflect puts later frames"),
        (ConvTasNet, {"kernel": 15}, "kernel=15 samples must be even.*use 16"),
        (ConvTasNet, {"skip": -1}, "skip=-1 must be at least 0"),
        (ConvTasNet, {"layers": 0}, "layers=0 must be at least 1"),
        (ConvTasNet, {"activation": "logistic"}, "unknown activation logistic"),
        (TasNet, {"recurrent": "elman"}, "unknown recurrent type elman; choose from lstm"),
        (TasNet, {"dropout": 1.0}, "dropout=1.0 must lie in"),
        (DPRNN, {"chunk": 5}, "chunk=5 frames must be even.*use 6"),
        (DPRNN, {"blocks": 0}, "blocks=0 must be at least 1"),
    ],
)
def test_impossible_options_are_refused(network, options, message):
    with pytest.raises(ValueError, match=message):
        make(network, **options)


# Conv-TasNet


@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float32, 1e-5), (torch.float64, 1e-12)])
@pytest.mark.parametrize("length", [800, 1001])
def test_conv_tasnet_is_torchaudios_with_the_same_weights(dtype, tolerance, length):
    torch.manual_seed(0)
    theirs = torchaudio.models.ConvTasNet(3, 16, 20, 3, 12, 24, 4, 2).to(dtype)
    for p in theirs.parameters():
        p.data += 0.1 * torch.randn_like(p)
    ours = ConvTasNet(3, 1, filters=20, bottleneck=12, hidden=24, skip=12, layers=4, repeats=2).to(dtype)
    ours.load_state_dict(state_from_torchaudio(theirs.state_dict()))
    x, weight = torch.randn(2, 1, length, dtype=dtype), torch.randn(2, 3, length, dtype=dtype)
    estimates = ours(x)["waveforms"][:, :, 0], theirs(x)
    for estimate in estimates:
        (estimate * weight).sum().backward()
    assert relative(*estimates) < tolerance
    expected = state_from_torchaudio({name: p.grad for name, p in theirs.named_parameters()})
    found = {name: p.grad for name, p in ours.named_parameters()}
    assert found.keys() == expected.keys()
    together = [torch.cat([g[name].flatten() for name in expected]) for g in (found, expected)]
    assert relative(*together) < tolerance
    if dtype is torch.float64:
        for name in expected:
            assert relative(found[name], expected[name]) < 1e-10, name


def stack(norm_name="global", causal=False, skip=3, kernel=3, layers=2, repeats=1, **options):
    torch.manual_seed(0)
    sizes = TemporalOptions(4, 5, skip, kernel, norm_name, causal, **options)
    made = TemporalStack(sizes, layers, repeats).double()
    for p in made.parameters():  # away from the scales of 1 and shifts of 0
        p.data += 0.3 * torch.randn_like(p)
    return made


STACKS = [
    {},
    {"skip": 0},
    {"kernel": 4},
    {"kernel": 1},
    {"layers": 4},
    {"norm_name": "cumulative"},
    {"norm_name": "cumulative", "causal": True, "layers": 3},
    {"norm_name": "cumulative", "causal": True, "skip": 0, "kernel": 2},
]


@pytest.mark.parametrize("options", STACKS)
@pytest.mark.parametrize("frames", [2, 9])  # fewer than the greatest dilation, and more
def test_the_hand_written_gradient_of_the_blocks_is_that_of_autograd(options, frames):
    made = stack(**options, repeats=2)
    x = torch.randn(2, 4, frames, dtype=torch.double, requires_grad=True)
    results = []
    for compute in (made.fused, made.plain):
        y = compute(x)
        weight = torch.linspace(-1, 1, y.numel(), dtype=torch.double).reshape(y.shape)
        results.append((y, *torch.autograd.grad((y * weight).sum(), [x, *made.parameters()])))
    for fused, plain in zip(*results, strict=True):
        torch.testing.assert_close(fused, plain, rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("options", STACKS)
def test_the_hand_written_gradient_is_that_of_finite_differences(options):
    made = stack(**options)
    x = torch.randn(2, 4, 6, dtype=torch.double, requires_grad=True)

    def function(x, *parameters):
        return torch.func.functional_call(made, dict(zip(names, parameters, strict=True)), (x,))

    names = [name for name, _ in made.named_parameters()]
    assert made.fits(x)
    assert torch.autograd.gradcheck(function, (x, *made.parameters()), fast_mode=True)


def test_the_hand_written_blocks_run_twice_backward_and_without_gradients():
    made, x = stack(), torch.randn(2, 4, 9, dtype=torch.double, requires_grad=True)
    y = made(x)
    first, second = (torch.autograd.grad(y.sum(), x, retain_graph=True)[0] for _ in range(2))
    assert torch.equal(first, second)
    with torch.no_grad():
        assert torch.equal(made(x), y)
    with torch.inference_mode():
        assert torch.equal(made(x), y)


@pytest.mark.parametrize(
    ("options", "expected"),
    [
        ({}, True),
        ({"norm_name": "cumulative"}, True),
        ({"norm_name": "batch"}, False),
        ({"padding": "replicate"}, False),
        ({"inner_activation": "relu"}, False),
    ],
)
def test_the_hand_written_blocks_run_in_float_on_the_cpu_and_modules_elsewhere(options, expected, monkeypatch):
    made, x = stack(**options), torch.randn(2, 4, 9, dtype=torch.double)
    used = []
    function = tcn_gradient.StackFunction
    monkeypatch.setattr(function, "apply", lambda *a: used.append(1) or StackFunction.forward(Ctx(), *a))

    class Ctx:
        def save_for_backward(self, *tensors):
            pass

    made(x)
    assert bool(used) == expected
    used.clear()
    with torch.autocast("cpu", torch.bfloat16):
        made.float()(x.float())
    assert not used
    made.bfloat16()(x.bfloat16())
    assert not used


def test_the_hand_written_blocks_keep_three_tensors_each():
    """For the backward pass: the input, (M, features + 1), and the values before both PReLUs, (M, hidden) each."""
    made = stack(layers=4, repeats=2)
    kept = []
    with torch.autograd.graph.saved_tensors_hooks(lambda t: kept.append(t) or t, lambda t: t):
        made(torch.randn(2, 4, 50, dtype=torch.double, requires_grad=True))
    inside = [tuple(t.shape) for t in kept if not isinstance(t, nn.Parameter)]
    assert inside == [(2, 50, 4 + 1), (2, 50, 5), (2, 50, 5)] * 8


def test_the_cumulative_norm_of_a_frame_is_the_layer_norm_of_all_frames_so_far():
    x, made = torch.randn(2, 3, 20, dtype=torch.double), CumulativeNorm(3).double()
    whole = nn.functional.layer_norm(x[..., :8], (3, 8), eps=made.eps)
    torch.testing.assert_close(made(x)[..., 7], whole[..., 7])
    x = torch.randn(2, 3, 5, 4, dtype=torch.double)  # in steps of four frames
    whole = nn.functional.layer_norm(x[:, :, :3], (3, 3, 4), eps=made.eps)
    torch.testing.assert_close(made(x)[:, :, 2], whole[:, :, 2])


def test_an_offset_does_not_spoil_the_moments():
    """A mean of a hundred standard deviations costs digits in E[x^2] - E[x]^2, but not in the output."""
    x = 100 + torch.randn(400, 64)
    moments = tcn_gradient.GlobalMoments.of(x)
    exact = (x.double() - x.double().mean()) / x.double().var(correction=0).sqrt()
    assert relative(moments.r * x.double() + moments.q, exact) < 1e-2


# TasNet and DPRNN


def test_tasnet_follows_the_level_of_each_segment():
    model = make(TasNet).eval()
    x = torch.randn(1, 1, 60)
    torch.testing.assert_close(model(x * 0.01)["waveforms"], model(x)["waveforms"] * 0.01)


def test_softmax_masks_of_tasnet_sum_to_one_over_the_sources():
    """Then the sum of the estimates does not depend on the masks: it is the decoded features."""
    model, x = make(TasNet).eval(), torch.randn(1, 1, 60)
    before = model(x)["waveforms"].sum(1)
    nn.init.normal_(model.masks.weight)
    torch.testing.assert_close(model(x)["waveforms"].sum(1), before)


def test_dprnn_without_its_recurrent_layers_is_a_masked_filterbank():
    """With every path's norm at zero the chunks overlap-add to twice the bottleneck."""
    model, x = make(DPRNN).eval(), torch.randn(1, 1, 60)
    for block in model.blocks:
        for path in (block.intra, block.inter):
            nn.init.zeros_(path.norm.weight)
    features = model.encoder(x)
    y = 2 * model.bottleneck(model.norm(features.transpose(1, 2)).transpose(1, 2))
    masks = model.activation(model.masks(model.prelu(y))).unflatten(-1, (2, -1)).transpose(1, 2)
    torch.testing.assert_close(model(x)["waveforms"], model.decoder(masks * features[:, None], 60))
