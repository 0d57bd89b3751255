"""Properties for any tree of files, any number of workers, any cache and any step at which a run is resumed."""

import itertools
import tempfile
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from separate.config import CacheConfig
from separate.data import open_split
from separate.data.doctor.checks import examine
from separate.data.loader import TrainingSteps, load
from separate.errors import DataError
from separate.stft import STFT
from tests.conftest import write
from tests.test_data import speech_data, stems_data
from tests.test_mixing import augmented
from tests.test_shards import data as shards_data
from tests.test_shards import pack

SAME = {"train": "train", "valid": "train", "test": "train"}
STFTS = STFT(128, 32)
CPU = torch.device("cpu")
counter = itertools.count()


def noise(frames=1600):
    return 0.1 * np.random.default_rng(next(counter)).standard_normal((frames, 1))


def good(path):
    write(path, noise())


def truncated(path):
    write(path, noise())
    path.write_bytes(path.read_bytes()[:-500])


def junk(path):
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(b"this is no audio")


def longer(path):
    write(path, noise(1700))


def faster(path):
    write(path, noise(), rate=16000)


def missing(path):
    path.parent.mkdir(parents=True, exist_ok=True)


STATES = (good, good, good, good, truncated, junk, longer, faster, missing)


@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(st.lists(st.tuples(st.sampled_from(STATES), st.sampled_from(STATES)), min_size=1, max_size=5))
def test_any_tree_gives_its_list_or_a_report_that_names_every_bad_file(states):
    with tempfile.TemporaryDirectory() as folder:
        expected_bad = []
        for number, pair in enumerate(states):
            for stem, make in zip(("low", "high"), pair, strict=True):
                path = Path(folder) / "train" / f"song {number}" / f"{stem}.wav"
                make(path)
                if make in (truncated, junk, missing):
                    expected_bad.append(f"song {number}/{stem}.wav")
            if {longer, faster} & set(pair) and pair[0] != pair[1] and not {truncated, junk, missing} & set(pair):
                expected_bad.append(f"song {number}: lengths in samples differ")
        config = stems_data(folder, splits=SAME, excerpt=0.1)
        fatal = [finding for finding in examine(config, ["train"], CacheConfig()) if finding.fatal]
        report = [place for finding in fatal for place in finding.places]
        if expected_bad:
            with pytest.raises(DataError) as caught:
                open_split(config, "train")
            for bad in expected_bad:
                assert bad in str(caught.value)
                assert any(bad in place for place in report)
        else:
            tracks = open_split(config, "train").tracks
            assert [track.name for track in tracks] == [f"song {number}" for number in range(len(states))]
            assert not report


@pytest.fixture(scope="module")
def trees(tmp_path_factory):
    """A set of stems, one of pools, one of shards, and their batches without cache and workers."""
    root = tmp_path_factory.mktemp("trees")
    for number in range(4):
        for stem in ("low", "high"):
            write(root / "stems" / "train" / str(number) / f"{stem}.wav", noise(3000 + 400 * number))
            write(root / "pools" / "tr" / f"{stem}{number}" / "a.wav", noise(700))
        files = (root / "stems" / "train" / str(number)).iterdir()
        pack(root / "shards" / f"train-{number}.tar", {f"{number}.{path.name}": path.read_bytes() for path in files})
    splits = {"train": "tr", "valid": "tr", "test": "tr"}
    configs = {
        "stems": stems_data(root / "stems", splits=SAME, excerpt=0.25, coherent=0.6, min_activity=0.1),
        "shards": shards_data(root / "shards", channels=1, excerpt=0.25, coherent=0.6, min_activity=0.1, window=2),
        "pools": speech_data("pools", root / "pools", splits=splits, excerpt=0.25),
    }
    nothing = CacheConfig(folder=str(root / "plain"))
    return root, configs, {name: batches(config, nothing, range(6), 0) for name, config in configs.items()}


def batches(config, cache, steps, workers):
    augment = augmented(1, 2000, gain=[-6.0, 6.0], polarity=0.5)
    drawn = TrainingSteps(open_split(config, "train", 0, cache, STFTS), 3, 0, augment)
    return [one.to(CPU, STFTS) for one in load(drawn, steps, workers, pin=False)]


@settings(max_examples=20, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(
    layout=st.sampled_from(("stems", "shards", "pools")),
    cache=st.sampled_from(("none", "audio", "spectrogram")),
    workers=st.integers(0, 2),
    begin=st.integers(0, 4),
)
def test_batches_are_the_same_for_any_workers_cache_and_point_of_resuming(trees, layout, cache, workers, begin):
    root, configs, plain = trees
    kept = CacheConfig(cache, str(root / "cache"))
    found = batches(configs[layout], kept, range(begin, 6), workers)
    assert len(found) == 6 - begin
    for one, other in zip(plain[layout][begin:], found, strict=True):
        assert one.tracks == other.tracks
        tolerance = 0 if cache != "spectrogram" else 1e-5
        torch.testing.assert_close(other.sources, one.sources, atol=tolerance, rtol=0)
        torch.testing.assert_close(other.source_spectrograms, one.source_spectrograms, atol=1e-5, rtol=0)
        torch.testing.assert_close(other.spectrogram, one.spectrogram, atol=1e-5, rtol=0)
