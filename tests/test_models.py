"""Networks on the spectrogram: shapes, lengths, causality, normalisation, groups of embeddings."""

from itertools import pairwise

import numpy as np
import pytest
import torch

from separate.models.embedding import Clusters, DeepClustering, attractors, similarity, unit_length
from separate.models.layers import ACTIVATIONS, decibels
from separate.models.recurrent import MaskInference
from separate.models.representation import (
    NORMALISATIONS,
    Representation,
    RepresentationOptions,
    Standardisation,
    observers,
)
from separate.models.unet import UNet
from separate.parts import build_separator
from separate.stft import mel_filterbank
from tests.tiny import MODELS, config_of

BINS = 33
OF_SPECTROGRAMS = [
    "blstm", "lstm", "bgru", "gru", "dnn", "deep_clustering", "chimera", "attractor", "unet", "open_unmix",
]  # fmt: skip
FORWARD = {"bidirectional": False}
CAUSAL = {"lstm": {}, "gru": {}, "open_unmix": FORWARD, "blstm": FORWARD, "dnn": {"right_context": 0}}


def spectrogram(frames: int = 12, channels: int = 1, batch: int = 3) -> torch.Tensor:
    return torch.randn(batch, channels, BINS, frames, dtype=torch.complex64)


def network_of(model: str, sources: int = 2, channels: int = 1, interchangeable: bool = True, **options):
    config = config_of(model, interchangeable, options)
    config["data"].update(sources=list("abcdefgh"[:sources]), channels=channels)
    torch.manual_seed(0)
    return build_separator(config).network


@pytest.mark.parametrize("model", OF_SPECTROGRAMS)
@pytest.mark.parametrize("sources", [1, 3])
@pytest.mark.parametrize("channels", [1, 2])
@pytest.mark.parametrize("frames", [1, 2, 9, 33])
def test_any_number_of_sources_channels_and_frames(model, sources, channels, frames):
    network = network_of(model, sources, channels).eval()
    heads = network(spectrogram(frames, channels))
    assert network.valid_length(frames) >= frames
    assert network.valid_length(network.valid_length(frames)) == network.valid_length(frames)
    if "masks" in heads:
        assert heads["masks"].shape == (3, sources, channels, BINS, frames)
    if "embeddings" in heads:
        assert heads["embeddings"].shape == (3, BINS, frames, MODELS[model]["dimensions"])
    assert all(head.isfinite().all() for head in heads.values())


@pytest.mark.parametrize("activation", ACTIVATIONS)
def test_masks_lie_in_the_range_of_their_activation(activation):
    masks = network_of("blstm", channels=2, activation=activation)(spectrogram(channels=2))["masks"]
    if activation in ("sigmoid", "softmax"):
        assert masks.min() >= 0
        assert masks.max() <= 1
    if activation == "softmax":
        torch.testing.assert_close(masks.sum(1), torch.ones(3, 2, BINS, 12))


def test_complex_masks_have_an_imaginary_part_of_their_own():
    for model in ("blstm", "unet"):
        masks = network_of(model, channels=2, complex_masks=True, activation="none")(spectrogram(channels=2))
        assert masks["complex_masks"].shape == (3, 2, 2, BINS, 12)
        assert masks["complex_masks"].imag.abs().min() > 0


@pytest.mark.parametrize("model", CAUSAL)
@pytest.mark.parametrize("normalisation", ["batch", "layer", "learnable", "whiten", "none"])
def test_a_causal_network_does_not_see_the_future(model, normalisation):
    x = spectrogram()
    changed = x.clone()
    changed[..., 7:] = torch.randn_like(x[..., 7:])
    network = network_of(model, normalisation=normalisation, **CAUSAL[model]).eval()
    before, after = (network(signal)["masks"][..., :7] for signal in (x, changed))
    assert torch.equal(before, after)


def test_a_bidirectional_network_sees_the_future():
    x = spectrogram()
    changed = x.clone()
    changed[..., 7:] = torch.randn_like(x[..., 7:])
    network = network_of("blstm").eval()
    assert not torch.equal(network(x)["masks"][..., :7], network(changed)["masks"][..., :7])


def test_a_feed_forward_network_sees_its_context_and_no_more():
    x = spectrogram()
    network = network_of("dnn", left_context=3, right_context=2).eval()
    before = network(x)["masks"]
    for frame in range(12):
        changed = x.clone()
        changed[..., frame] *= 2
        reached = (network(changed)["masks"] != before).any(dim=(0, 1, 2, 3)).nonzero().flatten()
        assert (reached.min(), reached.max()) == (max(0, frame - 2), min(11, frame + 3))


def test_a_feed_forward_network_is_linear_layers_over_frames_laid_side_by_side():
    network = network_of("dnn", layers=2, left_context=2, right_context=1, normalisation="none").eval().double()
    x = spectrogram().to(torch.complex128)
    features = decibels(x.abs(), -80)[:, 0].mT  # (B, N, F)
    frames = torch.cat([features[:, :1]] * 2 + [features] + [features[:, -1:]], dim=1).unfold(1, 4, 1)  # (B, N, F, 4)
    hidden = torch.relu(frames.flatten(2) @ network.first.weight.flatten(1).mT + network.first.bias)
    masks = network.head(network.rest(hidden))
    torch.testing.assert_close(network(x)["masks"][:, :, 0], masks.sigmoid())


@pytest.mark.parametrize("model", OF_SPECTROGRAMS)
def test_every_spectrogram_network_works_on_mel_bands_and_masks_all_bins(model):
    torch.manual_seed(0)
    options = {"patch": 8, "filters": [4, 8]} if model == "unet" else {}
    full, mel = (network_of(model, mels=mels, **options).eval() for mels in (None, 8))
    x = spectrogram(16)
    heads = mel(x)
    assert heads.keys() == full(x).keys()
    for name, head in heads.items():
        assert head.shape == full(x)[name].shape
        bins = head.movedim(1, -2) if name == "embeddings" else head
        assert (bins.diff(dim=-2).abs().amax(dim=tuple(i for i in range(bins.ndim) if i != bins.ndim - 2)) > 0).any()
    sizes = [sum(p.numel() for p in network.parameters()) for network in (full, mel)]
    assert sizes[1] < sizes[0] or model == "unet"  # whose convolutions have the same weights for any number of bins


def test_embeddings_of_mel_bands_are_mapped_to_bins_before_they_get_unit_length():
    network = network_of("deep_clustering", mels=8).eval()
    x = spectrogram()
    embeddings = network(x)["embeddings"]
    torch.testing.assert_close(embeddings.norm(dim=-1), torch.ones(3, BINS, 12))
    bands = network.embeddings.linear(network.body(x)).unflatten(-1, (8, -1))  # (B, N, M, D)
    mel = mel_filterbank(BINS, 8000, 8)
    expected = torch.einsum("mf,bnmd->bfnd", mel, bands).tanh()
    torch.testing.assert_close(embeddings, torch.nn.functional.normalize(expected, dim=-1))


# U-Net


def unet(patch: int | None = 8, **options) -> UNet:
    torch.manual_seed(0)
    return UNet(2, 1, BINS, [4, 8], patch=patch, **options).eval()


def test_patches_of_a_unet_overlap_by_half_and_their_masks_are_cross_faded():
    x, network = spectrogram(frames=20), unet()
    alone = [network(x[..., start : start + 8])["masks"] for start in (0, 4, 8, 12)]
    fade = torch.sin(torch.pi * (torch.arange(4) + 0.5) / 8) ** 2
    pieces = [alone[0][..., :4]]
    pieces += [one[..., 4:] * (1 - fade) + other[..., :4] * fade for one, other in pairwise(alone)]
    expected = torch.cat([*pieces, alone[3][..., 4:]], dim=-1)
    torch.testing.assert_close(network(x)["masks"], expected)
    softmax = unet(activation="softmax")(x)["masks"]
    torch.testing.assert_close(softmax.sum(1), torch.ones(3, 1, BINS, 20))


def test_a_unet_covers_any_number_of_frames_by_patches_or_takes_them_at_once():
    patched, whole = unet(), unet(None)
    assert [patched.valid_length(frames) for frames in (1, 8, 9, 12, 13)] == [8, 8, 12, 12, 16]
    assert [whole.valid_length(frames) for frames in (1, 5, 13)] == [4, 8, 16]
    x = spectrogram(frames=16)
    torch.testing.assert_close(whole(x[..., :8])["masks"], patched(x[..., :8])["masks"])
    assert not torch.allclose(whole(x)["masks"], patched(x)["masks"])


@pytest.mark.parametrize(("frames", "starts", "width"), [
    (8, [0], 8), (16, [0, 8], 8), (17, [0, 8, 9], 8), (11, [0, 3], 8), (7, [0, 3], 4), (4, [0], 4),
])  # fmt: skip
def test_batch_normalisation_of_a_unet_sees_no_padding(frames, starts, width):
    """In training, patches hold only the excerpt's own frames, so the running statistics are theirs."""
    x, network = spectrogram(frames), unet(dropout=0.0).train()
    seen = []
    network.networks[0].register_forward_hook(lambda module, inputs, output: seen.append(inputs[0]))
    masks = network(x)["masks"]
    expected = [x.abs()[..., start : start + width] for start in starts]
    expected = torch.stack(expected, dim=1).flatten(0, 1)[:, :, : network.kept]
    torch.testing.assert_close(seen[0], expected)
    assert masks.shape[-1] == frames
    norm = network.networks[0].encoder[0][1]
    levels = torch.nn.functional.conv2d(expected, network.networks[0].encoder[0][0].weight, stride=2, padding=2)
    torch.testing.assert_close(
        norm.running_mean, 0.1 * (levels.mean((0, 2, 3)) + network.networks[0].encoder[0][0].bias)
    )


def test_an_excerpt_of_less_than_a_step_is_reflected_for_batch_normalisation():
    x, network = spectrogram(3), unet(dropout=0.0).train()
    seen = []
    network.networks[0].register_forward_hook(lambda module, inputs, output: seen.append(inputs[0]))
    assert network(x)["masks"].shape[-1] == 3
    torch.testing.assert_close(seen[0], x.abs()[:, :, : network.kept, [0, 1, 2, 1]])


def test_a_unet_of_one_network_for_each_source_trains_them_separately():
    x = spectrogram(8)
    network = unet(joint=False, complex_masks=True, activation="none")
    assert len(network.networks) == 2
    masks = network(x)["complex_masks"]
    masks[:, 0].abs().sum().backward()
    touched = [any(p.grad.abs().sum() > 0 for p in part.parameters()) for part in network.networks]
    assert touched == [True, False]
    own = network.networks[1](x.abs()[:, :, : network.kept])  # real and imaginary part
    torch.testing.assert_close(torch.view_as_real(masks[:, 1, 0, : network.kept]).movedim(-1, 1), own)
    joint = unet()
    assert sum(p.numel() for p in unet(joint=False).parameters()) > 1.8 * sum(p.numel() for p in joint.parameters())


# representation


@pytest.mark.parametrize("name", NORMALISATIONS)
@pytest.mark.parametrize("channels", [1, 2])
def test_each_normalisation_normalises_its_dimensions(name, channels):
    torch.manual_seed(0)
    x = 3 * torch.randn(4, channels, 9, 50) + torch.arange(9.0)[:, None] * 2
    layer = NORMALISATIONS[name](channels, 9, channels)
    if isinstance(layer, Standardisation):
        for piece in x.split(1):
            layer.observe(piece)
        layer.use_statistics()
    over = {
        "batch": (0, 3), "instance": (3,), "group": (2, 3), "layer": (1, 2), "learnable": (0, 1, 3),
        "whiten": (0, 1, 3), "peak": (), "none": (),
    }[name]  # fmt: skip
    y = layer(x)
    if name == "none":
        assert torch.equal(x, y)
        return
    if name == "peak":
        torch.testing.assert_close(y.abs().amax((1, 2, 3)), torch.ones(4))
        torch.testing.assert_close(y / y[:, :1, :1, :1], x / x[:, :1, :1, :1])
        assert torch.equal(layer(torch.zeros(1, channels, 9, 5)), torch.zeros(1, channels, 9, 5))
        return
    torch.testing.assert_close(y.mean(over), torch.zeros_like(y.mean(over)), atol=1e-4, rtol=0)
    torch.testing.assert_close(y.std(over, correction=0), torch.ones_like(y.mean(over)), atol=1e-3, rtol=0)
    trained = sum(p.numel() for p in layer.parameters())
    assert (trained == 0) == (name == "whiten")


@pytest.mark.parametrize(("groups", "rows"), [(1, [0]), (2, [0, 9]), (3, [0, 6, 12]), (4, [0, 5, 10, 14])])
def test_group_normalisation_has_groups_of_several_frequencies_and_channels(groups, rows):
    torch.manual_seed(0)
    x = torch.randn(4, 2, 9, 50) * torch.arange(1, 10)[:, None] + torch.arange(9.0)[:, None]
    representation = Representation(2, 9, RepresentationOptions("linear", normalisation="group", groups=groups))
    y = representation.normalise(x).flatten(1, 2)  # (B, 18, N)
    for part in y.tensor_split(rows[1:], dim=1):
        torch.testing.assert_close(part.mean((1, 2)), torch.zeros(4), atol=1e-5, rtol=0)
        torch.testing.assert_close(part.std((1, 2), correction=0), torch.ones(4), atol=1e-4, rtol=0)
    expected = torch.nn.functional.group_norm(x.flatten(1, 2), groups) if 18 % groups == 0 else y
    torch.testing.assert_close(y, expected)
    with pytest.raises(ValueError, match="groups=19 must lie between 1 and 18"):
        Representation(2, 9, RepresentationOptions(normalisation="group", groups=19))


def test_statistics_by_streaming_are_those_of_the_whole_set_in_float64():
    torch.manual_seed(0)
    pieces = [100 + scale * torch.randn(1, 2, 5, frames) for scale, frames in ((1, 3), (7, 40), (0.1, 11))]
    layer = Standardisation(5, trained=False)
    for piece in pieces:
        layer.observe(piece)
    layer.use_statistics()
    values = np.concatenate([piece.double().permute(2, 0, 1, 3).reshape(5, -1).numpy() for piece in pieces], axis=1)
    np.testing.assert_allclose(layer.shift, -values.mean(1), rtol=1e-6)
    np.testing.assert_allclose(layer.scale, 1 / values.std(1), rtol=1e-6)


def test_a_frequency_that_is_always_silent_is_not_amplified():
    layer = Standardisation(2, trained=False)
    layer.observe(torch.stack([torch.zeros(10), torch.randn(10)])[None, None])
    layer.use_statistics()
    assert layer(torch.full((1, 1, 2, 1), 1e-3)).abs().max() < 20


def test_only_networks_normalised_by_learnable_or_whiten_are_observed():
    assert observers(network_of("blstm")) == []
    assert len(observers(network_of("blstm", normalisation="whiten"))) == 1
    assert len(observers(network_of("open_unmix", sources=3))) == 3


def test_mel_bands_cover_each_bin_and_constant_masks_stay_constant():
    filters = mel_filterbank(129, 8000, 20)
    torch.testing.assert_close(filters.sum(0), torch.ones(129))
    assert (filters.diff(dim=1).sign().diff(dim=1) < 0).any(dim=1).all()  # every band has a peak
    peaks = filters.argmax(1)
    mels = 2595 * torch.log10(1 + peaks * 4000 / 128 / 700)
    assert (mels.diff() - mels.diff().mean()).abs().max() < mels.diff().mean()  # about equally far apart in mel
    representation = Representation(1, 129, RepresentationOptions(mels=20, sample_rate=8000))
    torch.testing.assert_close(representation.to_bins(torch.full((2, 20, 3), 0.3)), torch.full((2, 129, 3), 0.3))


def test_level_in_decibels():
    assert decibels(torch.tensor([1.0, 10.0, 0.0]), floor=-80).tolist() == pytest.approx([0, 20, -80])


# groups of embeddings


def test_interchangeable_sources_are_the_clusters_of_k_means():
    torch.manual_seed(0)
    owner = torch.rand(2, BINS, 12) > 0.3  # of each bin
    centre = torch.nn.functional.normalize(torch.randn(2, 5), dim=1)
    embeddings = centre[owner.long()] + 0.05 * torch.randn(2, BINS, 12, 5)
    mixture = spectrogram(batch=2, channels=2)
    for membership in ("hard", "softmax"):
        masks = Clusters(2, 5, True, membership)(10 * embeddings, mixture)
        assert masks.shape == (2, 2, 2, BINS, 12)
        found = masks[:, :, 0] > 0.5
        for example in range(2):
            agree = (found[example, 0] == owner[example]).float().mean()
            assert agree in (0.0, 1.0)


def test_bins_below_the_level_do_not_move_the_centres():
    torch.manual_seed(0)
    mixture = torch.ones(1, 1, 4, 100, dtype=torch.complex64)
    mixture[:, :, 2:] = 1e-4  # -80 dB
    embeddings = torch.zeros(1, 4, 100, 2)
    embeddings[:, 0, :, 0], embeddings[:, 1, :, 1], embeddings[:, 2:] = 1, 1, -100
    masks = Clusters(2, 2, True, level=-40)(embeddings, mixture)
    assert {tuple(masks[0, :, 0, row, 0].tolist()) for row in (0, 1)} == {(0, 1), (1, 0)}
    masks = Clusters(2, 2, True, level=-100)(embeddings, mixture)
    assert torch.equal(masks[0, :, 0, 0], masks[0, :, 0, 1])  # the two loud groups are one beside the quiet one


def test_named_sources_keep_the_centres_of_the_training():
    torch.manual_seed(0)
    clusters = Clusters(3, 4, interchangeable=False)
    centre = 4 * torch.eye(3, 4)
    for _ in range(30):
        owner = torch.randint(2, (2, 9, 10))  # the third source is silent
        assignments = torch.nn.functional.one_hot(owner, 3).movedim(-1, 1).float()
        mixture = torch.ones(2, 1, 9, 10, dtype=torch.complex64)
        clusters.observe(centre[owner] + 0.1 * torch.randn(2, 9, 10, 4), mixture, assignments)
    torch.testing.assert_close(clusters.centres[:2], centre[:2], atol=0.1, rtol=0)
    assert clusters.centres[2].abs().sum() == 0
    masks = clusters(centre[owner], mixture)
    assert torch.equal(masks[:, :, 0], assignments)
    assert "centres" in clusters.state_dict()


def test_similarity_to_attractors_has_the_gradient_of_the_written_out_form():
    torch.manual_seed(0)
    points = torch.randn(2, 11, 3, dtype=torch.float64, requires_grad=True)
    weights = torch.rand(2, 11, 2, dtype=torch.float64).round()
    torch.testing.assert_close(similarity(points, weights), points @ attractors(points, weights).mT)
    assert torch.autograd.gradcheck(lambda x: similarity(x, weights), points)


def test_masks_of_an_attractor_network_in_training_are_those_of_the_true_sources():
    torch.manual_seed(0)
    clusters = Clusters(2, 4, True, "softmax")
    owner = torch.randint(2, (2, BINS, 12))
    assignments = torch.nn.functional.one_hot(owner, 2).movedim(-1, 1).float()
    embeddings = (8 * torch.eye(2, 4))[owner].requires_grad_()
    masks = clusters.ideal(embeddings, spectrogram(batch=2), assignments)
    torch.testing.assert_close(masks[:, :, 0], assignments)
    masks.square().sum().backward()
    assert embeddings.grad is not None


def test_deep_clustering_has_embeddings_of_unit_length():
    network = DeepClustering(2, 2, BINS, True, layers=1, units=4, dimensions=6)
    embeddings = network(spectrogram(channels=2))["embeddings"]
    torch.testing.assert_close(embeddings.norm(dim=-1), torch.ones(3, BINS, 12))


def test_unit_length_is_that_of_torch_with_its_gradient():
    x = torch.randn(3, 4, 5)
    x[0, 0] = 0
    ours, theirs = x.clone().requires_grad_(), x.clone().requires_grad_()
    torch.testing.assert_close(unit_length(ours), torch.nn.functional.normalize(theirs, dim=-1))
    weights = torch.randn(3, 4, 5)
    weights[0, 0] = 0  # at the origin there is no gradient to compare
    (unit_length(ours) * weights).sum().backward()
    (torch.nn.functional.normalize(theirs, dim=-1) * weights).sum().backward()
    torch.testing.assert_close(ours.grad, theirs.grad)


def test_mask_inference_on_mel_bands_is_smaller_and_covers_all_bins():
    full, mel = (MaskInference(2, 1, 129, 8000, units=8, layers=1, mels=mels) for mels in (None, 20))
    masks = mel(torch.randn(2, 1, 129, 7, dtype=torch.complex64))["masks"]
    assert masks.shape == (2, 2, 1, 129, 7)
    assert sum(p.numel() for p in mel.parameters()) < sum(p.numel() for p in full.parameters()) / 3


def test_the_last_patch_of_a_unet_is_padded_with_silence_on_every_scale():
    x = spectrogram(frames=10)
    silence = torch.nn.functional.pad(x, (0, 2))
    for scale in ("linear", "db"):
        network = UNet(2, 1, BINS, [4, 8], patch=8, representation=scale).eval()
        torch.testing.assert_close(network(x)["masks"], network(silence)["masks"][..., :10])


@pytest.mark.parametrize("scale", ["linear", "db"])
@pytest.mark.parametrize("normalisation", ["instance", "group", "peak"])
def test_masks_of_a_short_recording_do_not_depend_on_how_far_a_unet_pads_it(normalisation, scale):
    x = 0.1 * spectrogram(frames=6)
    seen, masks = [], []
    for patch in (32, 64):  # both far beyond what the convolutions reach
        network = unet(patch, representation=scale, normalisation=normalisation)
        network.networks[0].register_forward_hook(lambda module, inputs, output: seen.append(inputs[0]))
        masks.append(network(x)["masks"])
        normal = network.representation(x)[:, :, : network.kept]  # as in training
        torch.testing.assert_close(seen[-1][..., :6], normal)
        silent = seen[-1][..., 6:]
        assert (silent <= normal.amin(dim=-1, keepdim=True) + 1e-5).all()
    torch.testing.assert_close(*masks)
