"""The separator: chunks agree with the whole; rates, channels and order are kept; both kinds of network work."""

import pytest
import torch
from torch import Tensor, nn

from separate.data.batch import Batch
from separate.errors import UsageError
from separate.evaluation.scores import score
from separate.evaluation.sdr import si_sdr
from separate.models.embedding import Clusters
from separate.overlap import blocks
from separate.separator import Levels, Separator, Signals, consistent
from separate.stft import STFT

torch.manual_seed(0)


class Split(nn.Module):
    """Masks that give the lower half of the spectrum to the first source and the upper half to the second."""

    provides = ("masks",)

    def __init__(self, swap: bool = False) -> None:
        super().__init__()
        self.swap, self.calls = swap, 0

    def forward(self, spectrogram: Tensor) -> dict[str, Tensor]:
        low = torch.zeros(spectrogram.shape)
        low[:, :, : low.shape[2] // 2] = 1
        self.calls += 1
        masks = torch.stack([low, 1 - low], dim=1)
        return {"masks": masks.flip(1) if self.swap and self.calls % 2 == 0 else masks}


class Gains(nn.Module):
    """A waveform network: sources are the mixture times a gain."""

    provides = ("waveforms",)

    def forward(self, mixture: Tensor) -> dict[str, Tensor]:
        return {"waveforms": torch.stack([0.25 * mixture, 0.75 * mixture], dim=1)}


def separator(network: nn.Module, channels: int = 1, interchangeable: bool = False) -> Separator:
    return Separator(network, STFT(64, 16), Signals(["low", "high"], 8000, channels, interchangeable)).eval()


def noise(seconds: float = 3.0, channels: int = 1, rate: int = 8000) -> Tensor:
    """Noise with a low and a high tone in it, (C, T)."""
    time = torch.arange(round(seconds * rate)) / rate
    tones = 0.3 * torch.sin(2 * torch.pi * 500 * time) + 0.2 * torch.sin(2 * torch.pi * 3000 * time)
    return 0.01 * torch.randn(channels, len(time)) + tones


@pytest.mark.parametrize(("chunk", "overlap"), [(1.0, 0.25), (0.5, 0.0), (0.7, 0.35), (2.9, 1.0), (10.0, 2.0)])
@pytest.mark.parametrize("length", [1, 2, 100, 5600, 5601, 8000, 24000])
def test_blocks_cover_the_recording_exactly(chunk, overlap, length):
    x = torch.randn(1, length)
    spans = []

    def separate(start: int, stop: int) -> Tensor:
        spans.append(stop - start)
        return torch.stack([x[:, start:stop], 2 * x[:, start:stop]])

    joined = torch.cat(list(blocks(separate, length, 8000, chunk, overlap)), dim=-1)
    torch.testing.assert_close(joined, torch.stack([x, 2 * x]))
    assert max(spans) <= round(chunk * 8000)


def test_chunks_agree_with_the_whole_where_context_is_enough():
    x = noise()
    whole = separator(Split())(x, 8000, chunk=10)
    chunked = separator(Split())(x, 8000, chunk=0.5, overlap=0.2)
    for name in whole:
        torch.testing.assert_close(chunked[name], whole[name], atol=2e-3, rtol=0)
        assert (chunked[name] - whole[name]).abs().mean() < 1e-5


def test_chunks_of_interchangeable_sources_keep_their_order_across_seams():
    x = noise()
    plain = separator(Split())(x, 8000, chunk=0.5, overlap=0.2)
    swapping = separator(Split(swap=True), interchangeable=True)(x, 8000, chunk=0.5, overlap=0.2)
    for name in plain:
        torch.testing.assert_close(swapping[name], plain[name])
    lost = separator(Split(swap=True))(x, 8000, chunk=0.5, overlap=0.2)
    assert (lost["low"] - plain["low"]).abs().max() > 0.1


@pytest.mark.parametrize("rate", [8000, 16000, 44100])
@pytest.mark.parametrize(("channels", "of_network"), [(1, 1), (2, 1), (1, 2), (2, 2), (5, 1)])
def test_estimates_have_the_shape_of_the_input_and_add_up_to_it(rate, channels, of_network):
    x = noise(1.3, channels, rate)
    estimates = separator(Split(), of_network)(x, rate)
    assert {name: e.shape for name, e in estimates.items()} == {"low": x.shape, "high": x.shape}
    inner = slice(1000, -1000)  # tones below 4 kHz survive the way to 8 kHz and back
    difference = (estimates["low"] + estimates["high"] - x)[:, inner]
    assert difference.square().mean() < (0.01**2) * 1.1


def test_one_dimension_in_one_dimension_out_and_numpy_is_fine():
    x = noise()[0]
    estimates = separator(Split())(x.numpy(), 8000)
    assert estimates["low"].shape == x.shape


def test_channels_of_a_recording_agree_on_the_order_of_the_sources():
    class PerChannel(Split):
        def forward(self, spectrogram: Tensor) -> dict[str, Tensor]:
            masks = super().forward(spectrogram)["masks"]
            masks[1] = masks[1].flip(0)
            return {"masks": masks}

    estimates = separator(PerChannel(), interchangeable=True)(noise(channels=2), 8000)
    high = torch.fft.rfft(estimates["high"]).abs()
    assert (high[:, 8000:].sum(1) > high[:, :5000].sum(1)).all()


def test_a_waveform_network_takes_the_same_path():
    x = noise()
    estimates = separator(Gains())(x, 8000, chunk=0.5, overlap=0.1)
    torch.testing.assert_close(estimates["low"], 0.25 * x)
    batch = Batch.of_mixture(x.unsqueeze(0), STFT(64, 16))
    separation = separator(Gains()).separate(batch)
    assert separation.masks is None
    assert "spectrogram" not in vars(batch)  # never computed


def test_invalid_recordings_are_refused():
    with pytest.raises(UsageError, match="5 channels and the separator 2; convert the input to 1 or 2"):
        separator(Split(), 2)(noise(channels=5), 8000)
    with pytest.raises(UsageError, match="cannot be separated"):
        separator(Split())(torch.zeros(0), 8000)
    with pytest.raises(UsageError, match="cannot be separated"):
        separator(Split())(torch.zeros(1, 1, 100), 8000)


def test_interchangeable_sources_need_an_overlap_to_be_matched_in():
    with pytest.raises(UsageError, match="overlap=0 leaves no samples to match"):
        separator(Split(), interchangeable=True)(noise(), 8000, chunk=0.5, overlap=0)


def test_one_sample_is_separated():
    assert separator(Split())(torch.ones(1), 8000)["low"].shape == (1,)


@pytest.mark.parametrize("how", ["equal", "power"])
def test_consistent_estimates_sum_to_the_mixture_and_change_least(how):
    torch.manual_seed(0)
    sources = torch.randn(2, 3, 1, 400) * torch.tensor([1.0, 0.1, 0.0])[:, None, None]
    mixture = sources.sum(1)
    estimates = sources + 0.01 * torch.randn_like(sources) * sources.abs().mean()
    found = consistent(estimates, mixture, how)
    torch.testing.assert_close(found.sum(1), mixture)
    torch.testing.assert_close(consistent(sources, mixture, how), sources)
    moved = (found - estimates).square().mean((0, 2, 3))
    torch.testing.assert_close(moved[0], moved[1]) if how == "equal" else None
    if how == "power":
        assert moved[0] > 100 * moved[1] > 100 * moved[2]


def test_consistency_is_an_option_of_the_separator():
    batch = Batch.of_mixture(torch.randn(1, 1, 1000), STFT(64, 16))
    separator = Separator(HighAndLow(), STFT(64, 16), Signals(["a", "b"], 8000), Levels("equal")).eval()
    torch.testing.assert_close(separator.separate(batch).estimates.sum(1), batch.mixture)
    with pytest.raises(ValueError, match="unknown consistency both; choose from none, equal, power"):
        Separator(HighAndLow(), STFT(64, 16), Signals(["a", "b"], 8000), Levels("both"))


class HighAndLow(torch.nn.Module):
    """Embeddings that tell the upper half of the bins from the lower one."""

    provides = ("embeddings",)

    def __init__(self) -> None:
        super().__init__()
        self.clusters = Clusters(2, 2, interchangeable=True)

    def forward(self, spectrogram):
        batch, _, bins, frames = spectrogram.shape
        high = (torch.arange(bins) > bins // 2).long()
        embeddings = torch.eye(2)[high][None, :, None].expand(batch, -1, frames, -1)
        return {"embeddings": embeddings + 0.01 * torch.randn(batch, bins, frames, 2)}


def test_clusters_of_embeddings_keep_their_order_from_chunk_to_chunk():
    rate, seconds = 8000, 12
    time = torch.arange(seconds * rate) / rate
    low = torch.sin(2 * torch.pi * 500 * time) * (1 + torch.sin(2 * torch.pi * 0.3 * time))
    high = torch.sin(2 * torch.pi * 3000 * time) * (1 + torch.cos(2 * torch.pi * 0.2 * time))
    separator = Separator(HighAndLow(), STFT(256, 64), Signals(["a", "b"], rate, interchangeable=True)).eval()
    for chunk in (2.0, 3.1):
        estimates = torch.stack(list(separator(low + high, rate, chunk=chunk, overlap=0.5).values()))
        if (estimates[0] * low).sum() < (estimates[1] * low).sum():
            estimates = estimates.flip(0)
        for estimate, source in zip(estimates, (low, high), strict=True):
            assert si_sdr(estimate, source) > 25


def test_more_estimates_than_sources_are_scored_by_those_that_fit():
    torch.manual_seed(0)
    sources = torch.randn(2, 2, 1, 500)
    estimates = torch.cat([torch.randn(2, 2, 1, 500), sources + 0.1 * torch.randn_like(sources)], dim=1)
    found = score(estimates, sources, sources.sum(1), interchangeable=True)
    assert found["si_sdr"].shape == (2, 2)
    assert found["si_sdr"].min() > 15
