"""Losses: known answers, permutation invariance, silence."""

import itertools

import pytest
import torch

from separate import targets
from separate.data.batch import Batch
from separate.errors import UsageError
from separate.losses import MixITLoss, PairedLoss, SISDRLoss, SpectralLoss, WaveformLoss
from separate.models.embedding import Clusters
from separate.separator import Separation
from separate.stft import STFT
from tests.tiny import LOSSES, weighted_sum

STFT_ = STFT(64, 16)
PAIRED = [name for name, (kind, _, _) in LOSSES.items() if issubclass(kind, PairedLoss)]


def named(name: str, pit: bool = False, **options):
    """The loss of that name, towards its own target or tPSA."""
    kind, fixed, own = LOSSES[name]
    if issubclass(kind, PairedLoss):
        options["interchangeable"] = pit
    return kind(target=own or targets.tpsa, **{**fixed, **options})


def batch(sources: torch.Tensor) -> Batch:
    return Batch(sources.sum(1), sources, stft=STFT_)


def masks(of: Batch) -> torch.Tensor:
    return torch.rand(*of.source_spectrograms.shape, requires_grad=True)


def test_the_target_itself_costs_nothing():
    data = batch(torch.randn(2, 3, 1, 400))
    perfect = targets.tpsa(data.source_spectrograms, data.spectrogram) / data.spectrogram.abs().unsqueeze(1)
    loss, parts = SpectralLoss(targets.tpsa)(Separation(data, {"masks": perfect}), data)
    assert loss.item() < 1e-6
    assert parts == {}


@pytest.mark.parametrize(("distance", "power"), [("l1", 1), ("mse", 2)])
def test_spectral_loss_is_its_formula(distance, power):
    data = batch(torch.randn(2, 2, 1, 400))
    mask = masks(data)
    error = mask * data.spectrogram.abs().unsqueeze(1) - data.source_spectrograms.abs()
    loss, _ = SpectralLoss(targets.msa, distance)(Separation(data, {"masks": mask}), data)
    torch.testing.assert_close(loss, error.abs().pow(power).mean())


def test_si_sdr_loss_takes_masks_through_the_inverse_transform():
    data = batch(torch.randn(2, 2, 1, 400))
    ones = torch.ones(data.source_spectrograms.shape)
    separation = Separation(data, {"masks": ones})
    torch.testing.assert_close(separation.estimates[:, 0], data.mixture, atol=1e-5, rtol=0)
    waveforms = Separation(data, {"waveforms": separation.estimates})
    loss = SISDRLoss(targets.waveform)
    torch.testing.assert_close(loss(separation, data)[0], loss(waveforms, data)[0])


@pytest.mark.parametrize("name", PAIRED)
def test_interchangeable_sources_may_come_in_any_order(name):
    torch.manual_seed(0)
    data = batch(torch.randn(4, 3, 1, 400))
    mask = masks(data)
    expected = named(name, True)(Separation(data, {"masks": mask}), data)[0]
    for order in itertools.permutations(range(3)):
        shuffled = batch(data.sources[:, list(order)])
        torch.testing.assert_close(named(name, True)(Separation(shuffled, {"masks": mask}), shuffled)[0], expected)
    each = torch.stack(
        [
            torch.stack([named(name)(Separation(one, {"masks": mask[i : i + 1]}), one)[0] for one in orders])
            for i in range(4)
            for orders in [[batch(data.sources[i : i + 1, list(o)]) for o in itertools.permutations(range(3))]]
        ]
    )
    torch.testing.assert_close(each.amin(1).mean(), expected)


SILENCES = ["one source", "everything", "identical", "one sample", "nothing"]


@pytest.mark.parametrize("name", [*LOSSES, "mixit"])
@pytest.mark.parametrize("silent", SILENCES)
@pytest.mark.parametrize("pit", [False, True])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16], ids=str)
def test_finite_with_finite_gradients_whatever_is_silent(name, silent, pit, dtype):
    torch.manual_seed(0)
    sources = torch.randn(2, 2, 1, 1 if silent == "one sample" else 700)
    if silent == "one source":
        sources[:, 1] = 0
    if silent == "everything":
        sources[:] = 0
    if silent == "identical":
        sources[:, 1] = sources[:, 0]
    loss = named(name, pit) if name != "mixit" else MixITLoss(targets.waveform)
    data = loss.prepare(batch(sources))
    shape = data.spectrogram.shape  # (B, C, F, N)
    heads = {
        "masks": torch.rand(2, 2, *shape[1:], dtype=dtype, requires_grad=True),
        "embeddings": torch.randn(2, *shape[2:], 4, dtype=dtype, requires_grad=True),
    }
    separation = Separation(data, heads, Clusters(2, 4, True, "softmax"))
    with torch.autocast("cpu", torch.bfloat16 if dtype == torch.float32 else dtype, dtype != torch.float32):
        value, _ = loss(separation, data)
    value.backward()
    assert value.isfinite()
    gradients = [head.grad for head in heads.values() if head.grad is not None]
    assert gradients
    assert all(gradient.isfinite().all() for gradient in gradients)


@pytest.mark.parametrize("name", [name for name in LOSSES if LOSSES[name][2] is targets.waveform])
def test_waveforms_of_silence_and_of_the_source_itself_are_finite_too(name):
    torch.manual_seed(0)
    sources = torch.randn(2, 2, 2, 700)
    sources[0, 0] = 0
    data = batch(sources)
    for estimate in (torch.zeros_like(sources), sources.clone(), -sources):
        estimate.requires_grad_()
        value, _ = named(name)(Separation(data, {"waveforms": estimate}), data)
        value.backward()
        assert value.isfinite()
        assert estimate.grad.isfinite().all()


@pytest.mark.parametrize("name", PAIRED)
@pytest.mark.parametrize("channel", [0, 1])
def test_every_channel_counts(name, channel):
    torch.manual_seed(0)
    data = batch(torch.randn(2, 2, 2, 700))
    mask = torch.rand(data.source_spectrograms.shape)
    other = mask.clone()
    other[:, :, channel] = 1 - other[:, :, channel]
    loss = named(name)
    value, changed = (loss(Separation(data, {"masks": m}), data)[0] for m in (mask, other))
    assert abs(changed - value) > 1e-4


@pytest.mark.parametrize("name", ["l1", "mse", "waveform_l1", "waveform_mse"])
def test_a_mean_over_two_channels_is_the_mean_of_the_channels(name):
    torch.manual_seed(0)
    sources, estimates = torch.randn(2, 2, 2, 700), torch.randn(2, 2, 2, 700)
    both, left, right = (batch(sources[:, :, c]) for c in ([0, 1], [0], [1]))
    mask = torch.rand(both.source_spectrograms.shape)
    values = [
        named(name)(Separation(data, {"masks": mask[:, :, c], "waveforms": estimates[:, :, c]}), data)[0]
        for data, c in ((both, [0, 1]), (left, [0]), (right, [1]))
    ]
    torch.testing.assert_close(values[0], (values[1] + values[2]) / 2)


# formulas


def waveforms(estimate: torch.Tensor, sources: torch.Tensor) -> tuple[Separation, Batch]:
    data = Batch(sources.sum(1), sources)
    return Separation(data, {"waveforms": estimate}), data


def test_waveform_losses_are_their_formulas():
    torch.manual_seed(0)
    sources = torch.randn(2, 3, 2, 500)
    estimate = sources + 0.1 * torch.randn_like(sources)
    error = estimate - sources
    pair = waveforms(estimate, sources)
    torch.testing.assert_close(named("waveform_l1")(*pair)[0], error.abs().mean())
    torch.testing.assert_close(named("waveform_mse")(*pair)[0], error.square().mean())
    levels = 10 * torch.log10(error.square().mean((2, 3)))
    torch.testing.assert_close(named("log_mse")(*pair)[0], levels.mean())
    soft = 10 * torch.log10((error.square().sum((2, 3)) / sources.square().sum((2, 3))) + 10**-2)
    torch.testing.assert_close(named("snr", threshold=20.0)(*pair)[0], soft.mean(), rtol=1e-4, atol=1e-4)


def test_levels_count_for_snr_and_sd_sdr_and_not_for_si_sdr():
    torch.manual_seed(0)
    sources = torch.randn(2, 2, 1, 500)
    estimate = sources + 0.1 * torch.randn_like(sources)
    for name, counts in (("si_sdr", False), ("si_snr", False), ("snr", True), ("sd_sdr", True)):
        right, wrong = (named(name)(*waveforms(gain * estimate, sources))[0] for gain in (1.0, 2.0))
        assert (abs(wrong - right) > 1) == counts


def test_a_constant_offset_counts_for_si_sdr_and_not_for_si_snr():
    torch.manual_seed(0)
    sources = torch.randn(2, 2, 1, 500)
    estimate = sources + 0.1 * torch.randn_like(sources)
    for name, counts in (("si_sdr", True), ("si_snr", False)):
        right, wrong = (named(name)(*waveforms(estimate + offset, sources))[0] for offset in (0.0, 1.0))
        assert (abs(wrong - right) > 1) == counts


def test_weights_of_named_sources_are_those_of_a_weighted_mean():
    sources = torch.randn(4, 3, 1, 500)
    pair = waveforms(torch.randn_like(sources), sources)
    loss = WaveformLoss(targets.waveform, "mse", source_weights={"b": 3.0, "c": 0.0}, sources=["a", "b", "c"])
    error = (pair[0].estimates - sources).square().mean((0, 2, 3))
    torch.testing.assert_close(loss(*pair)[0], (error[0] + 3 * error[1]) / 4)


@pytest.mark.parametrize(
    ("weights", "pit", "message"),
    [
        ({"d": 1.0}, False, r"source_weights={'d': 1.0} must give sources of a, b a weight of at least 0"),
        ({"a": -1.0}, False, "at least 0"),
        ({"a": 0.0, "b": 0.0}, False, "leave nothing to learn"),
        ({"a": 1.0}, True, "these are interchangeable"),
    ],
)
def test_invalid_weights_are_refused(weights, pit, message):
    with pytest.raises(ValueError, match=message):
        WaveformLoss(targets.waveform, "l1", pit, weights, ["a", "b"])


def test_a_mask_target_is_compared_with_the_mask_where_something_sounds():
    sources = torch.randn(2, 2, 1, 700)
    sources[0, :, :, :] = 0
    data = batch(sources)
    mask = masks(data)
    error = (mask - targets.irm(data.source_spectrograms, data.spectrogram))[1].abs().mean() / 2
    torch.testing.assert_close(SpectralLoss(targets.irm)(Separation(data, {"masks": mask}), data)[0], error)


def test_perfect_embeddings_and_perfect_complex_masks_cost_nothing():
    torch.manual_seed(0)
    data = batch(torch.randn(2, 3, 1, 700))
    owner = targets.ibm(data.source_spectrograms, data.spectrogram)[:, :, 0]  # (B, S, F, N)
    perfect = Separation(data, {"embeddings": owner.movedim(1, -1)})
    for name in ("dc", "dc_weighted"):
        assert named(name)(perfect, data)[0] < 1e-6
    assert abs(named("dc_whitened")(perfect, data)[0]) < 1e-3
    ratio = data.source_spectrograms / data.spectrogram.unsqueeze(1)
    assert SpectralLoss(targets.cirm)(Separation(data, {"complex_masks": ratio}), data)[0] < 1e-5
    estimates = Separation(data, {"complex_masks": ratio}).estimates
    torch.testing.assert_close(estimates, data.sources, atol=1e-3, rtol=0)


def test_the_attractor_loss_is_its_formula():
    torch.manual_seed(0)
    data = batch(torch.randn(2, 2, 1, 700))
    embeddings = torch.randn(2, *data.spectrogram.shape[2:], 5)
    owner = targets.ibm(data.source_spectrograms, data.spectrogram)[:, :, 0]
    heard = owner * targets.audible(data.spectrogram, -40).unsqueeze(1)
    centres = torch.einsum("bsfn,bfnd->bsd", heard, embeddings) / heard.sum((2, 3)).unsqueeze(-1)
    shares = torch.einsum("bsd,bfnd->bsfn", centres, embeddings).softmax(1).unsqueeze(2)
    error = shares * data.spectrogram.abs().unsqueeze(1) - data.source_spectrograms.abs()
    clusters = Clusters(2, 5, True, "softmax")
    found, _ = named("attractor")(Separation(data, {"embeddings": embeddings}, clusters), data)
    torch.testing.assert_close(found, error.square().mean())


# silent sources beside audible ones


def pulls(name: str, pit: bool, silence: str, decibels: float) -> tuple[dict[str, torch.Tensor], torch.Tensor | None]:
    """Gradients by head, and norms (B, S) of the gradients of waveforms or masks, for a batch with a silent source.

    decibels: level of the estimate of the silent source re the errors of the others.
    """
    generator = torch.Generator().manual_seed(0)
    sources = 0.1 * torch.randn(4, 2, 1, 8000, generator=generator)
    error = 0.03 * torch.randn(4, 2, 1, 8000, generator=generator)  # 10 dB below
    quiet = {"nothing": (0, slice(0, 0)), "a source": (0, 1), "an example": (0, slice(None))}[silence]
    sources[quiet] = 0
    error[quiet] *= 10 ** (decibels / 20)
    loss = MixITLoss(targets.waveform) if name == "mixit" else named(name, pit)
    data = loss.prepare(Batch(sources.sum(1), sources, stft=STFT(256, 64)))
    shape = data.spectrogram.shape
    heads = (
        {"waveforms": sources + error}
        if "estimates" in loss.needs
        else {"masks": torch.rand(4, 2, *shape[1:], generator=generator)}
    )
    if "embeddings" in loss.needs:
        heads = {"embeddings": torch.randn(4, *shape[2:], 4, generator=generator)}
    for head in heads.values():
        head.requires_grad_()
    loss(Separation(data, heads, Clusters(2, 4, True, "softmax")), data)[0].backward()
    gradients = {key: head.grad for key, head in heads.items()}
    paired = [g.flatten(2).norm(dim=2) for key, g in gradients.items() if key != "embeddings"]
    return gradients, paired[0] if paired else None


@pytest.mark.parametrize("name", [*LOSSES, "mixit"])
@pytest.mark.parametrize("silence", ["a source", "an example"])
@pytest.mark.parametrize("decibels", [0, -10, -60])
@pytest.mark.parametrize("pit", [False, True])
def test_a_silent_source_does_not_dominate_the_gradient(name, silence, decibels, pit):
    """It leaves the gradients of the others as they are, and its own, clipped with them, is at most twice as large."""
    loud, _ = pulls(name, pit, "nothing", 0)
    found, norms = pulls(name, pit, silence, decibels)
    if name != "mixit":  # its sums of mixtures are not silent
        for head, gradient in found.items():
            torch.testing.assert_close(gradient[1:], loud[head][1:])
    whole = next(iter(found.values())).flatten(1).norm(dim=1)  # (B,)
    assert whole[0] < 2 * whole[1:].square().mean().sqrt()
    if norms is not None:
        assert norms[0, 1] < 2 * norms[1:].square().mean().sqrt()


@pytest.mark.parametrize("name", ["log_mse", "snr", "sd_sdr", "multi_resolution_stft"])
def test_the_loss_of_a_silent_source_still_decreases_with_the_level_of_its_estimate(name):
    sources = torch.zeros(1, 2, 1, 4000)
    sources[:, 0] = 0.1 * torch.randn(1, 4000, generator=torch.Generator().manual_seed(0))
    leak = torch.randn(1, 4000, generator=torch.Generator().manual_seed(1))
    costs = []
    for level in (0.1, 0.03, 0.01, 0.001):
        estimates = sources.clone()
        estimates[:, 1] = level * leak
        costs.append(named(name)(*waveforms(estimates, sources))[0].item())
    assert costs == sorted(costs, reverse=True)
    assert costs[0] > costs[1] + 0.1 * (costs[0] - costs[-1])


def test_a_silent_source_costs_what_an_audible_one_does_in_several_stfts():
    sources = 0.1 * torch.randn(2, 2, 1, 8000, generator=torch.Generator().manual_seed(0))
    estimates = sources + 0.1 * torch.randn(sources.shape, generator=torch.Generator().manual_seed(1))
    audible = named("multi_resolution_stft")(*waveforms(estimates, sources))[0]
    sources[0, 1] = 0
    silent = named("multi_resolution_stft")(*waveforms(estimates, sources))[0]
    assert silent < 2 * audible


# sums


def test_a_sum_is_its_weighted_parts_each_logged_under_its_name():
    torch.manual_seed(0)
    data = batch(torch.randn(2, 2, 1, 700))
    separation = Separation(data, {"masks": masks(data)})
    terms = {"l1": {"weight": 2.0, "target": "msa"}, "si_sdr": 0.1, "snr": {"weight": 1.0, "threshold": 10.0}}
    total, parts = weighted_sum(terms)(separation, data)
    assert list(parts) == list(terms)
    torch.testing.assert_close(parts["l1"], named("msa")(separation, data)[0])
    torch.testing.assert_close(parts["snr"], named("snr", threshold=10.0)(separation, data)[0])
    torch.testing.assert_close(total, 2 * parts["l1"] + 0.1 * parts["si_sdr"] + parts["snr"])


def test_all_parts_of_a_sum_agree_on_one_order_of_the_sources():
    torch.manual_seed(0)
    data = batch(torch.randn(8, 3, 1, 700))
    separation = Separation(data, {"masks": masks(data)})
    total, parts = weighted_sum({"tpsa": 1.0, "waveform_l1": 1.0}, interchangeable=True)(separation, data)
    apart = [named(name, True)(separation, data)[0] for name in ("tpsa", "waveform_l1")]
    assert total >= sum(apart)
    each = []
    for order in itertools.permutations(range(3)):
        shuffled = Separation(data, {"masks": separation.masks[:, list(order)]})
        signals = [(named(name), named(name).signals(shuffled, data)) for name in ("tpsa", "waveform_l1")]
        each.append(sum(loss.matched(*pair).mean(1) for loss, pair in signals))
    torch.testing.assert_close(total, torch.stack(each).amin(0).mean())
    torch.testing.assert_close(total, parts["tpsa"] + parts["waveform_l1"])


@pytest.mark.parametrize(
    ("terms", "message"),
    [
        ({}, "terms is empty"),
        (None, "terms is empty"),
        ({"tpsaa": 1}, "unknown loss in terms: tpsaa .*; did you mean tpsa"),
        ({"tpsa": 0}, "terms.tpsa: the weight 0 must be a number above 0"),
        ({"tpsa": float("nan")}, "loss.terms.tpsa=nan must be a finite number"),
        ({"tpsa": "much"}, "the weight much must be a number"),
        ({"l1": {"target": "bmi"}}, "unknown target in terms.l1: bmi; did you mean ibm"),
        (
            {"l1": {"target": "waveform"}},
            "SpectralLoss compares a spectrogram or mask or .* and the target is a waveform",
        ),
        (
            {"snr": {"treshold": 1}},
            "there is no key loss.terms.snr.treshold \\(separate.losses.SNRLoss\\); did you mean threshold",
        ),
    ],
)
def test_invalid_terms_are_refused(terms, message):
    with pytest.raises(UsageError, match=message):
        weighted_sum(terms)


# mixtures of mixtures


def test_mixit_finds_the_assignment_that_restores_both_mixtures():
    torch.manual_seed(0)
    sources = torch.randn(3, 2, 1, 700)
    loss = MixITLoss(targets.waveform)
    data = loss.prepare(batch(sources))
    torch.testing.assert_close(data.mixture, sources.sum(1) + sources.sum(1).roll(1, dims=0))
    four = torch.cat([sources, sources.roll(1, dims=0)], dim=1)[:, [2, 0, 3, 1]]  # (B, 4, 1, T), in some order
    assert loss(Separation(data, {"waveforms": four}), data)[0] < -29.9  # the soft threshold at 30 dB
    wrong = four.clone()
    wrong[:, 0] *= 0.5
    assert loss(Separation(data, {"waveforms": wrong}), data)[0] > -25


def test_mixit_is_the_minimum_over_all_assignments_written_out():
    torch.manual_seed(0)
    loss = MixITLoss(targets.waveform)
    data = loss.prepare(batch(torch.randn(4, 2, 1, 300)))
    estimates = torch.randn(4, 3, 1, 300)
    mixtures = data.sources
    costs = []
    for sharing in itertools.product((0, 1), repeat=3):
        given = torch.stack([estimates[:, [s == m for s in sharing]].sum(1) for m in (0, 1)], dim=1)
        error = (mixtures - given).square().mean((2, 3)) + 1e-3 * mixtures.square().mean((2, 3))
        costs.append((10 * torch.log10(error / mixtures.square().mean((2, 3)))).mean(1))
    found, _ = loss(Separation(data, {"waveforms": estimates}), data)
    torch.testing.assert_close(found, torch.stack(costs).amin(0).mean(), rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=str)
def test_half_precision_does_not_change_the_assignment_of_mixit(dtype):
    torch.manual_seed(0)
    loss = MixITLoss(targets.waveform)
    data = loss.prepare(batch(100 * torch.randn(4, 2, 1, 20000) * torch.tensor([1.0, 0.03])[:, None, None]))
    estimates = data.sources[:, [0, 1, 0, 1]] * torch.tensor([0.9, 0.1, 0.1, 0.9])[:, None, None]
    separation = Separation(data, {"waveforms": estimates})
    expected, _ = loss(separation, data)
    with torch.autocast("cpu", dtype):
        torch.testing.assert_close(loss(separation, data)[0], expected)


def test_mixit_makes_two_mixtures_of_a_single_example_too():
    data = MixITLoss(targets.waveform).prepare(batch(torch.randn(1, 2, 1, 300)))
    assert not torch.equal(data.sources[:, 0], data.sources[:, 1])


def test_too_many_estimates_are_refused():
    loss = MixITLoss(targets.waveform)
    data = loss.prepare(batch(torch.randn(2, 2, 1, 30)))
    with pytest.raises(ValueError, match="13 estimates are too many for mixit; use at most 12"):
        loss(Separation(data, {"waveforms": torch.randn(2, 13, 1, 30)}), data)


def test_an_unknown_distance_is_refused():
    with pytest.raises(ValueError, match="unknown distance l2; choose from l1, mse"):
        SpectralLoss(targets.tpsa, "l2")


def test_a_batch_transforms_at_most_once(monkeypatch):
    calls = []
    stft = STFT(64, 16)
    monkeypatch.setattr(stft, "forward", lambda x, f=stft.forward: (calls.append(x.shape), f(x))[1])
    data = Batch(torch.randn(2, 1, 400), torch.randn(2, 2, 1, 400), stft=stft)
    for _ in range(3):
        SpectralLoss(targets.tpsa)(Separation(data, {"masks": masks(data)}), data)
    assert len(calls) == 2  # the mixture, the sources
