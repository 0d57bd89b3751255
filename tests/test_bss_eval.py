"""BSS Eval against museval, mir_eval and fast-bss-eval, and against known answers."""

import importlib.util
import warnings
from importlib.metadata import distribution
from math import log10

import numpy as np
import pytest
import torch
from scipy.signal import lfilter

from separate.evaluation.bss_eval import bss_eval_v3, bss_eval_v4

RATE = 8000
NAMES = ("sdr", "isr", "sir", "sar")


def museval():
    """museval's module of metrics; the package itself cannot be imported without ffmpeg."""
    path = distribution("museval").locate_file("museval/metrics.py")
    spec = importlib.util.spec_from_file_location("museval_metrics", str(path))
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def noise(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def coloured(sources: int, channels: int, samples: int, seed: int = 0) -> torch.Tensor:
    """Low-passed noise, of another bandwidth for each source, with pauses.  (S, C, T)"""
    x = noise(sources, channels, samples, seed=seed).numpy()
    audio = np.stack([lfilter([1], [1, -0.95 + 0.2 * s], one) for s, one in enumerate(x)])
    for s in range(sources):
        audio[s, :, (s + 1) * samples // 8 : (s + 2) * samples // 8] = 0
    return torch.from_numpy(audio)


def tonal(sources: int, channels: int, samples: int) -> torch.Tensor:
    """Chords with few partials, whose normal equations are nearly singular.  (S, C, T)"""
    time = torch.arange(samples, dtype=torch.float64) / RATE
    audio = torch.zeros(sources, channels, samples, dtype=torch.float64)
    for s in range(sources):
        for partial in range(1, 4):
            tone = torch.sin(2 * torch.pi * partial * (220 + 71.3 * s) * time + s)
            audio[s] += tone * torch.linspace(1, 0.7, channels, dtype=torch.float64)[:, None] / partial
    return audio + 1e-4 * noise(sources, channels, samples)


def mixed(references: torch.Tensor, leak: float = 0.3, rest: float = 0.1) -> torch.Tensor:
    """Estimates with interference and artifacts."""
    return references + leak * references.roll(1, 0) + rest * noise(*references.shape, seed=9)


@pytest.mark.parametrize("signals", [coloured, tonal])
@pytest.mark.parametrize(("channels", "samples", "window", "hop"), [(1, 9000, 1500, 1500), (2, 7001, 2000, 700)])
def test_every_frame_of_version_4_agrees_with_museval(signals, channels, samples, window, hop):
    references = signals(3, channels, samples)
    estimates = mixed(references)
    found = bss_eval_v4(estimates[None], references[None], window, hop)
    peer = museval().bss_eval(
        references.mT.numpy(), estimates.mT.numpy(), window=window, hop=hop, compute_permutation=False
    )
    for name, ours, theirs in zip(NAMES, found, peer, strict=False):
        np.testing.assert_allclose(ours[0].numpy(), theirs, atol=1e-3, rtol=0, err_msg=name)  # NaN only where NaN is
    assert found.sdr.isfinite().any()


def test_a_frame_with_a_silent_reference_or_estimate_has_no_scores_as_in_museval():
    references = coloured(2, 2, 8000)
    estimates = mixed(references)
    references[0, :, 2000:4000] = 0
    estimates[1, :, 5000:6000] = 0
    found = bss_eval_v4(estimates[None], references[None], 1000, 1000)
    peer = museval().bss_eval(references.mT.numpy(), estimates.mT.numpy(), window=1000, hop=1000)
    for ours, theirs in zip(found, peer, strict=False):
        np.testing.assert_allclose(ours[0].numpy(), theirs, atol=1e-3, rtol=0)
    assert found.sdr.isnan().all(1)[0].tolist() == [False, True, True, True, False, True, False, False]


@pytest.mark.parametrize("permute", [True, False])
@pytest.mark.parametrize("signals", [coloured, tonal])
def test_version_3_agrees_with_mir_eval(signals, permute):
    mir_eval = pytest.importorskip("mir_eval")
    references = signals(3, 1, 9000)[:, 0]
    estimates = mixed(references)[[2, 0, 1]] if permute else mixed(references)
    found = bss_eval_v3(estimates[None], references[None], permute=permute)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # mir_eval's words about its next version
        peer = mir_eval.separation.bss_eval_sources(references.numpy(), estimates.numpy(), compute_permutation=permute)
    for ours, theirs in zip(found, peer, strict=True):
        np.testing.assert_allclose(ours[0].numpy(), theirs, atol=1e-3, rtol=0)
    assert found.order.tolist() == [[1, 2, 0] if permute else [0, 1, 2]]


def test_version_3_agrees_with_fast_bss_eval():
    peer = pytest.importorskip("fast_bss_eval")
    references = coloured(3, 1, 9000)[:, 0]
    estimates = mixed(references)
    sdr, sir, sar = peer.bss_eval_sources(references, estimates, compute_permutation=False)
    found = bss_eval_v3(estimates[None], references[None], permute=False)
    for ours, theirs in zip(found, (sdr, sir, sar), strict=False):
        torch.testing.assert_close(ours[0], theirs, atol=1e-3, rtol=0)


def apart(count: int) -> torch.Tensor:
    """Noises one after the other, further apart than the filters reach.  (count, T)"""
    audio = torch.zeros(count, count * 2000, dtype=torch.float64)
    for n in range(count):
        audio[n, n * 2000 : n * 2000 + 1000] = noise(1000, seed=n)
        audio[n] /= audio[n].norm()
    return audio


def test_known_leaks_and_artifacts_give_their_ratios():
    first, second, artifact = apart(3)
    references = torch.stack([first, second])
    estimates = torch.stack([first + 0.1 * second + 0.01 * artifact, second])
    found = bss_eval_v3(estimates[None], references[None], permute=False)
    assert found.sir[0, 0] == pytest.approx(20, abs=1e-6)
    assert found.sar[0, 0] == pytest.approx(10 * log10(1.01 / 1e-4), abs=1e-6)
    assert found.sdr[0, 0] == pytest.approx(10 * log10(1 / 0.0101), abs=1e-6)
    images = bss_eval_v4(estimates[None, :, None], references[None, :, None], 6000, 6000)
    assert images.sir[0, 0, 0] == pytest.approx(20, abs=1e-6)
    assert images.sar[0, 0, 0] == pytest.approx(10 * log10(1.01 / 1e-4), abs=1e-6)
    assert images.isr[0, 0, 0] > 200


def test_a_filter_within_512_taps_is_free_in_version_3_and_spatial_distortion_in_version_4():
    references = torch.nn.functional.pad(noise(2, 5000), (0, 600))
    short, long = torch.zeros(512, dtype=torch.float64), torch.zeros(600, dtype=torch.float64)
    short[[0, 100, 511]] = torch.tensor([0.8, 0.3, -0.2], dtype=torch.float64)
    long[[0, 599]] = torch.tensor([0.8, 0.3], dtype=torch.float64)
    for response, free in ((short, True), (long, False)):
        filtered = torch.from_numpy(lfilter(response.numpy(), [1.0], references.numpy()))
        found = bss_eval_v3(filtered[None], references[None], permute=False)
        assert bool((found.sdr > 100).all()) == free
    filtered = torch.from_numpy(lfilter(short.numpy(), [1.0], references.numpy()))
    images = bss_eval_v4(filtered[None, :, None], references[None, :, None], 5600, 5600)
    spatial = (references.square().sum(-1) / (filtered - references).square().sum(-1)).log10() * 10
    torch.testing.assert_close(images.isr[0, :, 0], spatial, atol=1e-6, rtol=0)
    torch.testing.assert_close(images.sdr[0, :, 0], spatial, atol=1e-6, rtol=0)
    assert (images.sir > 100).all() and (images.sar > 100).all()


@pytest.mark.parametrize("gain", [0.5, -1.0])
def test_level_and_polarity_count_in_version_4_only(gain):
    references = noise(1, 2, 1, 5000)
    images = bss_eval_v4(gain * references, references, 5000, 5000)
    assert images.sdr[0, :, 0].tolist() == pytest.approx(2 * [-20 * log10(1 - gain)], abs=1e-9)
    assert (bss_eval_v3(gain * references[:, :, 0], references[:, :, 0]).sdr > 100).all()


def test_an_exchange_of_channels_is_spatial_distortion():
    references = noise(1, 2, 2, 6000)
    images = bss_eval_v4(references.flip(2), references, 6000, 6000)
    assert (images.isr < 0).all() and (images.sir > 100).all()


def test_equal_channels_score_as_one_channel():
    references = coloured(2, 1, 6000)
    estimates = mixed(references)
    one = bss_eval_v4(estimates[None], references[None], 2000, 2000)
    two = bss_eval_v4(*(x.repeat(1, 2, 1)[None] for x in (estimates, references)), 2000, 2000)
    for mono, stereo in zip(one, two, strict=True):
        torch.testing.assert_close(mono, stereo, atol=1e-3, rtol=0, equal_nan=True)


def test_a_signal_shorter_than_a_window_is_one_window():
    references = coloured(2, 1, 700)
    estimates = mixed(references)
    found = bss_eval_v4(estimates[None], references[None], 1000, 1000)
    peer = museval().bss_eval(references.mT.numpy(), estimates.mT.numpy(), window=1000, hop=1000)
    assert found.sdr.shape == (1, 2, 1)
    np.testing.assert_allclose(found.sar[0].numpy(), peer[3], atol=1e-3, rtol=0)


def test_examples_are_scored_one_by_one_and_float32_signals_in_float64():
    references = torch.stack([coloured(2, 2, 5000, seed=n) for n in range(2)])
    estimates = torch.stack([mixed(one) for one in references])
    both = bss_eval_v4(estimates.float(), references.float(), 2000, 1000)
    for n in range(2):
        single = bss_eval_v4(estimates[n : n + 1], references[n : n + 1], 2000, 1000)
        for batch, one in zip(both, single, strict=True):
            assert batch.dtype == torch.float64
            torch.testing.assert_close(batch[n], one[0], atol=1e-3, rtol=0, equal_nan=True)


def test_a_silent_source_has_no_scores_and_the_others_keep_theirs():
    references = coloured(2, 1, 6000)[:, 0]
    estimates = mixed(references)
    silence = torch.zeros(1, 6000, dtype=torch.float64)
    with_silence = bss_eval_v3(torch.cat([estimates, estimates[:1]])[None], torch.cat([references, silence])[None])
    without = bss_eval_v3(estimates[None], references[None])
    assert with_silence.sdr[0, 2].isnan()
    torch.testing.assert_close(with_silence.sdr[0, :2], without.sdr[0], atol=1e-6, rtol=0)


def test_meaningless_arguments_are_refused():
    with pytest.raises(ValueError, match="must agree"):
        bss_eval_v4(noise(1, 2, 1, 100), noise(1, 2, 1, 99), 50, 50)
    with pytest.raises(ValueError, match="hop=0 must be at least 1 sample"):
        bss_eval_v4(noise(1, 2, 1, 100), noise(1, 2, 1, 100), 50, 0)
