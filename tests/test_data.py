"""Layouts, excerpts, pools, the toy band, and batches as a function of (seed, step)."""

import logging
import multiprocessing
import shutil

import numpy as np
import pytest
import torch

from separate.compose import data_config
from separate.data import open_split
from separate.data.loader import FixedBatches, TrainingSteps, load
from separate.errors import DataError, UsageError
from tests.conftest import target, tone, write

COMMON = {"sample_rate": 8000, "channels": 1, "excerpt": 0.5}


def stems_data(root, **changes):
    values = {
        "_target_": target("stems"),
        "root": str(root),
        "sources": ["low", "high"],
        "splits": {"train": "train", "valid": "valid", "test": "test"},
        **COMMON,
    }
    return data_config({**values, **changes})


def speech_data(layout, root, **changes):
    splits = {"train": "tr", "valid": "cv", "test": "tt"}
    values = {
        "_target_": target(layout),
        "root": str(root),
        "sources": ["s1", "s2"],
        "interchangeable": True,
        "splits": splits,
    }
    return data_config({**values, **COMMON, **changes})


def toy_data(**changes):
    tracks = {"train": 4, "valid": 2, "test": 2}
    return data_config(
        {"_target_": target("toy"), "sources": ["voice", "chords", "drums"], "tracks": tracks, **COMMON, **changes}
    )


def every_layout(stems, wsj0mix, pools):
    return [stems_data(stems), speech_data("wsj0mix", wsj0mix), speech_data("pools", pools), toy_data()]


def test_every_layout_keeps_the_contract_of_examples(stems, wsj0mix, pools):
    for config in every_layout(stems, wsj0mix, pools):
        for split in ("train", "valid", "test"):
            examples = open_split(config, split)
            assert len(examples) > 0
            for example in (
                examples.draw(0, np.random.default_rng(0)),
                examples.fixed(len(examples) - 1),
                examples.recording(examples.recordings - 1),
            ):
                assert example.samples.dtype == np.float32
                assert len(example.samples) == 1 + len(config.sources) and example.samples.shape[1] == 1
                np.testing.assert_allclose(sum(example.samples[1:]), example.samples[0], atol=1e-6)
                assert np.abs(example.samples[0]).max() > 0
            assert examples.draw(0, np.random.default_rng(0)).samples[0].shape == (1, 4000)
            assert np.array_equal(examples.fixed(0).samples[0], examples.fixed(0).samples[0])


def test_splits_differ(stems, wsj0mix, pools):
    for config in (speech_data("pools", pools), toy_data()):
        mixtures = [open_split(config, split).fixed(0).samples[0] for split in ("train", "valid", "test")]
        assert not np.array_equal(mixtures[0], mixtures[1])
        assert not np.array_equal(mixtures[1], mixtures[2])


def test_a_batch_is_a_function_of_seed_and_step_whatever_the_workers(stems, wsj0mix, pools):
    for config in every_layout(stems, wsj0mix, pools):
        examples = open_split(config, "train")
        alone = list(load(TrainingSteps(examples, 3, seed=5), range(0, 6), workers=0, pin=False))
        helped = list(load(TrainingSteps(examples, 3, seed=5), range(0, 6), workers=2, pin=False))
        later = list(load(TrainingSteps(examples, 3, seed=5), range(4, 6), workers=1, pin=False))
        for one, other in [*zip(alone, helped, strict=True), *zip(alone[4:], later, strict=True)]:
            assert torch.equal(one.sources, other.sources)
            assert one.tracks == other.tracks
        reseeded = TrainingSteps(examples, 3, seed=6)[0]
        assert not torch.equal(alone[0].sources, reseeded.sources)


def test_loading_leaves_the_global_random_state_alone():
    torch.manual_seed(0)
    before = torch.get_rng_state()
    examples = open_split(toy_data(), "train")
    next(load(TrainingSteps(examples, 2, seed=0), range(2), workers=1, pin=False))
    assert torch.equal(before, torch.get_rng_state())


def test_a_pass_draws_every_track_once(stems):
    examples = open_split(stems_data(stems, excerpt=2.0), "train")  # tracks of 2 s: one excerpt each
    steps = TrainingSteps(examples, len(examples), seed=0)
    assert sorted(steps[0].tracks) == sorted(track.name for track in examples.tracks)
    assert steps[0].tracks != steps[1].tracks


def test_validation_covers_every_second_of_every_track(stems):
    examples = open_split(stems_data(stems, excerpt=0.75), "valid")
    assert len(examples) == 3  # 2 s: 0 to 0.75, 0.75 to 1.5 and, moved to fit, 1.25 to 2
    whole = examples.recording(0).samples[0]
    for index, start in enumerate((0, 6000, 10000)):
        assert np.array_equal(examples.fixed(index).samples[0], whole[:, start : start + 6000])
    batches = FixedBatches(examples, 2)
    assert [len(batches[i].tracks) for i in range(len(batches))] == [2, 1]


def test_without_valid_the_last_tracks_of_train_are_held_out_and_this_is_logged(stems, caplog):
    with caplog.at_level(logging.INFO):
        valid = open_split(stems_data(stems), "valid")
    train = open_split(stems_data(stems), "train")
    assert [track.name for track in valid.tracks] == ["song 09"]
    assert [track.name for track in train.tracks] == [f"song {i:02d}" for i in range(9)]
    assert "held out of training for validation: song 09" in caplog.text
    (stems / "valid").mkdir()
    shutil.move(stems / "train" / "song 00", stems / "valid" / "song 00")
    assert [track.name for track in open_split(stems_data(stems), "valid").tracks] == ["song 00"]
    assert len(open_split(stems_data(stems), "train").tracks) == 9


def test_rates_and_channels_are_converted(stems):
    examples = open_split(stems_data(stems, sample_rate=16000, channels=2), "test")
    example = examples.recording(0)
    assert np.shape(example.samples[1:]) == (2, 2, 32000)
    np.testing.assert_allclose(
        example.samples[1][:, 1000:-1000], tone(200, rate=16000, channels=2).T[:, 1000:-1000], atol=1e-3
    )


def test_wsj0mix_reads_its_own_mixture(wsj0mix):
    write(wsj0mix / "tt" / "mix" / "0.wav", tone(3000), subtype="FLOAT")
    np.testing.assert_allclose(
        open_split(speech_data("wsj0mix", wsj0mix), "test").recording(0).samples[0], tone(3000).T, atol=1e-6
    )


def test_fixed_mixtures_of_pools_do_not_depend_on_the_seed(pools):
    one, other = (open_split(speech_data("pools", pools), "test", seed).fixed(3) for seed in (0, 1))
    assert np.array_equal(one.samples[0], other.samples[0])


def test_pools_mix_different_speakers_within_the_level_range(pools):
    examples = open_split(speech_data("pools", pools, snr=3.0, excerpt=4.0, pause=[0.0, 0.0]), "train")
    for index in range(20):
        example = examples.draw(0, np.random.default_rng(index))
        names = example.track.split("+")
        assert len(set(names)) == 2
        active = [np.sqrt(np.mean(source[np.abs(source) > 0] ** 2)) for source in example.samples[1:]]
        assert abs(20 * np.log10(active[1] / active[0])) < 3.2


def test_pools_need_as_many_speakers_as_sources(pools):
    with pytest.raises(DataError, match="3 speakers"):
        open_split(speech_data("pools", pools, sources=["a", "b", "c", "d"]), "train")


def test_a_silent_clip_stays_silent(pools):
    for path in (pools / "tr").rglob("*.wav"):
        write(path, np.zeros(3000))
    example = open_split(speech_data("pools", pools), "train").draw(0, np.random.default_rng(0))
    assert np.abs(example.samples[0]).max() == 0


def test_endings_in_capitals_are_found_and_wav_is_taken_before_flac(stems):
    folder = stems / "test" / "song 00"
    (folder / "low.wav").rename(folder / "low.WAV")
    write(folder / "high.flac", tone(3000, channels=2))
    example = open_split(stems_data(stems), "test").recording(0)
    np.testing.assert_allclose(example.samples[2], tone(1500, channels=2).mean(1, keepdims=True).T, atol=1e-4)


# ---------------------------------------------------------------------------------------------------------- bad input


def test_all_bad_files_are_named_at_once(stems):
    (stems / "test" / "song 00" / "low.wav").write_text("text")
    write(stems / "test" / "song 01" / "high.wav", tone(1500, seconds=1.5, channels=2))
    whole = (stems / "test" / "song 01" / "low.wav").read_bytes()
    shutil.copytree(stems / "test" / "song 01", stems / "test" / "song 02")
    (stems / "test" / "song 02" / "low.wav").write_bytes(whole[:5000])
    shutil.copytree(stems / "test" / "song 01", stems / "test" / "song 03")
    (stems / "test" / "song 03" / "low.wav").unlink()
    with pytest.raises(DataError) as refused:
        open_split(stems_data(stems), "test")
    text = str(refused.value)
    for words in (
        "song 00/low.wav: not readable as audio",
        "song 01: lengths in samples differ: song 01/low.wav 16000 at 8000 Hz, song 01/high.wav 12000",
        "song 02/low.wav: truncated",
        "song 03/low.wav: is missing",
        "4 problems",
        "repair or remove",
    ):
        assert words in text, text


def test_a_stem_shorter_than_the_mixture_file_is_named(stems):
    write(stems / "test" / "song 00" / "mixture.wav", tone(200, seconds=2.5, channels=2))
    with pytest.raises(DataError, match="song 00: lengths in samples differ: .*mixture.wav 20000"):
        open_split(stems_data(stems), "test")


def test_all_files_with_nan_are_named_when_the_first_is_read(wsj0mix):
    for index in range(4):
        write(wsj0mix / "tr" / "s1" / f"{index}.wav", tone(300))  # 16 bit, beside float files that can hold NaN
    for index in (1, 3):
        audio = tone(300)
        audio[5000 + index] = np.nan
        write(wsj0mix / "tr" / "s2" / f"{index}.wav", audio, subtype="FLOAT")
    examples = open_split(speech_data("wsj0mix", wsj0mix, excerpt=2.0), "train")
    with pytest.raises(DataError) as refused:
        list(load(TrainingSteps(examples, 4, seed=0), range(2), workers=1, pin=False))
    assert not multiprocessing.active_children()  # although `refused` holds the frames
    text = str(refused.value)
    assert "s2/1.wav: NaN or infinite sample at 5001" in text
    assert "s2/3.wav: NaN or infinite sample at 5003" in text
    assert "Traceback" not in text


def test_missing_root_split_and_tracks_are_named(tmp_path, stems):
    with pytest.raises(DataError, match="data.root=.*nowhere is not a folder"):
        open_split(stems_data(tmp_path / "nowhere"), "train")
    with pytest.raises(DataError, match="the test split is missing"):
        shutil.rmtree(stems / "test")
        open_split(stems_data(stems), "test")
    (stems / "test").mkdir()
    with pytest.raises(DataError, match=r"no tracks found; looked for .*TRACK/\{low,high\}.wav"):
        open_split(stems_data(stems), "test")


def test_an_excerpt_longer_than_every_track_is_refused(stems):
    with pytest.raises(DataError, match=r"data.excerpt=3.0 s is longer than every track.*data.excerpt=2$"):
        open_split(stems_data(stems, excerpt=3.0), "train")


def test_channels_that_cannot_be_converted_are_named(stems):
    write(stems / "test" / "song 00" / "high.wav", tone(200, channels=6))
    with pytest.raises(DataError, match="song 00/high.wav: 6 channels"):
        open_split(stems_data(stems, channels=2), "test")
    assert open_split(stems_data(stems, channels=1), "test").recording(0).samples[0].shape == (1, 16000)


def test_a_single_track_cannot_be_both_trained_on_and_held_out(stems):
    for index in range(1, 10):
        shutil.rmtree(stems / "train" / f"song {index:02d}")
    with pytest.raises(DataError, match="train has only one track, and .* no folder valid; add tracks"):
        open_split(stems_data(stems), "train")


@pytest.mark.parametrize("pause", [[0.1], [0.2, 0.1], [-0.2, -0.1]])
def test_invalid_ranges_of_pauses_are_refused(pools, pause):
    words = r"data.pause.* must be (\[min, max\]|at least 0 and at most 3600) seconds"
    with pytest.raises(UsageError, match=words):
        open_split(speech_data("pools", pools, pause=pause), "train")


def test_the_toy_data_refuses_unknown_sources_and_long_excerpts():
    with pytest.raises(UsageError, match="no source bass; data.sources can name voice, chords, drums"):
        open_split(toy_data(sources=["voice", "bass"]), "train")
    with pytest.raises(UsageError, match=r"longer than the songs.*at most 8"):
        open_split(toy_data(excerpt=9.0), "train")


def test_the_toy_sources_overlap_in_time_and_frequency():
    """A third of the energy lies where no source has 99 % of the power, so that no choice of bins separates them."""
    song = torch.from_numpy(open_split(toy_data(), "test").recording(0).samples[1:, 0])
    power = torch.stft(song, 256, 64, window=torch.hann_window(256), return_complex=True).abs().square()
    contested = power.amax(0) < 0.99 * power.sum(0)
    assert power.sum(0)[contested].sum() / power.sum() > 1 / 3
