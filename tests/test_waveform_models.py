"""Waveform networks: any length, context, causality, and agreement with their papers and other implementations."""

import pytest
import torch
import torchaudio
from torch.nn.functional import pad

from separate.models.demucs import Demucs
from separate.models.hdemucs import WINDOWS, HDemucs
from separate.models.layers import PADDINGS
from separate.models.layers import pad as extended
from separate.models.wave_unet import UPSAMPLING, Interpolation, WaveUNet
from separate.models.wavenet import WaveNet

SMALL = {
    WaveUNet: {"levels": 3, "filters": 4, "down_kernel": 5, "up_kernel": 3},
    WaveNet: {"layers": 3, "stacks": 2, "residual": 4, "skip": 5, "final": (6, 7)},
    Demucs: {"hidden": 4, "depth": 3},
    HDemucs: {"hidden": 16, "nfft": 64, "depth": 3, "dconv_attn": 2, "dconv_lstm": 2, "norm_starts": 1},
}
VARIANTS = [
    (WaveUNet, {}),
    (WaveUNet, {"context": True, "difference": True}),
    (WaveNet, {}),
    (WaveNet, {"causal": True}),
    (WaveUNet, {"padding": "reflect", "inner_activation": "prelu"}),
    (WaveUNet, {"padding": "reflect", "context": True}),
    (WaveNet, {"padding": "reflect", "inner_activation": "prelu", "final_activation": "prelu"}),
    (Demucs, {"padding": "reflect", "inner_activation": "prelu"}),
    (Demucs, {}),
    (Demucs, {"kernel": 6, "stride": 3, "lstm_layers": 0, "resample": 1}),
    (HDemucs, {}),
]
OPTIONS = [
    *[(WaveUNet, option) for option in (
        {"levels": 4}, {"filters": 5}, {"down_kernel": 3}, {"up_kernel": 1}, {"upsampling": "learned"},
        {"upsampling": "transposed"}, {"context": True}, {"difference": True}, {"activation": "none"},
        {"padding": "replicate"}, {"padding": "reflect"}, {"inner_activation": "elu"},
    )],
    *[(WaveNet, option) for option in (
        {"layers": 4}, {"stacks": 3}, {"residual": 5}, {"skip": 6}, {"kernel": 2}, {"final": (6,)},
        {"final_kernel": 1}, {"causal": True}, {"padding": "replicate"}, {"padding": "reflect"},
        {"inner_activation": "elu"}, {"final_activation": "elu"},
    )],
    *[(Demucs, option) for option in (
        {"hidden": 5}, {"growth": 1.5}, {"depth": 2}, {"kernel": 6}, {"stride": 2}, {"decoder_kernel": 1},
        {"lstm_layers": 0}, {"lstm_layers": 1}, {"resample": 1}, {"normalise": False}, {"rescale": 0.0},
        {"rescale": 0.2}, {"padding": "replicate"}, {"padding": "reflect"}, {"inner_activation": "gelu"},
    )],
    *[(HDemucs, option) for option in (
        {"hidden": 32}, {"growth": 1.0}, {"nfft": 256}, {"depth": 4}, {"time_stride": 4}, {"freq_emb": 0.0},
        {"freq_emb": 0.3}, {"emb_scale": 5.0}, {"emb_smooth": False}, {"context": 0}, {"context_enc": 1},
        {"norm_starts": 2}, {"norm_groups": 2}, {"dconv_depth": 1}, {"dconv_comp": 2}, {"dconv_attn": 1},
        {"dconv_lstm": 1}, {"dconv_init": 0.1},
    )],
]  # fmt: skip


def make(network, sources=2, channels=1, **options):
    torch.manual_seed(0)
    return network(sources, channels, **{**SMALL[network], **options}).eval()


def separated(network, mixture):
    with torch.no_grad():
        return network(mixture)["waveforms"]


def trained(network):
    return {name: parameter for name, parameter in network.named_parameters() if parameter.requires_grad}


def parameters(network):
    return sum(parameter.numel() for parameter in network.parameters())


@pytest.mark.parametrize(("network", "options"), VARIANTS)
@pytest.mark.parametrize(("sources", "channels"), [(1, 1), (2, 2), (3, 1), (4, 2)])
def test_sources_of_any_number_channels_and_length(network, options, sources, channels):
    if sources == 1:
        options = {**options, "difference": False} if network is WaveUNet else options
    built = make(network, sources, channels, **options)
    for length in (1, 2, 63, 257):
        waveforms = separated(built, torch.randn(2, channels, length))
        assert waveforms.shape == (2, sources, channels, length)
        assert waveforms.isfinite().all()


@pytest.mark.parametrize(("network", "options"), VARIANTS)
def test_a_valid_length_is_long_enough_and_needs_no_padding(network, options):
    built = make(network, **options)
    for length in range(1, 300):
        valid = built.valid_length(length)
        assert valid >= length
        assert built.valid_length(valid) == valid
        assert valid == length or built.valid_length(valid - 1) == valid, "a smaller one would do"


@pytest.mark.parametrize(("network", "options"), VARIANTS)
def test_silence_gives_finite_samples_and_gradients(network, options):
    built = make(network, channels=2, **options).train()
    mixture = torch.zeros(2, 2, 150, requires_grad=True)
    waveforms = built(mixture)["waveforms"]
    (waveforms - 1).square().mean().backward()
    assert waveforms.isfinite().all()
    assert mixture.grad.isfinite().all()
    assert all(parameter.grad.isfinite().all() for parameter in trained(built).values())


@pytest.mark.parametrize(("network", "options"), VARIANTS)
def test_every_parameter_is_trained_also_in_bfloat16(network, options):
    built = make(network, channels=2, **options).train()
    mixture = torch.randn(2, 2, 600)
    with torch.autocast("cpu", torch.bfloat16):
        rough = built(mixture)["waveforms"].float()
    exact = built(mixture)["waveforms"]
    assert (rough - exact).std() < 0.1 * exact.std()
    rough.square().sum().backward()
    for name, parameter in trained(built).items():
        assert parameter.grad.isfinite().all()
        assert parameter.grad.any(), name


@pytest.mark.parametrize(("network", "option"), OPTIONS)
def test_every_option_changes_the_network_or_its_output(network, option):
    mixture = torch.randn(1, 1, 333)
    one, other = make(network), make(network, **option)
    if parameters(one) == parameters(other):
        same_weights = all(map(torch.equal, one.parameters(), other.parameters()))
        assert not (same_weights and torch.allclose(separated(one, mixture), separated(other, mixture)))


@pytest.mark.parametrize("upsampling", UPSAMPLING)
@pytest.mark.parametrize("kernels", [(5, 3), (3, 1), (1, 5)])
def test_with_context_there_are_no_edges(upsampling, kernels):
    options = {"upsampling": upsampling, "down_kernel": kernels[0], "up_kernel": kernels[1]}
    network = make(WaveUNet, context=True, **options)
    assert network.levels == 3
    mixture = torch.randn(1, 1, 800)
    whole = separated(network, mixture)
    reach = network.context_length + 2**3  # the last: an output between two samples of the lowest rate sees both
    start, stop = 160, 640  # the start a multiple of 2^levels: the decimation then takes the same samples
    part = separated(network, mixture[..., start:stop])
    inner = slice(reach, stop - start - reach)
    torch.testing.assert_close(part[..., inner], whole[..., start:stop][..., inner])
    assert not torch.allclose(part, whole[..., start:stop])


@pytest.mark.parametrize("padding", PADDINGS)
@pytest.mark.parametrize("length", [1, 2, 7, 30])
def test_padding_is_that_of_torch_where_torch_has_it(padding, length):
    x = torch.randn(2, 3, length)
    before, after = min(4, length - 1), min(5, length - 1)
    mode = "constant" if padding == "zeros" else padding
    assert torch.equal(extended(x, before, after, padding), pad(x, (before, after), mode=mode))
    longer = extended(x, 20, 33, padding)  # further than the signal is long
    assert longer.shape == (2, 3, length + 53)
    assert torch.equal(longer[..., 20 : 20 + length], x)
    if padding == "reflect":
        period = max(2 * (length - 1), 1)
        assert torch.equal(longer[..., period:], longer[..., :-period])


def test_wave_unet_counts_the_samples_of_its_paper():
    with torch.device("meta"):
        network = WaveUNet(2, 2, context=True, difference=True)  # M4
    assert network.valid_length(16384) == 16389
    assert 16389 + 2 * network.context_length == 147443
    assert parameters(network) == 10_263_390


@pytest.mark.parametrize("context", [False, True])
def test_differences_sum_to_the_mixture(context):
    mixture = torch.randn(2, 2, 211)
    estimates = separated(make(WaveUNet, 3, 2, context=context, difference=True), mixture)
    torch.testing.assert_close(estimates.sum(dim=1), mixture)
    assert not torch.allclose(separated(make(WaveUNet, 3, 2, context=context), mixture).sum(dim=1), mixture)


def test_learned_interpolation_starts_halfway():
    x = torch.tensor([[[0.0, 2.0, 4.0]]])
    for learned in (False, True):
        assert Interpolation(1, learned)(x).flatten().tolist() == [0, 1, 2, 3, 4, 4]
    steep = Interpolation(1, learned=True)
    torch.nn.init.constant_(steep.logit, 100.0)
    assert steep(x).flatten().tolist() == [0, 0, 2, 2, 4, 4]


@pytest.mark.parametrize("padding", ["zeros", "replicate"])
@pytest.mark.parametrize("kernel", [2, 3])
def test_a_causal_wavenet_does_not_see_the_future(kernel, padding):
    mixture = torch.randn(1, 1, 120)
    changed = mixture.clone()
    changed[..., 70:] = torch.randn(50)
    for causal in (True, False):
        network = make(WaveNet, causal=causal, kernel=kernel, final_kernel=kernel, padding=padding)
        before, after = (separated(network, signal)[..., :70] for signal in (mixture, changed))
        assert torch.equal(before, after) == causal


@pytest.mark.parametrize("causal", [False, True])
def test_a_wavenet_sees_as_far_as_its_dilations_reach(causal):
    network = make(WaveNet, causal=causal, kernel=3, final_kernel=1)
    mixture = torch.randn(1, 1, 121, requires_grad=True)
    network(mixture)["waveforms"][0, 0, 0, 60].backward()
    seen = mixture.grad.flatten().nonzero().flatten()
    reach = 2 * 2 * (1 + 2 + 4) + 2  # samples: 2 stacks, 2 more for each step of dilation, and the first convolution
    assert (seen.min(), seen.max()) == ((60 - reach, 60) if causal else (60 - reach // 2, 60 + reach // 2))


def test_wavenets_have_the_size_of_the_authors_code():
    unused = 64 * 64  # the last layer of the authors' code has residual channels that lead nowhere
    with torch.device("meta"):
        assert parameters(WaveNet(1, 1)) == 3_277_249 - unused
        speech = WaveNet(1, 1, stacks=3, residual=128, skip=128)
    assert parameters(speech) == 6_292_097 - 128 * 128


def test_demucs_has_the_size_of_the_authors_code():
    with torch.device("meta"):
        assert parameters(Demucs(4, 2)) == 265_679_496  # 1 GB in float32, as its README says
        assert parameters(Demucs(4, 2, hidden=48)) == 149_462_504


def test_demucs_scales_with_the_mixture_and_distributes_its_mean():
    network = make(Demucs, 3, 2)
    mixture = torch.randn(1, 2, 500)
    estimates = separated(network, mixture)
    torch.testing.assert_close(separated(network, 8 * mixture), 8 * estimates, rtol=1e-3, atol=1e-4)
    shifted = separated(network, mixture + 3)
    torch.testing.assert_close(shifted.sum(dim=1), estimates.sum(dim=1) + 3, rtol=1e-3, atol=1e-4)
    plain = make(Demucs, 3, 2, normalise=False)
    assert not torch.allclose(separated(plain, 8 * mixture), 8 * separated(plain, mixture), rtol=1e-3)


def test_demucs_separates_stereo_that_cancels_in_mono():
    side = torch.randn(1, 1, 500) * torch.tensor([1.0, -1.0])[:, None]
    assert separated(make(Demucs, 2, 2), side).abs().max() < 100


def test_demucs_rescales_its_initial_weights_towards_the_reference():
    plain, pulled = (make(Demucs, rescale=rescale) for rescale in (0.0, 0.1))
    for before, after in zip(plain.encoder, pulled.encoder, strict=True):
        expected = (0.1 * before[0].weight.std()).sqrt()  # the geometric mean
        torch.testing.assert_close(after[0].weight.std(), expected)
        torch.testing.assert_close(
            after[0].bias / before[0].bias, (expected / before[0].weight.std()).expand(len(after[0].bias))
        )


def test_demucs_trains_after_it_was_first_used_in_inference_mode():
    network = make(Demucs, resample=3, kernel=9, stride=3)
    with torch.inference_mode():
        network(torch.randn(1, 1, 100))
    network(torch.randn(1, 1, 100))["waveforms"].sum().backward()


def test_hdemucs_agrees_with_torchaudio_and_pads_very_short_mixtures():
    torch.manual_seed(0)
    theirs = torchaudio.models.HDemucs(["a", "b"], 2, channels=16, nfft=256, depth=4).eval()
    ours = make(HDemucs, 2, 2, **dict.fromkeys(("dconv_attn", "dconv_lstm", "norm_starts"), 4), nfft=256, depth=4)
    for one, other in zip(theirs.parameters(), ours.parameters(), strict=True):
        assert torch.equal(one, other), "the same weights from the same seed"
    for length in (128, 140, 145, 1000, 4096):
        assert ours.valid_length(length) == length
        mixture = torch.randn(2, 2, length)
        with torch.no_grad():
            assert torch.equal(separated(ours, mixture), theirs(mixture))
    for length in (40, 65, 80):
        mixture = torch.randn(2, 2, length)
        with pytest.raises(ValueError, match="Spectrogram's last dimension"):
            theirs(mixture)
        padded = pad(mixture, (0, ours.valid_length(length) - length))
        with torch.no_grad():
            assert torch.equal(separated(ours, mixture), theirs(padded)[..., :length])


def test_hdemucs_with_its_defaults_is_that_of_torchaudio():
    with torch.device("meta"):
        theirs = torchaudio.models.hdemucs_high(["drums", "bass", "other", "vocals"])
        ours = HDemucs(4, 2)
    shapes = [{name: value.shape for name, value in network.state_dict().items()} for network in (theirs, ours.network)]
    assert shapes[0] == shapes[1]
    assert parameters(ours) == 83_639_368


@pytest.mark.parametrize("nfft", WINDOWS[:-1])
def test_hdemucs_builds_for_every_window(nfft):
    depth = {64: 2, 256: 3, 1024: 4, 2048: 5, 4096: 5}[nfft]
    network = make(HDemucs, nfft=nfft, hidden=8, depth=depth, dconv_attn=9, dconv_lstm=9)
    assert separated(network, torch.randn(1, 1, nfft + 7)).shape == (1, 2, 1, nfft + 7)
    with pytest.raises(ValueError, match=f"depth={depth - 1} does not bring nfft={nfft} .*; use depth={depth} or more"):
        make(HDemucs, nfft=nfft, depth=depth - 1)


@pytest.mark.parametrize(
    ("network", "options", "message"),
    [
        (WaveUNet, {"levels": 0}, "levels=0 must be at least 1"),
        (WaveUNet, {"down_kernel": 4}, "down_kernel=4 must be odd, or the levels would not align; use 5"),
        (WaveUNet, {"up_kernel": 2}, "up_kernel=2 must be odd"),
        (WaveUNet, {"upsampling": "cubic"}, "unknown upsampling cubic; choose from linear, learned, transposed"),
        (WaveUNet, {"activation": "tan"}, "unknown activation tan; choose from"),
        (WaveUNet, {"sources": 1, "difference": True}, "difference=true makes .*; use difference=false"),
        (WaveNet, {"stacks": 0}, "stacks=0 must be at least 1"),
        (WaveNet, {"padding": "reflect", "causal": True}, "padding=reflect .* use padding=zeros or replicate"),
        (WaveNet, {"inner_activation": "softmax"}, "unknown activation softmax; choose from relu, leaky_relu"),
        (WaveUNet, {"padding": "same"}, "unknown padding same; choose from zeros, reflect, replicate"),
        (WaveNet, {"final": [8, 0]}, r"final\[1\]=0 must be at least 1"),
        (Demucs, {"kernel": 3}, "kernel=3 must be at least stride=4"),
        (Demucs, {"decoder_kernel": 2}, "decoder_kernel=2 must be odd; use 3"),
        (Demucs, {"kernel": 9}, "no length that kernel=9 and stride=4 .* resample=2; use resample=1, or"),
        (Demucs, {"lstm_layers": -1}, "lstm_layers=-1 and rescale=0.1 must be at least 0"),
        (HDemucs, {"nfft": 512}, "nfft=512 does not bring both branches to one rate; choose from 64, 256"),
        (HDemucs, {"time_stride": 3}, "time_stride=3 must be even; use 4"),
        (HDemucs, {"hidden": 18}, "hidden=18, .* do not fit .*; use a hidden that is a multiple of norm_groups"),
        (HDemucs, {"dconv_comp": 17}, "dconv_comp=17 leaves no channel of hidden=16; use at most 16"),
        (HDemucs, {"context": -1}, "context=-1 must be at least 0"),
    ],
)
def test_what_cannot_be_is_refused_with_the_way_out(network, options, message):
    with pytest.raises(ValueError, match=message):
        make(network, **options)
