"""Networks on the spectrogram: shapes, lengths, causality, normalisation, groups of embeddings."""

import numpy as np
import pytest
import torch

from separate.build import build_separator
from separate.models.embedding import Clusters, DeepClustering, attractors, similarity, unit_length
from separate.models.layers import ACTIVATIONS, decibels
from separate.models.recurrent import MaskInference
from separate.models.representation import NORMALISATIONS, Representation, Standardisation, observers
from separate.models.unet import UNet
from separate.stft import mel_filterbank
from tests.tiny import MODELS, config_of

BINS = 33
OF_SPECTROGRAMS = [
    "blstm", "lstm", "bgru", "gru", "deep_clustering", "chimera", "attractor", "unet", "open_unmix",
]  # fmt: skip
CAUSAL = {"lstm": {}, "gru": {}, "open_unmix": {"bidirectional": False}, "blstm": {"bidirectional": False}}


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
def test_masks_lie_where_their_activation_puts_them(activation):
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


def test_a_bidirectional_network_does():
    x = spectrogram()
    changed = x.clone()
    changed[..., 7:] = torch.randn_like(x[..., 7:])
    network = network_of("blstm").eval()
    assert not torch.equal(network(x)["masks"][..., :7], network(changed)["masks"][..., :7])


def test_a_unet_takes_patches_one_by_one_or_all_frames_at_once():
    x = spectrogram(frames=16)
    patched = UNet(2, 1, BINS, [4, 8], patch=8).eval()
    both = torch.cat([patched(x[..., :8])["masks"], patched(x[..., 8:])["masks"]], dim=-1)
    torch.testing.assert_close(patched(x)["masks"], both)
    whole = UNet(2, 1, BINS, [4, 8], patch=None).eval()
    assert (whole.valid_length(13), patched.valid_length(13)) == (16, 16)
    assert whole.valid_length(5) == 8


# representation


@pytest.mark.parametrize("name", NORMALISATIONS)
@pytest.mark.parametrize("channels", [1, 2])
def test_each_normalisation_normalises_what_it_says(name, channels):
    torch.manual_seed(0)
    x = 3 * torch.randn(4, channels, 9, 50) + torch.arange(9.0)[:, None] * 2
    layer = NORMALISATIONS[name](channels, 9)
    if isinstance(layer, Standardisation):
        for piece in x.split(1):
            layer.observe(piece)
        layer.settle()
    over = {
        "batch": (0, 3), "instance": (3,), "group": (2, 3), "layer": (1, 2), "learnable": (0, 1, 3),
        "whiten": (0, 1, 3), "none": (),
    }[name]  # fmt: skip
    y = layer(x)
    if name == "none":
        assert torch.equal(x, y)
        return
    torch.testing.assert_close(y.mean(over), torch.zeros_like(y.mean(over)), atol=1e-4, rtol=0)
    torch.testing.assert_close(y.std(over, correction=0), torch.ones_like(y.mean(over)), atol=1e-3, rtol=0)
    trained = sum(p.numel() for p in layer.parameters())
    assert (trained == 0) == (name == "whiten")


def test_statistics_by_streaming_are_those_of_the_whole_set_in_float64():
    torch.manual_seed(0)
    pieces = [100 + scale * torch.randn(1, 2, 5, frames) for scale, frames in ((1, 3), (7, 40), (0.1, 11))]
    layer = Standardisation(5, trained=False)
    for piece in pieces:
        layer.observe(piece)
    layer.settle()
    values = np.concatenate([piece.double().permute(2, 0, 1, 3).reshape(5, -1).numpy() for piece in pieces], axis=1)
    np.testing.assert_allclose(layer.shift, -values.mean(1), rtol=1e-6)
    np.testing.assert_allclose(layer.scale, 1 / values.std(1), rtol=1e-6)


def test_a_frequency_that_is_always_silent_is_not_blown_up():
    layer = Standardisation(2, trained=False)
    layer.observe(torch.stack([torch.zeros(10), torch.randn(10)])[None, None])
    layer.settle()
    assert layer(torch.full((1, 1, 2, 1), 1e-3)).abs().max() < 20


def test_only_networks_that_begin_with_statistics_ask_for_them():
    assert observers(network_of("blstm")) == []
    assert len(observers(network_of("blstm", normalisation="whiten"))) == 1
    assert len(observers(network_of("open_unmix", sources=3))) == 3


def test_mel_bands_share_each_bin_out_and_constant_masks_come_back_constant():
    filters = mel_filterbank(129, 8000, 20)
    torch.testing.assert_close(filters.sum(0), torch.ones(129))
    assert (filters.diff(dim=1).sign().diff(dim=1) < 0).any(dim=1).all()  # every band has a peak
    peaks = filters.argmax(1)
    mels = 2595 * torch.log10(1 + peaks * 4000 / 128 / 700)
    assert (mels.diff() - mels.diff().mean()).abs().max() < mels.diff().mean()  # about equally far apart in mel
    representation = Representation(1, 129, mels=20, sample_rate=8000)
    torch.testing.assert_close(representation.to_bins(torch.full((2, 20, 3), 0.3)), torch.full((2, 129, 3), 0.3))


def test_level_in_decibels():
    assert decibels(torch.tensor([1.0, 10.0, 0.0]), floor=-80).tolist() == pytest.approx([0, 20, -80])


# groups of embeddings


def test_interchangeable_sources_are_the_groups_that_k_means_finds():
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
    silence = torch.nn.functional.pad(x, (0, 6))
    for scale in ("linear", "db"):
        network = UNet(2, 1, BINS, [4, 8], patch=8, representation=scale).eval()
        torch.testing.assert_close(network(x)["masks"], network(silence)["masks"][..., :10])
