"""Metrics of separate-eval against other packages and known answers, their registry, and the pairing of estimates."""

from itertools import permutations
from math import log10

import numpy as np
import pytest
import torch
import torchmetrics.functional.audio as peer

from separate.errors import UsageError
from separate.evaluation import sdr, spectral
from separate.evaluation.metrics import CHEAP, FAMILIES, METRICS, load_metrics, metric
from separate.evaluation.scores import score_recording

RATE = 8000


def noise(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def tones(*frequencies: float, samples: int = 8000) -> torch.Tensor:
    """Sines of energy 1 that are orthogonal, because a second holds whole periods.  (number, T)"""
    time = torch.arange(samples, dtype=torch.float64) / RATE
    return torch.stack([torch.sin(2 * torch.pi * f * time) * (2 / samples) ** 0.5 for f in frequencies])


def all_scores(estimates, references, names, rate=RATE, interchangeable=False):
    mixture = references.sum(1)
    return score_recording(estimates, references, mixture, rate, load_metrics(names, families=True), interchangeable)


# ---------------------------------------------------------------------------------------------------- scale-invariant


def test_interference_and_artifacts_of_orthogonal_tones_have_their_ratios():
    first, second, rest = tones(400, 700, 1100)
    references = torch.stack([first, second])[None]
    estimates = torch.stack([2 * first + 0.2 * second + 0.02 * rest, second])[None]
    sir, sar = sdr.si_sir_and_sar(estimates, references)
    assert sir[0, 0] == pytest.approx(20, abs=1e-9)
    assert sar[0, 0] == pytest.approx(40, abs=1e-9)
    assert (sir[0, 1] > 150) and (sar[0, 1] > 150)


def test_interference_and_artifacts_add_up_to_the_residual():
    references = noise(3, 4, 2000)
    estimates = references + 0.3 * references.roll(1, 1) + 0.2 * noise(3, 4, 2000, seed=1)
    sir, sar = sdr.si_sir_and_sar(estimates, references)
    total = -10 * torch.log10(10 ** (-sir / 10) + 10 ** (-sar / 10))
    torch.testing.assert_close(total, sdr.si_sdr(estimates, references), atol=1e-9, rtol=0)


def test_interference_is_the_projection_on_all_references():
    references, estimates = noise(2, 1000), noise(2, 1000, seed=1)
    sir, sar = sdr.si_sir_and_sar(estimates[None], references[None])
    basis = references.T.numpy()
    for n, estimate in enumerate(estimates.numpy()):
        explained = basis @ np.linalg.lstsq(basis, estimate, rcond=None)[0]
        target = basis[:, n] * (basis[:, n] @ estimate) / (basis[:, n] @ basis[:, n])
        ratio = [(target @ target) / (x @ x) for x in (explained - target, estimate - explained)]
        assert [sir[0, n], sar[0, n]] == pytest.approx([10 * log10(x) for x in ratio], abs=1e-8)


def test_a_silent_or_repeated_reference_changes_no_other_score():
    references, estimates = noise(1, 2, 1000), noise(1, 2, 1000, seed=1)
    usual = sdr.si_sir_and_sar(estimates, references)
    for extra in (torch.zeros(1, 1, 1000, dtype=torch.float64), references[:, :1]):
        more = sdr.si_sir_and_sar(torch.cat([estimates, extra], 1), torch.cat([references, extra], 1))
        for one, other in zip(more, usual, strict=True):
            torch.testing.assert_close(one[:, :2], other, atol=1e-6, rtol=0)


@pytest.mark.parametrize("gain", [0.5, 1.0, 3.0])
def test_sd_sdr_is_its_formula_and_at_most_si_sdr(gain):
    reference = noise(5, 1000)
    estimate = gain * reference + 0.1 * noise(5, 1000, seed=1)
    found = sdr.sd_sdr(estimate, reference)
    scale = (estimate * reference).sum(-1) / reference.square().sum(-1)
    wanted = (scale.square() * reference.square().sum(-1) / (reference - estimate).square().sum(-1)).log10() * 10
    torch.testing.assert_close(found, wanted)
    assert (found <= sdr.si_sdr(estimate, reference) + 1e-9).all()


def test_ratios_agree_with_torchmetrics():
    references, estimates = noise(2, 3, 1, 4000), noise(2, 3, 1, 4000, seed=1)
    estimates = references + 0.3 * estimates
    found = all_scores(estimates, references, ["snri"]).values
    for name, function in (
        ("si_sdr", peer.scale_invariant_signal_distortion_ratio),
        ("snr", peer.signal_noise_ratio),
    ):
        wanted = function(estimates[:, :, 0], references[:, :, 0])
        torch.testing.assert_close(found[name], wanted, atol=1e-3, rtol=0)
        before = function(references.sum(1).expand(-1, 3, -1), references[:, :, 0])
        improvement = {"si_sdr": "si_sdri", "snr": "snri"}[name]
        torch.testing.assert_close(found[improvement], wanted - before, atol=1e-3, rtol=0)


def test_track_sdr_is_defined_for_silence():
    first, second = tones(400, 700)
    found = sdr.track_sdr(torch.stack([first + 0.1 * second, 0 * first]), torch.stack([first, 0 * first]))
    assert found.tolist() == pytest.approx([10 * log10((1 + 1e-7) / (0.01 + 1e-7)), 0.0], abs=1e-9)


# ----------------------------------------------------------------------------------------------------------- spectral


def test_log_spectral_distance_of_a_gain_is_the_gain_in_decibels():
    references = noise(1, 2, 2, 6000)
    found = spectral.log_spectral_distance(references * 10 ** (6 / 20), references)
    torch.testing.assert_close(found, torch.full((1, 2), 6.0, dtype=torch.float64), atol=1e-9, rtol=0)


def test_log_spectral_distance_is_its_formula():
    reference, estimate = noise(5000), noise(5000, seed=1)
    padded = [np.pad(x.numpy(), 1024, mode="reflect") for x in (reference, estimate)]
    window = np.hanning(2049)[:-1]
    levels = []
    for x in padded:
        frames = np.stack([x[n : n + 2048] * window for n in range(0, len(x) - 2047, 512)])
        levels.append(10 * np.log10(np.abs(np.fft.rfft(frames)) ** 2))
    wanted = np.sqrt(((levels[0] - levels[1]) ** 2).mean(1)).mean()
    found = spectral.log_spectral_distance(estimate.view(1, 1, 1, -1), reference.view(1, 1, 1, -1))
    assert found.item() == pytest.approx(wanted, rel=1e-9)


def test_bleedless_and_fullness_are_their_formula():
    librosa = pytest.importorskip("librosa")
    references = noise(1, 1, 2, 30000)
    estimates = 0.8 * references + 0.3 * noise(1, 1, 2, 30000, seed=1)
    bands = librosa.filters.mel(sr=44100, n_fft=4096, n_mels=512)
    levels = []
    for signals in (estimates, references):
        padded = np.pad(signals[0, 0].numpy(), [(0, 0), (2048, 2048)])
        frames = np.lib.stride_tricks.sliding_window_view(padded, 4096, axis=1)[:, ::1024] * np.hanning(4097)[:-1]
        level = 20 * np.log10(np.maximum(np.abs(np.fft.rfft(frames)) @ bands.T, 1e-10))
        levels.append(np.maximum(level, level.max() - 80))
    difference = levels[0] - levels[1]
    wanted = [100 / (1 + difference[difference > 0].mean()), 100 / (1 - difference[difference < 0].mean())]
    found = spectral.bleedless_and_fullness(estimates, references, 44100)
    assert [x.item() for x in found] == pytest.approx(wanted, rel=1e-4)  # librosa's bands are float32


def test_a_perfect_estimate_is_bleedless_and_full_and_a_loud_one_only_full():
    references = noise(1, 1, 1, 10000)
    assert [x.item() for x in spectral.bleedless_and_fullness(references, references, 44100)] == [100, 100]
    bleedless, fullness = spectral.bleedless_and_fullness(references * 10 ** (6 / 20), references, 44100)
    assert bleedless.item() == pytest.approx(100 / 7, rel=1e-6) and fullness.item() == 100


# ----------------------------------------------------------------------------------------------------------- registry


def test_metrics_are_chosen_by_their_names():
    assert list(load_metrics([])) == list(METRICS) == ["si_sdr", "si_sdri", "snr"]
    assert list(load_metrics(["si_sar", "snr", "bss_eval_v4"], families=True)) == [
        "si_sdr", "si_sdri", "snr", "si_sar", "sdr", "isr", "sir", "sar",
    ]  # fmt: skip
    assert load_metrics(["bss_eval_v4"], families=True)["sdr"].aggregate == "median over frames"


@pytest.mark.parametrize(
    ("name", "families", "message"),
    [
        ("si_sdrr", True, "metrics=[si_sdrr] is unknown; did you mean si_sdr"),
        ("sar", True, "did you mean bss_eval_v4?"),
        ("bss_eval", True, "did you mean bss_eval_v"),
        ("pesq", False, "metrics=[pesq] takes too long for validation; give it to separate-eval"),
        ("nothing", False, "there are si_sdr, si_sdri, snr, snri,"),
    ],
)
def test_an_unknown_metric_is_refused_with_those_there_are(name, families, message):
    with pytest.raises(UsageError) as refused:
        load_metrics([name], families=families)
    assert message in str(refused.value)


def test_every_metric_gives_a_score_for_each_example_and_source():
    references = noise(2, 2, 2, 12000)
    estimates = references + 0.1 * noise(2, 2, 2, 12000, seed=1)
    names = [*CHEAP, "bss_eval_v4", "bss_eval_v3", "bleed"]
    found = all_scores(estimates, references, names)
    assert set(found.values) == {*METRICS, *CHEAP, *(m.name for f in names[-3:] for m in FAMILIES[f])}
    for name, values in found.values.items():
        assert values.shape == (2, 2) and values.isfinite().all(), name
    for number in range(2):
        single = all_scores(estimates[number : number + 1], references[number : number + 1], names)
        for name, values in single.values.items():
            torch.testing.assert_close(values[0], found.values[name][number], atol=1e-3, rtol=0, msg=name)


def test_the_score_of_frames_is_their_median():
    references = noise(1, 2, 1, 4 * RATE)
    estimates = references + noise(1, 2, 1, 4 * RATE, seed=1) * torch.linspace(0.1, 1, 4 * RATE, dtype=torch.float64)
    found = all_scores(estimates, references, ["bss_eval_v4"])
    assert found.frames["sdr"].shape == (1, 2, 4)
    assert found.values["sdr"].numpy() == pytest.approx(np.median(found.frames["sdr"].numpy(), -1))
    assert "si_sdr" not in found.frames


# --------------------------------------------------------------------------------------------------- silence, pairing


def test_a_silent_reference_has_no_ratio_and_states_what_leaked_into_it():
    references = noise(1, 3, 1, 2 * RATE)
    references[:, 1] = 0
    estimates = references.clone()
    estimates[:, 1] = 0.01 * references.sum(1)
    found = all_scores(estimates, references, ["bss_eval_v4", "bss_eval_v3", "si_sir", "log_spectral_distance"])
    for name, values in found.values.items():
        assert values.isnan().tolist() == [[False, True, False]], name
    assert found.leaked[0, 1] == pytest.approx(-40, abs=1e-9)
    assert found.leaked[0, [0, 2]].isnan().all()


def test_a_source_that_is_the_whole_mixture_has_no_score():
    references = noise(1, 2, 1, 1000)
    references[:, 1] = 0
    found = all_scores(references, references, [])
    assert found.values["si_sdri"].isnan().all()


@metric(label="first sample", higher_is_better=False)
def first_sample(estimates, references, mixture):
    """The distance of the first samples, which orders estimates in another way than the ratios."""
    return (estimates - references)[..., 0].abs().sum(-1)


def test_every_metric_pairs_interchangeable_estimates_for_its_own_best_mean():
    references = noise(1, 2, 1, 1000)
    estimates = references.clone()
    estimates[..., 0] = references.flip(1)[..., 0]
    found = score_recording(
        estimates, references, references.sum(1), RATE, {**METRICS, "first_sample": first_sample}, True
    )
    assert found.values["first_sample"].tolist() == [[0, 0]]
    assert (found.values["si_sdr"] > 20).all()


@pytest.mark.parametrize(("estimates", "sources"), [(3, 3), (4, 3), (6, 6)])
def test_the_pairing_is_the_best_of_all(estimates, sources):
    references = noise(1, sources, 1, 300)
    mixed = torch.einsum("mn,bnct->bmct", noise(estimates, sources, seed=3), references) + noise(
        1, estimates, 1, 300, seed=4
    )
    found = all_scores(mixed, references, [], interchangeable=True).values["si_sdr"]
    pairs = [[sdr.si_sdr(mixed[0, m, 0], references[0, s, 0]).item() for s in range(sources)] for m in range(estimates)]
    best = max(sum(pairs[m][s] for s, m in enumerate(order)) for order in permutations(range(estimates), sources))
    assert found.sum().item() == pytest.approx(best, abs=1e-6)


def test_families_are_paired_by_their_first_metric_in_every_frame():
    references = noise(1, 2, 1, 3 * RATE)
    estimates = references + 0.3 * references.roll(1, 1) + 0.1 * noise(1, 2, 1, 3 * RATE, seed=1)
    given = all_scores(estimates, references, ["bss_eval_v4", "bss_eval_v3"])
    free = all_scores(estimates.flip(1), references, ["bss_eval_v4", "bss_eval_v3"], interchangeable=True)
    for name, values in given.values.items():
        torch.testing.assert_close(free.values[name], values, msg=name)
    torch.testing.assert_close(free.frames["isr"], given.frames["isr"])
