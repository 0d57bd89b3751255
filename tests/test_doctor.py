"""The doctor: every fault is named by path with its remedy, and a healthy set has none."""

import json
import shutil

import numpy as np
import pytest
import soundfile

from separate.cli import data as program
from separate.config import CacheConfig, STFTConfig
from separate.data.doctor.checks import FIXES, examine, table
from separate.data.doctor.statistics import summary, survey
from tests.conftest import tone, write
from tests.test_data import speech_data, stems_data
from tests.test_layouts import data as layout_data

ALL = ("train", "valid", "test")


@pytest.fixture
def healthy(tmp_path):
    """Stems of noise with their sum beside them, in three splits."""
    rng = np.random.default_rng(0)
    for split in ALL:
        for index in range(3):
            folder = tmp_path / "healthy" / split / f"{split} {index}"
            stems = {name: 0.05 * rng.standard_normal((12000, 2)) for name in ("low", "high")}
            for name, audio in {**stems, "mixture": stems["low"] + stems["high"]}.items():
                write(folder / f"{name}.wav", audio, subtype="FLOAT")
    return tmp_path / "healthy"


def found(config, splits=ALL):
    return {(finding.kind, finding.split): finding for finding in examine(config, splits, CacheConfig())}


def change(path, edit):
    audio, rate = soundfile.read(path, always_2d=True)
    write(path, edit(audio), rate, subtype="FLOAT")


def test_a_healthy_set_has_no_findings(healthy, pools, wsj0mix):
    assert found(stems_data(healthy, channels=2)) == {}
    assert table([]) == "no faults found"


def inverted(audio):
    return -audio


FAULTS = {
    "not a number": ("low", lambda audio: np.where(np.eye(len(audio), 2, -50), np.nan, audio), "sample at 50"),
    "silent": ("low", np.zeros_like, "all of it"),
    "clipped": ("low", lambda audio: np.clip(60 * audio, -1, 1), "% of the samples at 1"),
    "constant offset": ("low", lambda audio: audio + 0.2, "+0.200"),
}


@pytest.mark.parametrize("kind", FAULTS)
def test_faulty_samples_are_named_by_path(healthy, kind):
    stem, edit, reason = FAULTS[kind]
    path = healthy / "train" / "train 1" / f"{stem}.wav"
    change(path, edit)
    finding = found(stems_data(healthy, channels=2))[kind, "train"]
    assert [place.partition(": ")[0] for place in finding.places] == [str(path)]
    assert reason in finding.places[0] and finding.fix == FIXES[kind]
    assert finding.fatal == (kind == "not a number")


MISTAKES = {
    "low is inverted": lambda low, high: high - low,
    "low is not in it": lambda low, high: high,
    "left and right of low are swapped": lambda low, high: high + low[:, ::-1],
    "only its left channel is the sum": lambda low, high: (low + high) * [1, 0.5],
    "it is the sum at -6.0 dB": lambda low, high: (low + high) / 2,
    "the difference is": lambda low, high: low + high + 0.05 * np.random.default_rng(1).standard_normal(low.shape),
}


@pytest.mark.parametrize("mistake", MISTAKES)
def test_a_mixture_that_is_not_the_sum_is_explained(healthy, mistake):
    folder = healthy / "test" / "test 0"
    low, high = (soundfile.read(folder / f"{name}.wav")[0] for name in ("low", "high"))
    change(folder / "mixture.wav", lambda _: MISTAKES[mistake](low, high))
    finding = found(stems_data(healthy, channels=2))["sum", "test"]
    assert len(finding.places) == 1
    assert f"test 0/mixture.wav: {mistake}" in finding.places[0] and "dB of it" in finding.places[0]
    assert not finding.fatal  # it is not used: the sum is


def test_a_mixture_that_is_used_must_be_the_sum(wsj0mix):
    change(wsj0mix / "tr" / "mix" / "2.wav", inverted)
    finding = found(speech_data("wsj0mix", wsj0mix))["sum", "train"]
    assert finding.fatal and "2.wav: it is the sum at +0.0 dB, inverted" in finding.places[0]


def test_the_same_audio_in_two_splits_is_found_under_any_name(healthy):
    shutil.copytree(healthy / "train" / "train 0", healthy / "test" / "another name")
    finding = found(stems_data(healthy, channels=2))["same audio in two splits", "train, test"]
    assert finding.fatal and len(finding.places) == 3
    assert any("train 0/low.wav" in place and "another name/low.wav" in place for place in finding.places)


def test_two_parts_of_one_file_may_lie_in_two_splits(tmp_path):
    for name in ("a", "b"):
        write(tmp_path / f"{name}.wav", 0.1 * np.random.default_rng(ord(name)).standard_normal(24000))
    sources = {"s1": "a.wav", "s2": "b.wav"}
    entries = [
        {"id": split, "split": split, "sources": sources, "start": start, "duration": 1}
        for split, start in (("tr", 0), ("cv", 1), ("tt", 2))
    ]
    (tmp_path / "m.jsonl").write_text("\n".join(map(json.dumps, entries)))
    assert found(layout_data("manifest", tmp_path / "m.jsonl")) == {}
    whole = [{key: entry[key] for key in ("id", "split", "sources")} for entry in entries]
    (tmp_path / "m.jsonl").write_text("\n".join(map(json.dumps, whole)))
    assert ("same audio in two splits", "train, test") in found(layout_data("manifest", tmp_path / "m.jsonl"))


def test_speakers_on_both_sides_of_a_split_are_named(pools, tmp_path):
    findings = found(speech_data("pools", pools))
    assert findings["speakers in two splits", "train, test"].places == ["ann", "bob", "cid"]
    names = {"tr": ("011a0101_0.5_022b0102_-0.5", "033c0103_1_044d0104_-1"), "cv": ("044e0105_1_055f0106_2",)}
    for split, number in (("tr", 0), ("tr", 1), ("cv", 0)):
        for folder in ("mix", "s1", "s2"):
            path = tmp_path / "w" / split / folder / f"{names[split][number]}.wav"
            write(path, tone(300 + 10 * number + 100 * len(folder)))
    found_here = found(speech_data("wsj0mix", tmp_path / "w"), ("train", "valid"))
    assert found_here["speakers in two splits", "train, valid"].places == ["044"]


def test_headers_that_differ_are_named(healthy):
    folder = healthy / "valid" / "valid 2"
    for name in ("low", "high", "mixture"):
        write(folder / f"{name}.wav", tone(300, rate=16000)[:, :1], rate=16000)
    (healthy / "valid" / "valid 0" / "low.wav").write_bytes(b"RIFF junk")
    path = healthy / "valid" / "valid 1" / "high.wav"
    path.write_bytes(path.read_bytes()[:-999])
    findings = found(stems_data(healthy, channels=2))
    rates = findings["rates", "valid"].places
    assert len(rates) == 3 and all("valid 2" in place and "16000 Hz, most have 8000" in place for place in rates)
    assert "1 channels, most have 2" in findings["channels", "valid"].places[0]
    assert not findings["channels", "valid"].fatal
    unreadable = findings["unreadable", "valid"].places
    assert any("valid 0/low.wav: not readable" in place for place in unreadable)
    assert any("valid 1/high.wav: truncated" in place for place in unreadable)
    write(folder / "low.wav", tone(300, rate=16000, seconds=1.0)[:, :1], rate=16000)
    assert "lengths in samples differ" in found(stems_data(healthy, channels=2))["layout", "valid"].places[0]


def test_short_tracks_are_named(healthy):
    finding = found(stems_data(healthy, channels=2, excerpt=2.0))["short", "train"]
    assert finding.places[0] == "train 0: 1.5 s"


@pytest.mark.parametrize("looked_for", ["stems", "wsj0mix", "pools"])
def test_a_wrong_layout_is_reported_with_the_one_that_fits(healthy, wsj0mix, pools, looked_for):
    roots = {"stems": healthy, "wsj0mix": wsj0mix, "pools": pools}
    for layout, root in roots.items():
        config = speech_data(looked_for, root) if looked_for != "stems" else stems_data(root)
        findings = [f for f in examine(config, ["train"], CacheConfig()) if f.kind == "nothing found"]
        if layout == looked_for:
            assert not findings
        elif findings:
            assert f"{root} looks like data={layout} data.root={root}" in findings[0].places[0]
            assert findings[0].fatal
    for clip in pools.rglob("*.wav"):
        clip.rename(clip.with_name(f"7_{clip.name}"))  # takes with the same names for every speaker, as FSDD has them
    assert f"{pools} looks like data=pools" in table(examine(stems_data(pools), ["train"], CacheConfig()))
    inside = stems_data(healthy / "train")
    assert f"{healthy} looks like data=stems" in table(examine(inside, ["train"], CacheConfig()))


def test_the_program_reports_all_at_once_and_exits_with_1(healthy, call, tmp_path):
    change(healthy / "train" / "train 1" / "low.wav", lambda audio: audio * np.nan)
    change(healthy / "test" / "test 1" / "low.wav", np.zeros_like)
    arguments = ["data=stems", f"data.root={healthy}", "data.sources=[low,high]", "data.sample_rate=8000"]
    code, out, _ = call(program, "check", *arguments, "data.excerpt=1.0", cwd=tmp_path)
    assert code == 1
    assert "ERROR  train: not a number (1)" in out and "warning  test: silent (1)" in out
    assert out.index("ERROR") < out.index("warning") and FIXES["silent"] in out
    code, out, _ = call(program, "check", "--json", *arguments, "splits=[valid]", cwd=tmp_path)
    assert (code, json.loads(out)) == (0, [])


def test_info_gives_levels_and_activity_with_a_picture(tmp_path, call):
    for split in ALL:
        both = np.tile(tone(997, 4.0), 2)
        write(tmp_path / "s" / split / "one" / "low.wav", 10 * both)  # full scale
        write(tmp_path / "s" / split / "one" / "high.wav", both * (np.arange(32000) < 16000)[:, None])
    config = stems_data(tmp_path / "s", channels=2)
    facts = summary(survey(config, ALL, CacheConfig(folder=str(tmp_path / "cache")), STFTConfig(256, 64)))
    low, high = (facts["train"]["sources"][name] for name in ("low", "high"))
    assert low["level"][1] == pytest.approx(0.0, abs=0.05)  # -3.01 LUFS for each channel
    assert high["level"][1] == pytest.approx(-20.0, abs=0.5)  # gated: the silent half does not count
    assert (low["activity"], high["activity"]) == (1.0, pytest.approx(0.5, abs=0.05))
    assert facts["train"]["tracks"] == 1 and low["hours"] == pytest.approx(4 / 3600)
    arguments = ["data=stems", f"data.root={tmp_path / 's'}", "data.sources=[low,high]", "data.sample_rate=8000"]
    code, out, _ = call(program, "info", *arguments, "data.excerpt=1.0", cwd=tmp_path)
    assert code == 0 and "train: 1 tracks, 0.1 min" in out and "picture: dataset.png" in out
    assert (tmp_path / "dataset.png").stat().st_size > 5000


def test_the_cache_is_prefetched_described_verified_and_cleared(healthy, call, tmp_path):
    arguments = ["data=stems", f"data.root={healthy}", "data.sources=[low,high]", "data.sample_rate=8000"]
    arguments += ["data.excerpt=1.0", f"cache.folder={tmp_path / 'cache'}"]
    code, out, _ = call(program, "cache", "build", *arguments, "cache=spectrogram", "stft=speech", cwd=tmp_path)
    assert code == 0 and "train: 6 signals" in out and "test: 6 signals" in out
    where = f"cache.folder={tmp_path / 'cache'}"
    code, out, _ = call(program, "cache", "info", where, cwd=tmp_path)
    assert "audio float32: 18 entries" in out and "spectrogram float32: 18 entries" in out
    assert call(program, "cache", "verify", where, cwd=tmp_path)[0] == 0
    entry = next((tmp_path / "cache" / "arrays").glob("??/*.npy"))
    content = bytearray(entry.read_bytes())
    content[300] ^= 1
    entry.write_bytes(content)
    code, out, _ = call(program, "cache", "verify", where, cwd=tmp_path)
    assert code == 1 and f"36 entries in {tmp_path / 'cache'}, 1 damaged" in out and not entry.exists()
    (tmp_path / "cache" / "arrays" / "mine.txt").write_text("of the user")
    code, out, _ = call(program, "cache", "clear", where, cwd=tmp_path)
    assert "35 entries dropped" in out
    assert [path.name for path in (tmp_path / "cache" / "arrays").rglob("*")] == ["mine.txt"]
    assert call(program, "cache", "info", where, cwd=tmp_path)[1].strip().endswith("empty")


def test_help_and_configuration_are_printed(call, tmp_path):
    code, out, _ = call(program, "--help", cwd=tmp_path)
    assert code == 0 and "separate-data check data=stems data.root=DIR" in out
    code, out, _ = call(program, "check", "data=pools", "data.root=x", "--cfg", "job", cwd=tmp_path)
    assert code == 0 and "snr: 5.0  # dB, the largest level difference" in out and "picture: dataset.png" in out


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        ([], "no command is given; choose from check, info"),
        (["chekc"], "there is no separate-data chekc; did you mean check?"),
        (["check"], "no data set is given; choose one, e.g. data=stems data.root=DIR"),
        (["check", "data=toy"], "data=toy has no files to look at"),
        (["check", "data=stemz"], "there is no data=stemz; did you mean stems?"),
        (["cache", "build", "data=stems", "data.root=x"], "cache=none keeps nothing; choose cache=audio"),
    ],
)
def test_what_cannot_be_is_refused(arguments, sentence, call, tmp_path):
    code, _, err = call(program, *arguments, cwd=tmp_path)
    assert code == 2 and sentence in err
