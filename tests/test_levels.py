"""Levels: estimates get the gain and polarity that they have in the mixture, and networks see one input level."""

import copy

import pytest
import torch
from torch import Tensor, nn

from separate.config import shipped
from separate.data.batch import Batch
from separate.evaluation.sdr import snr
from separate.levels import gains, level, rescaled, spectral_level
from separate.overlap import Matching, blocks
from separate.parts import build_loss, build_separator
from separate.separator import Levels, Separation, Separator, Signals
from separate.stft import STFT
from separate.training.resume import resumed_config
from tests.conftest import target
from tests.tiny import LOSSES, MODELS, config_of, section

SCALES = torch.tensor([-300.0, 0.01])  # of estimates under a loss that ignores level and sign


def voices(batch: int = 2, channels: int = 1, length: int = 16000) -> Tensor:
    """(B, 2, C, T)"""
    generator = torch.Generator().manual_seed(0)
    return torch.randn(batch, 2, channels, length, generator=generator) * torch.tensor([0.1, 0.03])[:, None, None]


class Scaled(nn.Module):
    """The true sources with wrong level and polarity; `flips` lists the calls in which the polarity is inverted."""

    provides = ("waveforms",)

    def __init__(self, flips: tuple[int, ...] = (), swaps: tuple[int, ...] = ()) -> None:
        super().__init__()
        self.flips, self.swaps, self.calls = flips, swaps, 0

    def forward(self, mixture: Tensor) -> dict[str, Tensor]:
        """Separate a low from a high sound by a moving average."""
        low = nn.functional.avg_pool1d(mixture, 9, 1, 4)
        estimates = torch.stack([low, mixture - low], dim=1) * SCALES[:, None, None]
        if self.calls in self.flips:
            estimates = -estimates
        if self.calls in self.swaps:
            estimates = estimates.flip(1)
        self.calls += 1
        return {"waveforms": estimates}


def low_and_high(seconds: float = 6.0, channels: int = 1) -> Tensor:
    """(2, C, T): a low and a high sound, which `Scaled` separates."""
    time = torch.arange(round(seconds * 8000)) / 8000
    beat = 1 + 0.5 * torch.sin(2 * torch.pi * 0.7 * time)
    sounds = torch.stack([0.1 * torch.sin(2 * torch.pi * 100 * time) * beat, 0.05 * torch.sin(2000 * torch.pi * time)])
    return sounds.unsqueeze(1) * 0.8 ** torch.arange(channels)[:, None]


def separator(network: nn.Module, channels: int = 1, interchangeable: bool = False, **options) -> Separator:
    signals = Signals(["a", "b"], 8000, channels, interchangeable)
    return Separator(network, STFT(64, 16), signals, Levels(**options)).eval()


# gain and polarity


def test_estimates_get_the_gain_and_the_polarity_that_they_have_in_the_mixture():
    sources = voices()
    found = rescaled(sources * SCALES[:, None, None], sources.sum(1))
    assert snr(found, sources).min() > 35
    decibels = 10 * torch.log10(found.square().sum(-1) / sources.square().sum(-1))
    assert decibels.abs().max() < 0.1
    torch.testing.assert_close(rescaled(found, sources.sum(1)), found, rtol=2e-3, atol=1e-6)


def test_the_sum_of_the_rescaled_estimates_is_the_nearest_that_gains_can_bring_to_the_mixture():
    torch.manual_seed(0)
    sources = voices()
    estimates = (sources + 0.02 * torch.randn_like(sources)) * SCALES[:, None, None]
    mixture = sources.sum(1)
    expected = torch.linalg.lstsq(estimates.flatten(2).mT.double(), mixture.flatten(1).unsqueeze(-1).double()).solution
    torch.testing.assert_close(gains(estimates, mixture).double(), expected.squeeze(-1), rtol=3e-3, atol=0)


def test_silent_and_equal_estimates_get_bounded_gains():
    sources = voices()
    mixture = sources.sum(1)
    assert gains(torch.zeros_like(sources), mixture).eq(0).all()
    one = sources.clone()
    one[:, 1] = 0
    assert gains(one, mixture)[:, 1].eq(0).all()
    rounding = sources.clone()
    rounding[:, 1] *= 1e-9
    assert gains(rounding, mixture)[:, 1].eq(0).all()
    noise = torch.randn(voices().shape, generator=torch.Generator().manual_seed(1))
    for difference in (0.0, 1e-6, 1e-3):
        equal = sources[:, :1].repeat(1, 2, 1, 1) + difference * noise * 0.1
        found = rescaled(equal, mixture)
        assert (found.square().mean((2, 3)) < mixture.square().mean((1, 2))[:, None]).all()
        torch.testing.assert_close(found.sum(1), sources[:, 0], atol=0.02, rtol=0)
    assert rescaled(sources, torch.zeros_like(mixture)).eq(0).all()


def test_the_channels_of_a_source_share_a_gain_and_channels_that_are_separated_apart_do_not():
    sources = low_and_high(channels=2)
    mixture = sources.sum(0)
    mixture[1] *= -0.5
    together = torch.stack(list(separator(Scaled(), 2, rescale=True)(mixture, 8000).values()))
    apart = torch.stack(list(separator(Scaled(), 1, rescale=True)(mixture, 8000).values()))
    for found in (together, apart):
        assert snr(found.sum(0), mixture).min() > 30
    ratio = together[:, 1, 4000:8000] / together[:, 0, 4000:8000]
    torch.testing.assert_close(ratio.nanmedian(dim=-1).values, torch.tensor([-0.4, -0.4]), rtol=1e-3, atol=0)


def test_training_sees_the_estimates_as_they_are_unless_consistency_follows():
    sources = voices(length=4000)
    batch = Batch(sources.sum(1), sources)
    with_rescaling = separator(Scaled(), rescale=True)
    plain = Scaled()(batch.mixture)["waveforms"]
    torch.testing.assert_close(with_rescaling.train().separate(batch).estimates, plain)
    assert not torch.allclose(with_rescaling.eval().separate(batch).estimates, plain)
    consistent = separator(Scaled(), rescale=True, consistency="equal")
    training, using = consistent.train().separate(batch).estimates, consistent.eval().separate(batch).estimates
    torch.testing.assert_close(training, using)
    torch.testing.assert_close(using.sum(1), batch.mixture)


def test_rescaling_is_differentiable():
    sources = voices(1, length=50).double()
    assert torch.autograd.gradcheck(lambda e: rescaled(e, sources.sum(1)), sources.clone().requires_grad_())


@pytest.mark.parametrize("rescale", [True, False])
def test_channels_with_opposed_phases_keep_their_speakers(rescale):
    mixture = low_and_high().sum(0) * torch.tensor([[1.0], [-0.7]])
    found = separator(Scaled(), 1, True, rescale=rescale)(mixture, 8000, chunk=1.5, overlap=0.5)
    for one in found.values():
        torch.testing.assert_close(one[1], -0.7 * one[0], atol=1e-4 * float(one.abs().max()), rtol=0)


# seams


@pytest.mark.parametrize("channels", [1, 2])
@pytest.mark.parametrize("of_network", [1, 2])
@pytest.mark.parametrize("flips", [(), (1,), (0,), (1, 2, 4)])
@pytest.mark.parametrize("swaps", [(), (1, 3)])
def test_a_polarity_that_changes_from_chunk_to_chunk_is_corrected(channels, of_network, flips, swaps):
    sources = low_and_high(channels=channels)
    network = Scaled(flips, swaps)
    found = separator(network, of_network, bool(swaps), rescale=True)(sources.sum(0), 8000, chunk=1.5, overlap=0.5)
    assert network.calls > 4
    estimates = torch.stack(list(found.values()))
    inner = slice(4, -4)
    assert snr(estimates[..., inner], sources[..., inner]).min() > 15
    assert snr(estimates.sum(0)[..., inner], sources.sum(0)[..., inner]).min() > 30


def signs(values: list[float], loudness: list[float]) -> Tensor:
    """A source whose chunks of 100 samples, 40 shared, have these polarities and amplitudes, joined.  (240,)"""
    count = iter(range(len(values)))

    def separate(start: int, stop: int) -> Tensor:
        number = next(count)
        found = torch.full((1, 1, stop - start), values[number] * loudness[number])
        return torch.cat([found, torch.ones_like(found)])

    return torch.cat(list(blocks(separate, 220, 100, 1.0, 0.4, Matching(polarities="source"))), dim=-1)[0, 0]


def test_where_chunks_disagree_the_louder_polarity_holds():
    quiet_then_loud = signs([-1, 1, 1], [0.01, 1.0, 1.0])
    assert quiet_then_loud[:60].lt(0).all()  # already yielded
    assert quiet_then_loud[62:].gt(0).all()  # inverted in 20 ms, 2 samples
    loud_then_quiet = signs([1, -1, 1], [1.0, 0.01, 1.0])
    assert loud_then_quiet.gt(0).all()
    assert signs([1, -1, -1], [1.0, 0.9, 0.9]).gt(0).all()  # the polarity with more energy in all stays


@pytest.mark.parametrize(("shared", "frequency"), [(0.5, 110.0), (0.5, 30.0), (0.01, 110.0)])
def test_a_polarity_is_inverted_without_a_step(shared, frequency):
    time = torch.arange(20000) / 8000
    tone = torch.cos(2 * torch.pi * frequency * time) * (1 + 0.2 * time)  # later chunks are louder
    signs = iter([-1, 1, 1, 1, 1])
    found = list(
        blocks(
            lambda a, b: next(signs) * tone[None, None, a:b], 20000, 8000, 1.0, shared, Matching(polarities="source")
        )
    )
    joined = torch.cat(found, dim=-1)[0, 0]
    turned = round((1 - shared) * 8000), round((1 - shared + min(shared, 0.02)) * 8000)
    torch.testing.assert_close(joined[: turned[0]], -tone[: turned[0]])
    torch.testing.assert_close(joined[turned[1] :], tone[turned[1] :])
    near = slice(turned[0] - 200, turned[1] + 200)
    steepest = (joined[near].diff().abs().amax() / tone[near].diff().abs().amax()).item()
    assert steepest < (1.02 if shared > 0.02 else 1.5)  # a step would be 23 and 85 times as steep as the tones


# losses that keep levels


def test_losses_declare_whether_they_keep_levels():
    """Measured: a loss keeps levels if an estimate with another gain or polarity has another cost."""
    sources = voices(length=8000)
    batch = Batch(sources.sum(1), sources, stft=STFT(64, 16))
    estimates = sources + 0.01 * torch.randn(sources.shape, generator=torch.Generator().manual_seed(2))
    for name, (kind, fixed, own) in LOSSES.items():
        if kind.domains != ("waveform",):
            continue
        loss = kind(target=own, **fixed)
        costs = [loss(Separation(batch, {"waveforms": g * estimates}), batch)[0].item() for g in (1.0, 2.0, -1.0)]
        ignored = min(abs(costs[1] - costs[0]), abs(costs[2] - costs[0])) < 1e-3 * abs(costs[0])
        assert loss.keeps_levels is not ignored, name


def keeps(loss: str, model: str = "blstm", **options) -> dict:
    target = next(iter(shipped("loss")[loss].get("defaults", [{"": "tpsa"}])[0].values()))
    sections = {"loss": {**section("loss", loss), **options}, "target": section("target", target)}
    return config_of(model, rescale="auto", **sections)


@pytest.mark.parametrize(
    ("loss", "options", "model", "rescale"),
    [
        ("si_sdr", {}, "blstm", True),
        ("si_snr", {}, "conv_tasnet", True),
        ("multi_resolution_stft", {}, "wave_unet", True),
        ("snr", {}, "conv_tasnet", False),
        ("sd_sdr", {}, "conv_tasnet", False),
        ("tpsa", {}, "blstm", False),
        ("dc", {}, "deep_clustering", False),
        ("attractor", {}, "attractor", False),
        ("chimera", {}, "chimera", False),
        ("sum", {"terms": {"si_sdr": 1.0, "multi_resolution_stft": 1.0}}, "conv_tasnet", True),
        ("sum", {"terms": {"si_sdr": 1.0, "waveform_l1": 1.0}}, "conv_tasnet", False),
        ("sum", {"terms": {"si_sdr": 1.0, "dc": 1.0}}, "chimera", True),
    ],
)
def test_auto_rescales_where_the_loss_leaves_levels_open(loss, options, model, rescale):
    config = keeps(loss, model, **options)
    assert build_separator(config).rescale is rescale
    assert build_separator({**config, "rescale": not rescale}).rescale is not rescale
    assert not build_separator({**config, "consistency": "equal"}).rescale
    assert not build_separator({key: value for key, value in config.items() if key != "rescale"}).rescale


def test_a_resumed_run_keeps_the_levels_that_it_was_started_with():
    saved = {"data": {"_target_": target("toy")}, "model": {"_target_": "a"}}
    composed = {**copy.deepcopy(saved), "rescale": "auto", "input_level": "auto"}
    assert resumed_config(saved, composed, ["rescale=auto", "experiment=x"]) == {
        **saved, "rescale": False, "input_level": "none",
    }  # fmt: skip
    newer = {**saved, "rescale": True, "input_level": "rms"}
    assert resumed_config(newer, composed, ["rescale=auto", "experiment=x"]) == newer


# the level that a network sees

ASKING = [name for name in MODELS if build_separator(config_of(name, input_level="auto")).input_level == "rms"]


INVARIANT = ["tasnet", "conv_tasnet", "dprnn", "demucs", "hdemucs"]  # because of their norms
CAUSAL = ["lstm", "gru"]


def test_networks_that_are_sensitive_to_levels_declare_an_input_level():
    assert sorted(ASKING) == sorted(set(MODELS) - set(INVARIANT) - set(CAUSAL))
    causal = {"wavenet": {"causal": True}, "open_unmix": {"bidirectional": False}, "dnn": {"right_context": 0}}
    for model, options in causal.items():
        assert build_separator(config_of(model, options=options, input_level="auto")).input_level == "none"
    assert build_separator(config_of("unet")).input_level == "none"  # a checkpoint older than the key


def moved(model: str, asked: str, decibels: int) -> float:
    """How far the estimates of a mixture with that gain are from those without it, relative to the largest."""
    torch.manual_seed(0)
    made = build_separator(config_of(model, input_level=asked)).eval()
    time = torch.arange(6000) / 8000
    mixture = 0.05 * torch.randn(1, 6000) + 0.1 * torch.sin(2 * torch.pi * 440 * time)
    gain = 10 ** (decibels / 20)
    once, found = (torch.stack(list(made(g * mixture, 8000, chunk=0.5, overlap=0.2).values())) for g in (1, gain))
    return ((found / gain - once).abs().amax() / once.abs().amax()).item()


@pytest.mark.parametrize("decibels", [-40, -20, 6, 20])
@pytest.mark.parametrize("model", [*ASKING, *INVARIANT])
def test_a_louder_recording_changes_only_the_level_of_the_estimates(model, decibels):
    assert moved(model, "auto", decibels) < (1e-3 if model in ASKING else 0.02)


@pytest.mark.parametrize("model", sorted({*ASKING} - {"deep_clustering", "attractor"}))  # untrained, they split evenly
def test_without_an_input_level_estimates_depend_on_the_level(model):
    assert max(moved(model, "none", decibels) for decibels in (-40, 20)) > 5e-3


@pytest.mark.parametrize("n_fft", [64, 512])
@pytest.mark.parametrize("window", ["hann", "sqrt_hann", "hamming"])
def test_the_level_is_minus_20_decibels_in_samples_and_in_spectrograms(n_fft, window):
    sources = voices(3, 2)
    mixture = sources.sum(1) * torch.tensor([1e-3, 1.0, 30.0])[:, None, None]
    torch.testing.assert_close((mixture / level(mixture)).square().mean((1, 2)).sqrt(), torch.full((3,), 0.1))
    stft = STFT(n_fft, n_fft // 4, window)
    apart = 20 * torch.log10(spectral_level(stft(mixture), stft).flatten() / level(mixture).flatten())
    assert apart.abs().max() < 0.3


@pytest.mark.parametrize("model", ["unet", "wave_unet"])
def test_silence_is_not_amplified(model):
    made = build_separator(config_of(model, input_level="rms")).eval()
    seen = []
    made.network.register_forward_pre_hook(lambda module, inputs: seen.append(inputs[0].abs().amax().item()))
    for found in made(torch.zeros(8000), 8000).values():
        assert found.abs().max() < 1e-3
    for found in made(1e-9 * torch.randn(8000), 8000).values():
        assert found.isfinite().all()
    assert seen[0] == 0
    assert seen[1] < 1e-2


class Quarter(nn.Module):
    """A quarter of the mixture and the rest of it, correct at any level."""

    provides = ("waveforms",)

    def forward(self, mixture: Tensor) -> dict[str, Tensor]:
        return {"waveforms": torch.stack([0.25 * mixture, 0.75 * mixture], dim=1)}


@pytest.mark.parametrize("options", [{}, {"consistency": "equal"}, {"rescale": True}])
def test_chunks_of_other_levels_do_not_pump(options):
    quiet_and_loud = torch.randn(1, 48000, generator=torch.Generator().manual_seed(3)) * torch.tensor(
        [0.001, 0.3, 0.01]
    ).repeat_interleave(16000)
    found = separator(Quarter(), input_level="rms", **options)(quiet_and_loud, 8000, chunk=1.5, overlap=0.5)
    for name, share in (("a", 0.25), ("b", 0.75)):
        # gains of collinear estimates are not unique; only their sum is determined
        if "rescale" not in options:
            torch.testing.assert_close(found[name], share * quiet_and_loud, rtol=1e-4, atol=1e-8)
    assert snr(found["a"] + found["b"], quiet_and_loud).min() > 50


def test_an_unknown_level_is_refused():
    with pytest.raises(ValueError, match="unknown input_level peak; choose from none, rms"):
        separator(Quarter(), input_level="peak")


def test_statistics_of_the_training_set_are_those_of_the_network_input():
    made = build_separator(config_of("open_unmix", input_level="auto"))
    for loudness in (1.0, 0.01):
        batch = Batch.of_mixture(loudness * voices().sum(1), made.stft)
        features = made.network.parts[0].representation.scaled(made.input_spectrogram(batch))
        assert abs(features.square().mean().sqrt() - 0.56) < 0.1, features.square().mean().sqrt()


def test_the_loss_of_training_is_finite_with_the_options_on():
    config = {**keeps("si_sdr", "unet"), "input_level": "rms", "consistency": "equal", "rescale": True}
    made = build_separator(config).train()
    loss = build_loss(config, made)
    sources = voices(length=640)
    sources[0] = 0
    batch = Batch(sources.sum(1), sources, stft=made.stft)
    value, _ = loss(made.separate(batch), batch)
    value.backward()
    assert value.isfinite()
    assert all(p.grad.isfinite().all() for p in made.parameters() if p.grad is not None)
