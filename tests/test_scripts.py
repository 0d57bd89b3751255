"""The programs under scripts/ as a user calls them."""

import json
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import soundfile

from separate.cli import data as data_program
from separate.compose import data_config
from separate.data import open_split
from tests.conftest import target, tone, write

KINDS = ("s1", "s2", "noise", "mix_clean", "mix_both")

SCRIPTS = Path(__file__).parents[1] / "scripts"


def run(name: str, *arguments: str) -> "subprocess.CompletedProcess[str]":
    return subprocess.run([sys.executable, str(SCRIPTS / name), *arguments], capture_output=True, text=True)


def test_fsdd_is_arranged_as_pools_and_a_second_call_continues(tmp_path):
    for speaker in ("george", "lucas"):
        for take in (0, 4, 7, 12, 15, 49):
            write(tmp_path / "recordings" / f"3_{speaker}_{take}.wav", tone(200, 0.1))
    write(tmp_path / "recordings" / "notes.wav", tone(200, 0.1))
    for _ in range(2):
        done = run("prepare_fsdd.py", str(tmp_path / "recordings"), str(tmp_path / "fsdd"))
        assert done.returncode == 0, done.stderr
        assert "10 recordings of 2 speakers" in done.stdout
        (tmp_path / "fsdd" / "tt" / "george" / "3_04.wav").unlink()
    found = {str(path.relative_to(tmp_path / "fsdd")) for path in (tmp_path / "fsdd").rglob("*.*")}
    takes = {"tt": ["00", "04"], "cv": ["12"], "tr": ["15", "49"]}
    wanted = {f"{split}/{s}/3_{take}.wav" for split, ts in takes.items() for take in ts for s in ("george", "lucas")}
    assert found == wanted - {"tt/george/3_04.wav"}
    done = run("prepare_fsdd.py", str(tmp_path), str(tmp_path / "fsdd"))
    assert done.returncode == 1
    assert "holds no files named DIGIT_SPEAKER_TAKE.wav" in done.stderr


def test_the_toy_song_is_written_with_its_sources(tmp_path):
    done = run("write_toy.py", str(tmp_path / "toy"))
    assert done.returncode == 0, done.stderr
    names = ("voice", "chords", "drums")
    parts = [soundfile.read(tmp_path / "toy" / f"{name}.wav")[0] for name in names]
    mixture, rate = soundfile.read(tmp_path / "toy" / "mixture.wav")
    assert (rate, len(mixture)) == (8000, 64000)
    assert abs(sum(parts) - mixture).max() < 1e-6


def test_stems_are_drawn_beside_their_references(tmp_path):
    for folder, names in (("toy", ("mixture", "voice", "drums")), ("out", ("voice", "drums")), ("more", ("bass",))):
        for name in names:
            write(tmp_path / folder / f"{name}.wav", tone(500))
    picture = tmp_path / "stems.png"
    done = run("draw_stems.py", str(tmp_path / "toy"), str(tmp_path / "out"), str(picture))
    assert done.returncode == 0, done.stderr
    assert 5000 < picture.stat().st_size < 200_000
    done = run("draw_stems.py", str(tmp_path / "toy"), str(tmp_path / "more"), str(picture))
    assert done.returncode == 1 and "toy has no bass.wav" in done.stderr
    done = run("draw_stems.py", str(tmp_path / "toy"), str(tmp_path), str(picture))
    assert done.returncode == 1 and "holds no WAV files; give the folder that separate-infer wrote" in done.stderr


def sweep_of(folder: Path, scores: dict[tuple[str, int], float]) -> Path:
    """A sweep that was trained and scored: the files of it that the table is made of."""
    for number, ((loss, seed), value) in enumerate(scores.items()):
        job = folder / str(number)
        for path, content in (
            (job / "checkpoints" / "best.ckpt", ""),
            (
                job / "job.json",
                json.dumps({"identity": "", "overrides": {"loss": loss, "seed": seed, "experiment": "targets"}}),
            ),
            (job / "result.json", json.dumps({"best": 0.0, "monitor": "valid/loss", "higher_is_better": False})),
            (
                job / "eval" / "test" / "summary.json",
                json.dumps({"scores": {"model": {"all": {m: {"mean": value} for m in ("si_sdr", "si_sdri", "snr")}}}}),
            ),
        ):
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(content)
    return folder


def test_a_sweep_becomes_a_table_with_mean_and_standard_deviation_over_the_seeds(tmp_path):
    values = {("tpsa", 0): 8.0, ("tpsa", 1): 10.0, ("msa", 0): 3.0, ("msa", 1): 3.0, ("si_sdr", 0): 11.0}
    sweep = sweep_of(tmp_path / "sweep", values)
    done = run("sweep_table.py", str(sweep), "--picture", str(tmp_path / "sweep.png"))
    assert done.returncode == 0, done.stderr
    rows = [line for line in done.stdout.splitlines() if line.startswith("| `")]
    assert [row.split("|")[1].strip() for row in rows] == ["`loss=si_sdr`", "`loss=tpsa`", "`loss=msa`"]
    assert [row.split("|")[2].strip() for row in rows] == ["11.00 ± 0.00", "9.00 ± 1.41", "3.00 ± 0.00"]
    assert [row.split("|")[5].strip() for row in rows] == ["1", "2", "2"]
    assert (tmp_path / "sweep.png").stat().st_size > 5000
    done = run("sweep_table.py", str(tmp_path))
    assert done.returncode == 1
    assert "holds no finished runs of a sweep" in done.stderr


def test_the_benchmark_measures_a_case_beside_its_peer(tmp_path):
    out = tmp_path / "bench.json"
    done = run("bench.py", "pit", "--rounds", "5", "--threads", "1", "--out", str(out))
    assert done.returncode == 0, done.stderr
    found = json.loads(out.read_text())["cases"]["pit"]
    assert set(found) == {"separate", "each pair by itself"}
    assert all(figures["seconds"] > 0 for figures in found.values())
    done = run("bench.py", "conv_tassnet", "--out", str(out))
    assert done.returncode == 2
    assert "there is no case conv_tassnet; choose from" in done.stderr
    assert "a median needs at least 5 rounds" in run("bench.py", "pit", "--rounds", "4").stderr


def test_a_benchmark_without_a_case_measures_all_of_them(monkeypatch):
    monkeypatch.syspath_prepend(SCRIPTS)
    from bench_common import options

    parser = options("", ["pit", "stft"], 5, "bench.json")
    assert parser.parse_args([]).cases == []
    assert parser.parse_args(["pit"]).cases == ["pit"]


def speech(path, frequency, seconds, level, pause=0.0, rate=16000):
    audio = level * np.sqrt(2) * np.sin(2 * np.pi * frequency * np.arange(round(seconds * rate)) / rate)
    return write(path, np.pad(audio, (0, round(pause * rate)))[:, None], rate=rate)


def test_wsj0_mixtures_have_the_levels_of_their_list(tmp_path, call):
    speech(tmp_path / "wsj0" / "si_tr_s" / "011" / "011a0101.wav", 300, 2.0, 0.02)
    speech(tmp_path / "wsj0" / "si_tr_s" / "022" / "022b0102.wav", 900, 1.5, 0.2, pause=1.0)
    line = "wsj0/si_tr_s/011/011a0101.wav 1.5 wsj0/si_tr_s/022/022b0102.wav -1.5\n"
    for split in ("tr", "cv", "tt"):
        (tmp_path / f"mix_2_spk_{split}.txt").write_text(line)
    lists = [str(tmp_path / f"mix_2_spk_{split}.txt") for split in ("tr", "cv", "tt")]
    for _ in range(2):
        done = run("prepare_wsj0mix.py", str(tmp_path), *lists, str(tmp_path / "out"))
        assert done.returncode == 0 and "1 mixtures in" in done.stdout, done.stderr
    name = "011a0101_1.5_022b0102_-1.5.wav"
    mixture, one, other = (soundfile.read(tmp_path / "out/wav8k/min/tr" / f / name) for f in ("mix", "s1", "s2"))
    assert mixture[1] == 8000 and len(mixture[0]) == 16000  # the shorter
    np.testing.assert_allclose(mixture[0], one[0] + other[0], atol=1e-6)
    peak = max(np.abs(audio).max() for audio, _ in (mixture, one, other))
    assert peak == pytest.approx(0.9, abs=1e-3)
    active = [np.sqrt(np.mean(audio[2000:10000] ** 2)) for audio, _ in (one, other)]  # a plain RMS would give 0.8 dB
    assert 20 * np.log10(active[0] / active[1]) == pytest.approx(3.0, abs=1.0)  # 0.2 s after speech count as speech
    data = ["data=wsj0mix", f"data.root={tmp_path / 'out/wav8k/min'}", "data.excerpt=1", "splits=[train]"]
    assert call(data_program, "check", *data, cwd=tmp_path)[0] == 0
    (tmp_path / "wsj0/si_tr_s/022/022b0102.wav").unlink()
    done = run("prepare_wsj0mix.py", str(tmp_path), *lists, str(tmp_path / "again"))
    assert done.returncode == 1 and "022b0102.wav is missing" in done.stderr


def test_librimix_is_made_from_its_tables(tmp_path, call):
    speech(tmp_path / "speech" / "1" / "2" / "1-2-3.flac", 300, 2.0, 0.1)
    speech(tmp_path / "speech" / "4" / "5" / "4-5-6.flac", 900, 1.5, 0.1)
    speech(tmp_path / "noise" / "cv" / "n.wav", 2000, 0.6, 0.1)
    columns = "mixture_ID,source_1_path,source_1_gain,source_2_path,source_2_gain,noise_path,noise_gain\n"
    row = "1-2-3_4-5-6,1/2/1-2-3.flac,0.5,4/5/4-5-6.flac,0.25,cv/n.wav,0.1\n"
    (tmp_path / "libri2mix_dev-clean.csv").write_text(columns + row)
    arguments = [str(tmp_path / "speech"), str(tmp_path / "libri2mix_dev-clean.csv"), str(tmp_path / "out")]
    for _ in range(2):
        done = run("prepare_librimix.py", *arguments, "--noise", str(tmp_path / "noise"))
        assert done.returncode == 0 and "1 mixtures in" in done.stdout, done.stderr
    root = tmp_path / "out" / "wav8k" / "min"
    found = {kind: soundfile.read(root / "dev" / kind / "1-2-3_4-5-6.wav")[0] for kind in KINDS}
    assert {len(audio) for audio in found.values()} == {12000}
    np.testing.assert_allclose(found["mix_both"], found["s1"] + found["s2"] + found["noise"], atol=1e-6)
    np.testing.assert_allclose(found["mix_clean"], found["s1"] + found["s2"], atol=1e-6)
    rms = {kind: np.sqrt(np.mean(audio[1000:-1000] ** 2)) for kind, audio in found.items()}
    assert [rms[kind] for kind in ("s1", "s2", "noise")] == pytest.approx([0.05, 0.025, 0.01], rel=0.02)
    splits = "data.splits={train: dev, valid: dev, test: dev}"
    for task, sources in (("sep_clean", "[s1,s2]"), ("sep_noisy", "[s1,s2,noise]")):
        data = ["data=librimix", f"data.root={root}", f"data.task={task}", f"data.sources={sources}", splits]
        code, out, _ = call(data_program, "check", *data, "data.excerpt=1", "splits=[train]", cwd=tmp_path)
        assert (code, out.strip()) == (0, "no faults found")


def test_musdb18hq_is_unpacked_checked_and_listed(tmp_path, call):
    for split, names in (("train", ["A - B", "ANiMAL - Rockshow"]), ("test", ["C - D"])):
        for name in names:
            for stem in ("vocals", "drums", "bass", "other", "mixture"):
                noise = np.random.default_rng(len(name + stem)).standard_normal((8000, 2))
                write(tmp_path / "musdb18hq" / split / name / f"{stem}.wav", 0.01 * noise)
    archive = shutil.make_archive(str(tmp_path / "musdb18hq"), "zip", tmp_path, "musdb18hq")
    done = run("prepare_musdb18hq.py", archive, str(tmp_path / "out"))
    assert done.returncode == 1 and "the archive is damaged; download it again" in done.stderr
    for _ in range(2):
        done = run("prepare_musdb18hq.py", archive, str(tmp_path / "out"), "--skip-checksum")
        assert done.returncode == 0 and "valid: 1 tracks, MUSDB18-HQ has 14" in done.stdout, done.stderr
        (tmp_path / "out" / "test" / "C - D" / "bass.wav").write_bytes(b"half")
    data = data_config(
        {
            "_target_": target("manifest"),
            "root": str(tmp_path / "out" / "manifest.jsonl"),
            "sources": ["vocals", "bass"],
            "sample_rate": 8000,
            "channels": 2,
            "excerpt": 0.5,
            "splits": {"train": "train", "valid": "valid", "test": "test"},
        }
    )
    assert [track.name for track in open_split(data, "valid").tracks] == ["ANiMAL - Rockshow"]
    (tmp_path / "out" / "train" / "A - B" / "drums.wav").unlink()
    done = run("prepare_musdb18hq.py", str(tmp_path / "out"), str(tmp_path / "out"))
    assert done.returncode == 1 and "A - B/drums.wav" in done.stderr
