"""Layouts: miniatures of the corpora with their peculiarities, manifests, and errors for faulty folders."""

import json
import logging
import os
import shutil
import subprocess

import imageio_ffmpeg
import numpy as np
import pytest
import torch

from separate import checkpoint
from separate.audio import Info
from separate.cli import data as data_program
from separate.cli import evaluate as evaluate_program
from separate.cli import train as train_program
from separate.compose import data_config
from separate.config import CacheConfig
from separate.data import open_split
from separate.data.layouts.held_out import MUSDB18_VALID
from separate.data.storage.headers import Headers
from separate.data.storage.quota import cache_entries, evict
from separate.data.tracks import Files, Piece, Strings, Track, Tracks
from separate.errors import DataError, UsageError
from tests.conftest import target, tone, write

COMMON = {"sample_rate": 8000, "channels": 1, "excerpt": 0.5, "splits": {"train": "tr", "valid": "cv", "test": "tt"}}


def data(layout, root, sources=("s1", "s2"), **changes):
    return data_config({"_target_": target(layout), "root": str(root), "sources": list(sources), **COMMON, **changes})


def refused(config, split="train"):
    with pytest.raises((DataError, UsageError)) as caught:
        open_split(config, split)
    return str(caught.value)


@pytest.fixture
def musdb(tmp_path):
    """The 14 validation tracks and two others in train, as MUSDB18-HQ ships: no folder for valid."""
    for name in (*MUSDB18_VALID, "A - First", "Z - Last"):
        for stem in ("vocals", "rest", "mixture"):
            write(tmp_path / "train" / name / f"{stem}.wav", tone(300 if stem == "vocals" else 900, channels=2))
    return tmp_path


def test_musdb18_keeps_its_own_validation_tracks_out_of_training(musdb, caplog):
    config = data("stems", musdb, ["vocals", "rest"], splits={"train": "train", "valid": "valid", "test": "test"})
    with caplog.at_level(logging.INFO):
        valid = open_split(config, "valid")
    assert tuple(track.name for track in valid.tracks) == MUSDB18_VALID
    assert [track.name for track in open_split(config, "train").tracks] == ["A - First", "Z - Last"]
    assert "held out of training for validation: ANiMAL - Rockshow, Actions" in caplog.text


def test_a_missing_entry_of_splits_is_reported_with_the_names_of_the_others(musdb):
    message = refused(data("stems", musdb, splits={"train": "songs", "test": "others"}), "valid")
    assert "data.splits has no valid (it has train, test); add data.splits.valid=NAME" in message


def test_the_mixture_of_stems_is_their_sum_or_the_track_s_own_file(musdb):
    splits = {"train": "train", "valid": "valid", "test": "train"}
    whole, one = (
        open_split(data("stems", musdb, ["vocals"], splits=splits, mixture=mixture), "test").recording(0)
        for mixture in ("file", "sum")
    )
    vocals, mixture = tone(300, channels=2).T.mean(0), tone(900, channels=2).T.mean(0)
    np.testing.assert_allclose(one.samples[0][0], vocals, atol=1e-4)
    np.testing.assert_allclose(whole.samples[0][0], mixture, atol=1e-4)
    np.testing.assert_allclose(whole.samples[1][0], vocals, atol=1e-4)
    (musdb / "train" / "A - First" / "mixture.wav").unlink()
    config = data("stems", musdb, ["vocals"], splits=splits, mixture="file")
    assert "A - First/mixture.wav: is missing" in refused(config, "test")


@pytest.fixture
def slakh(tmp_path):
    """Two pianos and a bass; a drum stem that was never rendered; a guitar that ends early; no bass in the second."""
    stems = {
        "S00": ("Piano", 400, True, 2.0),
        "S01": ("Piano", 500, True, 2.0),
        "S02": ("Bass", 100, True, 2.0),
        "S03": ("Drums", 0, False, 0),
        "S04": ("Strings (continued)", 900, True, 1.0),
    }
    for number, left_out in (("Track00001", ()), ("Track00002", ("S02",))):
        folder = tmp_path / "tr" / number
        lines = ["UUID: x", "stems:"]
        for stem, (kind, frequency, rendered, seconds) in stems.items():
            if stem in left_out:
                continue
            lines += [f"  {stem}:", f"    inst_class: {kind}", f"    audio_rendered: {str(rendered).lower()}"]
            if rendered:
                write(folder / "stems" / f"{stem}.flac", tone(frequency, seconds=seconds))
        write(folder / "mix.flac", tone(700))
        (folder / "metadata.yaml").write_text("\n".join(lines) + "\n")
    return tmp_path


def test_slakh_adds_up_the_stems_of_a_class(slakh):
    examples = open_split(data("slakh", slakh, ["bass", "piano", "other"]), "train")
    first, second = examples.recording(0), examples.recording(1)
    np.testing.assert_allclose(first.samples[2], (tone(400) + tone(500)).T, atol=1e-4)
    assert np.abs(first.samples[1]).max() > 0 and np.abs(second.samples[1]).max() == 0  # no bass: silence
    np.testing.assert_allclose(first.samples[3][:, :8000], tone(900, seconds=1.0).T, atol=1e-4)
    assert np.abs(first.samples[3][:, 8000:]).max() == 0  # it ended early
    np.testing.assert_allclose(first.samples[0], sum(first.samples[1:]), atol=1e-6)
    named = open_split(data("slakh", slakh, ["strings_continued"], mixture="file"), "train").recording(0)
    np.testing.assert_allclose(named.samples[0], tone(700).T, atol=1e-4)


def test_slakh_names_every_fault(slakh):
    assert "no track has a stem of class pianno; did you mean piano?" in refused(data("slakh", slakh, ["pianno"]))
    (slakh / "tr" / "Track00001" / "stems" / "S02.flac").unlink()
    (slakh / "tr" / "Track00002" / "metadata.yaml").write_text("stems: {S00: Piano}")
    message = refused(data("slakh", slakh, ["bass", "piano"]))
    assert "S02.flac: is missing" in message
    assert "Track00002/metadata.yaml: does not name the inst_class of each of its stems" in message
    (slakh / "tr" / "Track00002" / "metadata.yaml").unlink()
    assert "Track00002/metadata.yaml: is missing" in refused(data("slakh", slakh, ["bass", "piano"]))


@pytest.fixture
def wham(tmp_path):
    for split in ("tr", "cv", "tt"):
        for index in range(2):
            signals = {"s1": tone(200 + index), "s2": tone(700), "noise": 0.3 * tone(3000)}
            clean = signals["s1"] + signals["s2"]
            for name, audio in {**signals, "mix_clean": clean, "mix_both": clean + signals["noise"]}.items():
                write(tmp_path / split / name / f"{index}.wav", audio, subtype="FLOAT")
    return tmp_path


def test_the_rest_of_a_mixture_is_kept_when_remixing(wham):
    noisy = data("wham", wham, task="sep_noisy", coherent=0.5)
    assert "the mixtures of this data hold more than their sources" in refused(noisy)
    open_split(data("wham", wham, ["s1", "s2", "noise"], task="sep_noisy", coherent=0.5), "train")
    open_split(data("wham", wham, coherent=0.5), "train")


def test_wham_has_noise_in_the_mixture_or_not_and_as_a_source_or_not(wham):
    def one(task, *sources):
        return open_split(data("wham", wham, sources, task=task), "test").recording(0)

    clean, noisy = one("sep_clean", "s1", "s2"), one("sep_noisy", "s1", "s2")
    np.testing.assert_allclose(clean.samples[0], sum(clean.samples[1:]), atol=1e-6)
    np.testing.assert_allclose(noisy.samples[0] - sum(noisy.samples[1:]), 0.3 * tone(3000).T, atol=1e-6)
    three = one("sep_noisy", "s1", "s2", "noise")
    np.testing.assert_allclose(three.samples[0], sum(three.samples[1:]), atol=1e-6)
    message = refused(data("wham", wham, ["s1", "s2", "noise"]))
    assert "data.task=sep_clean has no noise, so noise cannot be a source; use data.task=sep_noisy" in message


@pytest.fixture
def librimix(tmp_path):
    """Tables with the paths of the machine that made them, and a set that was moved since."""
    root = tmp_path / "Libri2Mix" / "wav8k" / "min"
    for split in ("tr", "cv", "tt"):
        for mixture in ("mix_clean", "mix_both"):
            table = root / "metadata" / f"mixture_{split}_{mixture}.csv"
            table.parent.mkdir(parents=True, exist_ok=True)
            noisy = mixture == "mix_both"
            lines = ["mixture_ID,mixture_path,source_1_path,source_2_path," + "noise_path," * noisy + "length"]
            for name in ("1-2_3-4", "5-6_7-8"):
                kinds = [mixture, "s1", "s2", *["noise"] * noisy]
                lines.append(",".join([name, *(f"/gone/wav8k/min/{split}/{k}/{name}.wav" for k in kinds), "16000"]))
                for number, kind in enumerate(kinds):
                    write(root / split / kind / f"{name}.wav", tone(300 * (number + 1)))
            table.write_text("\n".join(lines) + "\n")
    return root


def test_librimix_is_read_where_it_lies_now(librimix):
    clean = open_split(data("librimix", librimix), "train")
    assert [track.name for track in clean.tracks] == ["1-2_3-4", "5-6_7-8"]
    np.testing.assert_allclose(clean.recording(0).samples[0], tone(300).T, atol=1e-4)
    noisy = open_split(data("librimix", librimix, ["s1", "s2", "noise"], task="sep_noisy"), "test")
    np.testing.assert_allclose(noisy.recording(1).samples[3], tone(1200).T, atol=1e-4)


def test_librimix_names_the_tables_that_are_there(librimix):
    wrong = data("librimix", librimix, splits={"train": "train-100", "valid": "cv", "test": "tt"})
    assert "there are mixture_cv_mix_both.csv" in refused(wrong)
    assert "data.root is the folder that holds metadata" in refused(data("librimix", librimix.parent))
    assert "no column source_3_path" in refused(data("librimix", librimix, ["s1", "s2", "s3"]))
    (librimix / "tr" / "s1" / "1-2_3-4.wav").unlink()
    assert "tr/s1/1-2_3-4.wav: is missing" in refused(data("librimix", librimix))


def manifest(folder, *entries):
    path = folder / "all.jsonl"
    path.write_text("\n".join(e if isinstance(e, str) else json.dumps(e) for e in entries) + "\n")
    return path


def test_a_manifest_lists_any_files(tmp_path):
    write(tmp_path / "deep" / "a.wav", tone(200, seconds=4.0))
    write(tmp_path / "b.wav", tone(900, seconds=4.0))
    write(tmp_path / "own.wav", tone(1500, seconds=4.0))
    sources = {"s1": "deep/a.wav", "s2": str(tmp_path / "b.wav")}
    path = manifest(
        tmp_path,
        {"id": "whole", "split": "tr", "sources": sources},
        "",
        {"id": "part", "split": "tr", "sources": {**sources, "s3": "x"}, "start": 1, "duration": 0.75},
        {"id": "alone", "split": "tr", "mixture": "own.wav", "sources": {**sources, "s2": None}},
        {"id": "other", "split": "tt", "sources": {"bass": "nowhere.wav"}} | {"sources": sources},
    )
    examples = open_split(data("manifest", path), "train")
    assert [track.name for track in examples.tracks] == ["whole", "part", "alone"]
    part = examples.recording(1)
    assert part.samples[0].shape == (1, 6000)
    np.testing.assert_allclose(part.samples[1], tone(200, seconds=4.0).T[:, 8000:14000], atol=1e-4)
    alone = examples.recording(2)
    np.testing.assert_allclose(alone.samples[0], tone(1500, seconds=4.0).T, atol=1e-4)
    assert np.abs(alone.samples[2]).max() == 0
    for index in range(40):  # an excerpt never reaches past the part
        drawn = examples.draw(int(examples.ends[0]), np.random.default_rng(index))
        assert drawn.track == "part" and np.abs(drawn.samples[1]).max() > 0.05
    assert len(open_split(data("manifest", tmp_path / "all.jsonl"), "test").tracks) == 1


def test_a_part_that_is_shorter_than_an_excerpt_is_padded_with_silence(tmp_path):
    write(tmp_path / "a.wav", tone(200, seconds=4.0))
    entry = {"split": "tr", "sources": {"s1": "a.wav", "s2": None}}
    path = manifest(tmp_path, {"id": "short", **entry, "duration": 0.25}, {"id": "long", **entry})
    drawn = open_split(data("manifest", path), "train").draw(0, np.random.default_rng(0))
    assert drawn.track == "short"
    assert np.abs(drawn.samples[1][:, :2000]).max() > 0.05 and np.abs(drawn.samples[1][:, 2000:]).max() == 0


def test_a_manifest_is_refused_with_every_faulty_line(tmp_path):
    write(tmp_path / "a.wav", tone(200))
    good = {"s1": "a.wav", "s2": "a.wav"}
    path = manifest(
        tmp_path,
        "{not json",
        {"id": "x", "split": "tr", "sources": {"s1": "a.wav"}},
        {"id": "x", "split": "tr", "sources": good, "strat": 1},
        {"split": "tr", "sources": good},
        {"id": "x", "split": "tr", "sources": good, "start": "soon"},
        {"id": "x", "split": "tr", "sources": {"s1": None, "s2": None}},
        {"id": "twice", "split": "tr", "sources": good},
        {"id": "twice", "split": "tr", "sources": good},
        {"id": "late", "split": "tr", "sources": good, "start": 5},
        {"id": "long", "split": "tr", "sources": good, "start": 1, "duration": 2},
        {"id": "gone", "split": "tr", "sources": {**good, "s2": "gone.wav"}},
        [1],
    )
    message = refused(data("manifest", path))
    for expected in (
        "all.jsonl:1: is not JSON",
        "all.jsonl:2: has no source s2 (it has s1); null stands for silence",
        'all.jsonl:3: has the unknown key "strat"',
        'all.jsonl:4: has no "id"',
        """all.jsonl:5: "start" is soon, and must be at least 0 and at most 1e+09 seconds""",
        "all.jsonl:6: names no file",
        "all.jsonl:8: has the id of line 7, twice",
        "starts at 5.0 s, after the end of its files",
        "lasts 2 s from 1.0 s, beyond the end of its files",
        "gone.wav: is missing",
        'all.jsonl:12: has no "sources"',
    ):
        assert expected in message
    assert "data.root is the manifest's path" in refused(data("manifest", tmp_path / "none.jsonl"))


def test_pools_of_classes_give_each_source_its_own_folder(pools):
    config = data("pools", pools, ["bob", "ann"], interchangeable=False, pause=[0.0, 0.0])
    example = open_split(config, "train").draw(0, np.random.default_rng(1))
    loudest = np.abs(np.fft.rfft(example.samples[1:, 0], axis=-1)).argmax(-1) * 8000 / 4000
    assert 380 <= loudest[0] <= 460 and 180 <= loudest[1] <= 260  # bob's clips from 400 Hz, ann's from 200
    message = refused(data("pools", pools, ["bob", "anna"], interchangeable=False))
    assert "no folder for the source anna; did you mean ann?" in message


def test_packed_tracks_are_the_tracks():
    def piece(name, subtype="PCM_16"):
        return Piece(name, Info(100, 8000, 2, subtype))

    tracks = [
        Track("one", ((piece("a"),), (piece("b", "FLOAT"), piece("a"))), (piece("m"),), 0.5, 2.0),
        Track("zwölf", ((), (piece("c"),))),
    ]
    packed = Tracks(tracks)
    assert list(packed) == tracks
    assert packed[-1] == tracks[-1] and packed[:1] == tracks[:1]
    assert [file.path for file in packed.files] == ["a", "b", "m", "c"]
    with pytest.raises(IndexError):
        packed[2]
    assert list(Files([piece("a"), piece("b", "FLOAT")])) == [piece("a"), piece("b", "FLOAT")]
    odd = ["", "a b", "日本", "bad \udcff byte"]
    assert list(Strings(odd)) == odd


def test_stored_headers_are_used_until_a_file_changes(tmp_path, monkeypatch):
    paths = [str(write(tmp_path / f"{i}.wav", tone(200, seconds=0.1 * (i + 1)))) for i in range(3)]
    first, problems = Headers(tmp_path / "headers", tmp_path).read([*paths, str(tmp_path / "none.wav")])
    assert problems == [f"{tmp_path}/none.wav: is missing"]
    write(tmp_path / "1.wav", tone(200, seconds=0.9))
    probed = []
    monkeypatch.setattr("separate.data.storage.headers._probe", lambda path: probed.append(path) or Info(1, 8000, 1))
    second, _ = Headers(tmp_path / "headers", tmp_path).read(paths)
    assert probed == [paths[1]]
    assert [second[path] for path in paths] == [first[paths[0]], Info(1, 8000, 1), first[paths[2]]]
    probed.clear()
    Headers(tmp_path / "headers", tmp_path).read(paths)
    assert probed == []


def test_a_damaged_list_of_headers_is_ignored(tmp_path):
    paths = [str(write(tmp_path / f"{i}.wav", tone(200))) for i in range(3)]
    headers = Headers(tmp_path / "headers", tmp_path)
    first, _ = headers.read(paths)
    headers.path.write_bytes(headers.path.read_bytes()[:100])
    assert Headers(tmp_path / "headers", tmp_path).read(paths) == (first, [])
    shutil.rmtree(tmp_path / "headers")
    (tmp_path / "headers").write_text("a file where the folder should be")
    assert Headers(tmp_path / "headers", tmp_path).read(paths) == (first, [])


def test_an_error_of_a_training_names_the_layout_that_a_folder_looks_like(wham):
    splits = {"train": "train", "valid": "valid", "test": "test"}
    message = refused(data("stems", wham, ["vocals"], splits=splits))
    assert "the train split is missing" in message and f"{wham} looks like data=wham data.root={wham}" in message


def test_lengths_of_many_tracks_agree_with_those_of_each():
    rng = np.random.default_rng(0)

    def piece():
        return Piece(f"{rng.random()}", Info(int(rng.integers(1, 10**6)), int(rng.choice([8000, 44100])), 1))

    tracks = [
        Track(
            f"{number}",
            ((piece(),), () if number % 3 else (piece(), piece())),
            (piece(),) if number % 2 else None,
            float(rng.choice([0, 1.23])),
            None if number % 4 else float(rng.random()),
        )
        for number in range(50)
    ]
    packed = Tracks(tracks)
    for rate in (8000, 16000, 44100):
        assert packed.lengths(rate).tolist() == [track.length(rate) for track in tracks]
        assert packed.firsts(rate).tolist() == [track.first(rate) for track in tracks]


@pytest.fixture
def ffmpeg(tmp_path, monkeypatch):
    """The one on this machine, or that of the package imageio-ffmpeg, found by its usual name."""
    (tmp_path / "bin").mkdir()
    (tmp_path / "bin" / "ffmpeg").symlink_to(shutil.which("ffmpeg") or imageio_ffmpeg.get_ffmpeg_exe())
    monkeypatch.setenv("PATH", str(tmp_path / "bin"), prepend=os.pathsep)
    return str(tmp_path / "bin" / "ffmpeg")


FREQUENCIES = {"mixture": 1700, "drums": 300, "bass": 600, "other": 900, "vocals": 1200}


def stem_mp4(ffmpeg, path, streams=FREQUENCIES):
    """A song as MUSDB18 packs it: AAC streams, the mixture first."""
    path.parent.mkdir(parents=True, exist_ok=True)
    command = [ffmpeg, "-nostdin", "-v", "error", "-y"]
    for name in streams:
        wav = write(path.parent.parent / "wav" / f"{name}.wav", tone(streams[name], rate=44100, channels=2), rate=44100)
        command += ["-i", str(wav)]
    command += [part for number in range(len(streams)) for part in ("-map", str(number))]
    subprocess.run([*command, "-c:a", "aac", "-b:a", "256k", str(path)], check=True)


def compressed(root, **changes):
    splits = {"train": "train", "valid": "valid", "test": "test"}
    values = {"sample_rate": 44100, "channels": 2, "splits": splits, **changes}
    return data("musdb18", root, ["vocals", "bass"], **values)


def peak(signal):
    """The loudest frequency in Hz of (C, T) at 44.1 kHz."""
    return np.abs(np.fft.rfft(signal[0])).argmax() * 44100 / signal.shape[1]


def test_musdb18_is_decoded_once(ffmpeg, tmp_path, monkeypatch):
    for name in ("A - First", "B - Second", "C - Third"):
        stem_mp4(ffmpeg, tmp_path / "musdb18" / "train" / f"{name}.stem.mp4")
    cache = CacheConfig(folder=str(tmp_path / "cache"))
    train = open_split(compressed(tmp_path / "musdb18"), "train", cache=cache)
    assert [track.name for track in train.tracks] == ["A - First", "B - Second"]  # the last tenth is held out
    summed, own = (
        open_split(compressed(tmp_path / "musdb18", mixture=mixture), "train", cache=cache).recording(0)
        for mixture in ("sum", "file")
    )
    np.testing.assert_allclose(summed.samples[0], summed.samples[1:].sum(0), atol=1e-6)
    assert [peak(signal) for signal in own.samples] == pytest.approx([1700, 1200, 600], abs=2)
    monkeypatch.setenv("PATH", "")
    assert len(open_split(compressed(tmp_path / "musdb18"), "train", cache=cache)) > 0  # nothing is decoded again
    assert not list((tmp_path / "cache" / "decoded").glob("*.part"))


def test_decoded_songs_count_as_cache_and_are_decoded_again_after_eviction(ffmpeg, tmp_path, call):
    for name in ("A - First", "B - Second", "C - Third"):
        stem_mp4(ffmpeg, tmp_path / "musdb18" / "train" / f"{name}.stem.mp4")
    cache = CacheConfig(folder=str(tmp_path / "cache"))
    train = open_split(compressed(tmp_path / "musdb18"), "train", cache=cache)
    wanted = train.recording(0).samples
    where = f"cache.folder={tmp_path / 'cache'}"
    assert "decoded songs: 2, " in call(data_program, "cache", "info", where, cwd=tmp_path)[1]
    size = sum(one.bytes for one in cache_entries(tmp_path / "cache"))
    assert evict(tmp_path / "cache", 0.75 * size) == 1
    np.testing.assert_array_equal(train.recording(0).samples, wanted)
    np.testing.assert_array_equal(train.recording(1).samples[1:].sum(0), train.recording(1).samples[0])
    assert len(list(cache_entries(tmp_path / "cache"))) == 2
    shutil.rmtree(tmp_path / "cache")
    limited = CacheConfig(folder=str(tmp_path / "cache"), limit=0.75 * size / 1e9)
    with pytest.raises(UsageError, match="the decoded songs of train take more than cache.limit="):
        open_split(compressed(tmp_path / "musdb18"), "train", cache=limited)
    assert "1 entries dropped" in call(data_program, "cache", "clear", where, cwd=tmp_path)[1]
    assert not list((tmp_path / "cache").rglob("*.*"))


def test_musdb18_without_ffmpeg_or_with_a_bad_song_says_what_to_do(ffmpeg, tmp_path, monkeypatch):
    cache = CacheConfig(folder=str(tmp_path / "cache"))
    stem_mp4(ffmpeg, tmp_path / "musdb18" / "test" / "four.stem.mp4", dict(list(FREQUENCIES.items())[:4]))
    with pytest.raises(DataError, match="four.stem.mp4: ffmpeg could not decode its five streams"):
        open_split(compressed(tmp_path / "musdb18"), "test", cache=cache)
    assert not list((tmp_path / "cache").rglob("*.wav"))
    monkeypatch.setenv("PATH", "")
    with pytest.raises(UsageError, match="ffmpeg, which is not installed: apt-get install ffmpeg"):
        open_split(compressed(tmp_path / "musdb18"), "test", cache=cache)
    assert "data=musdb18 has no source s1" in refused(data("musdb18", tmp_path / "musdb18"), "test")


def test_a_checkpoint_that_names_its_layout_as_older_ones_do_is_evaluated_and_resumed(trained, call, tmp_path):
    for kind in ("best", "last"):
        contents = checkpoint.read(trained / "runs" / "tiny" / "checkpoints" / f"{kind}.ckpt")
        values = {key: value for key, value in contents["config"]["data"].items() if key != "_target_"}
        contents["config"]["data"] = {"layout": "toy", **values}
        (tmp_path / "old" / "checkpoints").mkdir(parents=True, exist_ok=True)
        torch.save({**contents, "format": 3}, tmp_path / "old" / "checkpoints" / f"{kind}.ckpt")
    code, out, err = call(evaluate_program, "run=old", "device=cpu", cwd=tmp_path)
    assert code == 0 and "scores:" in out, err
    code, _, err = call(train_program, "run=old", "resume=true", "trainer.epochs=2", cwd=tmp_path)
    assert code == 0, err
    again = checkpoint.read(tmp_path / "old" / "checkpoints" / "last.ckpt")
    assert again["config"]["data"]["_target_"] == target("toy") and "layout" not in again["config"]["data"]
