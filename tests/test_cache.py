"""The cache: the same training with and without it, entries that are complete or absent, and eviction."""

import json
import os
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import soundfile
import torch

from separate.compose import data_config
from separate.config import CacheConfig
from separate.data import open_split
from separate.data.loader import TrainingSteps
from separate.data.storage.cache import Cache, entries, sweep
from separate.data.storage.quota import evict
from separate.errors import DataError, UsageError
from separate.stft import STFT
from tests.conftest import target, tone, write

STFTS = STFT(256, 64)
CPU = torch.device("cpu")


@pytest.fixture
def songs(tmp_path):
    """Four stereo songs of noise in two stems, as 16-bit WAV or FLAC, one shorter than an excerpt."""
    rng = np.random.default_rng(0)
    for index in range(4):
        for stem in ("low", "high"):
            audio = 0.1 * rng.standard_normal((1000 if index == 3 else 9000 + 100 * index, 2))
            write(tmp_path / "songs" / "train" / f"{index}" / f"{stem}.{'flac' if index == 1 else 'wav'}", audio)
    return tmp_path / "songs"


def stems(root, **changes):
    values = {
        "_target_": target("stems"),
        "root": str(root),
        "sources": ["low", "high"],
        "sample_rate": 8000,
        "channels": 2,
    }
    splits = {"train": "train", "valid": "train", "test": "train"}
    return data_config({**values, "excerpt": 0.5, "splits": splits, **changes})


def cached(kind, folder, **options):
    return CacheConfig(kind=kind, folder=str(folder), **options)


def kept(folder):
    return list(entries(folder / "arrays"))


def batches(config, cache=None, steps=6, stft=STFTS):
    drawn = TrainingSteps(open_split(config, "train", 0, cache, stft), 3, seed=0)
    return [drawn[step].to(CPU, stft) for step in range(steps)]


def signals(batch):
    """Mixture and sources, as a loss on spectrograms sees them."""
    sources = batch.source_spectrograms
    return batch.spectrogram, sources


@pytest.mark.parametrize("coherent", [1.0, 0.3])
def test_caches_give_the_same_batches_bit_for_bit(songs, tmp_path, coherent):
    config = stems(songs, coherent=coherent)
    plain = batches(config)
    for kind in ("audio", "spectrogram"):
        for _ in ("building", "built"):
            for one, other in zip(plain, batches(config, cached(kind, tmp_path / kind)), strict=True):
                assert one.tracks == other.tracks
                for expected, found in zip(signals(one), signals(other), strict=True):
                    assert found.stride() == expected.stride() and torch.equal(found, expected)
                torch.testing.assert_close(other.sources, one.sources, atol=1e-6, rtol=0)
                torch.testing.assert_close(other.mixture, one.mixture, atol=1e-6, rtol=0)


@pytest.mark.parametrize(("dtype", "tolerance"), [("float16", 1e-3), ("int16", 1e-7)])
def test_smaller_dtypes_differ_by_their_rounding(songs, tmp_path, dtype, tolerance):
    plain = batches(stems(songs))
    for kind in ("audio", "spectrogram"):
        if (kind, dtype) == ("spectrogram", "int16"):
            with pytest.raises(UsageError, match="use cache.dtype=float16"):
                batches(stems(songs), cached(kind, tmp_path, dtype=dtype))
            continue
        for one, other in zip(plain, batches(stems(songs), cached(kind, tmp_path, dtype=dtype)), strict=True):
            error = (other.source_spectrograms - one.source_spectrograms).abs().max()
            assert error <= tolerance * one.source_spectrograms.abs().max()
            assert other.source_spectrograms.dtype == torch.complex64


def test_resampled_and_mixed_down_files_agree_within_rounding(songs, tmp_path):
    config = stems(songs, sample_rate=6000, channels=1)
    for kind, dtype in (("audio", "float32"), ("audio", "int16"), ("spectrogram", "float32")):
        for one, other in zip(batches(config), batches(config, cached(kind, tmp_path, dtype=dtype)), strict=True):
            torch.testing.assert_close(
                other.source_spectrograms, one.source_spectrograms, atol=1e-5 if dtype == "float32" else 3e-3, rtol=0
            )


def test_pools_agree_within_rounding(pools, tmp_path):
    splits = {"train": "tr", "valid": "cv", "test": "tt"}
    values = {
        "_target_": target("pools"),
        "root": str(pools),
        "sources": ["s1", "s2"],
        "interchangeable": True,
        "splits": splits,
    }
    config = data_config({**values, "sample_rate": 8000, "channels": 1, "excerpt": 1.0})
    for kind in ("audio", "spectrogram"):
        for one, other in zip(batches(config), batches(config, cached(kind, tmp_path)), strict=True):
            assert one.tracks == other.tracks
            torch.testing.assert_close(other.source_spectrograms, one.source_spectrograms, atol=1e-5, rtol=0)
            torch.testing.assert_close(other.spectrogram, one.spectrogram, atol=1e-5, rtol=0)


def test_recorded_mixtures_are_cached_too(wsj0mix, tmp_path):
    for path in (wsj0mix / "tr" / "mix").iterdir():
        write(path, tone(3000), subtype="FLOAT")
    values = {"_target_": target("wsj0mix"), "root": str(wsj0mix), "sources": ["s1", "s2"], "interchangeable": True}
    config = data_config(
        {
            **values,
            "sample_rate": 8000,
            "channels": 1,
            "excerpt": 1.0,
            "splits": {"train": "tr", "valid": "cv", "test": "tt"},
        }
    )
    for coherent in (1.0, 0.5):
        config = replace(config, coherent=coherent)
        for kind in ("audio", "spectrogram"):
            for one, other in zip(batches(config), batches(config, cached(kind, tmp_path)), strict=True):
                for expected, found in zip(signals(one), signals(other), strict=True):
                    torch.testing.assert_close(found, expected, atol=1e-5, rtol=0)


def test_training_on_a_cache_reads_no_file(songs, tmp_path, monkeypatch):
    batches(stems(songs), cached("spectrogram", tmp_path))
    monkeypatch.setattr("separate.data.storage.reading.read_span", None)
    batches(stems(songs), cached("spectrogram", tmp_path))
    batches(stems(songs), cached("audio", tmp_path))


@pytest.mark.parametrize("content", [False, True])
def test_a_changed_file_misses_and_a_moved_one_hits_by_its_content(songs, tmp_path, content):
    cache = cached("audio", tmp_path / "cache", content=content)
    batches(stems(songs), cache)
    count = len(kept(tmp_path / "cache"))
    assert count == 8
    path = songs / "train" / "0" / "low.wav"
    write(path, 0.5 * tone(440, 9000 / 8000, channels=2))
    changed, plain = (batches(stems(songs), which) for which in (cache, None))
    assert all(torch.equal(one.sources, other.sources) for one, other in zip(changed, plain, strict=True))
    assert len(kept(tmp_path / "cache")) == count + 1
    songs.rename(tmp_path / "moved")
    batches(stems(tmp_path / "moved"), cache)
    assert len(kept(tmp_path / "cache")) == count + 1 + (0 if content else 8)


def test_other_parameters_make_other_entries(songs, tmp_path):
    for changes in ({}, {"sample_rate": 4000}, {"channels": 1}):
        batches(stems(songs, **changes), cached("audio", tmp_path))
    batches(stems(songs), cached("audio", tmp_path, dtype="float16"))
    assert len(kept(tmp_path)) == 4 * 8
    others = (STFT(256, 192, "hann"), STFT(255, 100))  # a hop above half the window, and an odd window
    for stft in (STFTS, STFT(512, 64), STFT(256, 32), STFT(256, 64, "hann"), *others):
        plain, found = (batches(stems(songs), c, 2, stft) for c in (None, cached("spectrogram", tmp_path)))
        for one, other in zip(plain, found, strict=True):
            assert torch.equal(one.source_spectrograms, other.source_spectrograms)


def test_a_peak_that_int16_cannot_hold_is_refused(tmp_path):
    for stem in ("low", "high"):
        for index in (0, 1):
            write(tmp_path / "s" / "train" / str(index) / f"{stem}.wav", 30 * tone(100, 1.0), subtype="FLOAT")
    examples = open_split(stems(tmp_path / "s"), "train", 0, cached("audio", tmp_path, dtype="int16"))
    with pytest.raises(DataError, match="has samples beyond twice full scale, which cache.dtype=int16 cannot hold"):
        examples.draw(0, np.random.default_rng(0))


def test_entries_record_their_files_and_parameters(songs, tmp_path):
    batches(stems(songs), cached("audio", tmp_path))
    found = {tuple(entry.facts["paths"]): entry for entry in kept(tmp_path)}
    entry = found[(str(songs / "train" / "1" / "high.flac"),)]
    assert (entry.facts["kind"], entry.facts["sample_rate"], entry.facts["channels"]) == ("audio", 8000, 2)
    assert entry.bytes == entry.path.stat().st_size
    np.testing.assert_array_equal(np.load(entry.path), soundfile.read(songs / "train" / "1" / "high.flac")[0].T)


def test_the_least_recently_used_entries_are_evicted(tmp_path):
    cache = Cache(tmp_path / "arrays")
    for number in range(5):
        cache.add(f"{number}" * 64, (1, 1000), np.dtype(np.float32), [np.zeros((1, 1000))], {})
        os.utime(cache.path(f"{number}" * 64), (number, number))
    size = cache.path("0" * 64).stat().st_size
    assert evict(tmp_path, 3.5 * size) == 2
    assert [cache.open(f"{number}" * 64) is None for number in range(5)] == [True, True, False, False, False]
    limited = Cache(tmp_path / "arrays", limit=3.5 * size)
    limited.add("9" * 64, (1, 1000), np.dtype(np.float32), [np.ones((1, 1000))], {})
    assert [entry.path.stem[0] for entry in entries(tmp_path / "arrays")] == ["3", "4", "9"]


def test_eviction_scans_the_cache_once_for_each_hundredth_of_the_limit_written(tmp_path):
    def add(number, frames):
        key = f"{number:064x}"
        cache.add(key, (1, frames), np.dtype(np.float32), [np.zeros((1, frames))], {})
        return cache.path(key)

    cache = Cache(tmp_path / "arrays", limit=1_000_000)
    first = add(0, 1000)
    other = first.with_name("f" * 64 + ".npy")  # of another process; too large for the limit
    with other.open("wb") as file:
        file.truncate(1_000_000)
    os.utime(other, (0, 0))
    add(1, 1000)
    assert other.exists()  # 4 kB since the first scan
    add(2, 2000)
    assert not other.exists()  # 12 kB
    assert first.exists()


def test_an_entry_may_be_evicted_by_another_process_as_soon_as_it_is_written(tmp_path, monkeypatch):
    def replace_and_evict(source, destination, replace=Path.replace):
        replace(source, destination)
        destination.unlink()

    monkeypatch.setattr(Path, "replace", replace_and_evict)
    cache = Cache(tmp_path / "arrays", limit=1_000_000)
    cache.add("0" * 64, (1, 1000), np.dtype(np.float32), [np.zeros((1, 1000))], {})
    assert cache.open("0" * 64) is None


def test_half_written_entries_are_not_read_and_are_swept_when_old(tmp_path):
    def stops():
        yield np.zeros((1, 500))
        raise KeyboardInterrupt

    cache = Cache(tmp_path)
    with pytest.raises(KeyboardInterrupt):
        cache.add("a" * 8, (1, 1000), np.dtype(np.float32), stops(), {})
    assert cache.open("a" * 8) is None and not list(tmp_path.glob("**/*.*"))
    young, old = tmp_path / "aa" / "x.1.part", tmp_path / "aa" / "y.2.part"
    for path in (young, old):
        path.write_bytes(b"half")
    os.utime(old, (time.time() - 1e6,) * 2)
    sweep(tmp_path)
    assert young.exists() and not old.exists()


BUILD = """
import json, sys
from separate.compose import data_config
from separate.config import CacheConfig
from separate.data import open_split
from separate.stft import STFT
import numpy as np
config, cache = data_config(json.loads(sys.argv[1])), CacheConfig("spectrogram", sys.argv[2])
examples = open_split(config, "train", 0, cache, STFT(256, 64))
print("begun", flush=True)
for index in range(len(examples)):
    examples.draw(index, np.random.default_rng(index))
"""


@pytest.mark.slow
def test_a_build_that_is_killed_repeatedly_ends_in_the_same_cache(songs, tmp_path):
    from dataclasses import asdict

    config = json.dumps(asdict(stems(songs)))

    def build(folder, seconds):
        command = [sys.executable, "-c", BUILD, config, str(folder)]
        with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
            process.stdout.readline()
            try:
                process.wait(seconds)
            except subprocess.TimeoutExpired:
                process.kill()

    def digests(folder):
        return {entry.path.stem: entry.facts["sha256"] for entry in kept(folder)}

    build(tmp_path / "whole", None)
    rng = np.random.default_rng(0)
    for _ in range(4):
        build(tmp_path / "killed", rng.uniform(0, 0.3))
        assert digests(tmp_path / "killed").items() <= digests(tmp_path / "whole").items()
    build(tmp_path / "killed", None)
    assert digests(tmp_path / "killed") == digests(tmp_path / "whole") != {}


@pytest.mark.parametrize("kind", ["audio", "spectrogram"])
def test_an_entry_that_another_process_evicts_at_once_is_computed_again(kind, songs, tmp_path, monkeypatch):
    config, cache = stems(songs), cached(kind, tmp_path / "cache")
    expected = open_split(config, "train", 0, cache, STFTS).fixed(0)
    monkeypatch.setattr(Cache, "open", lambda self, key: None)
    found = open_split(config, "train", 0, cache, STFTS).fixed(0)
    assert all(map(np.array_equal, found.sources, expected.sources))
