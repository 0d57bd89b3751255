"""Tables, indexes and names written by others: read correctly, or refused in a sentence that names the file."""

from __future__ import annotations

import codecs
import json
import os
import subprocess
import sys
import tarfile
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import soundfile
import torch

from separate.config import CacheConfig, check_sources
from separate.data.layouts.base import TrackLayout
from separate.data.layouts.librimix import LibriMix
from separate.data.layouts.manifest import Manifest
from separate.data.layouts.opening import Opening
from separate.data.layouts.slakh import Slakh
from separate.data.storage.download import index_of
from separate.data.storage.shard_index import Contents, list_contents
from separate.data.tracks import Track
from separate.errors import DataError, UsageError
from separate.files import TextError, check_name, printable, read_text
from tests.conftest import TINY_TOY, tone, write
from tests.test_shards import data as shards_data
from tests.test_shards import example, pack, split_of

SPLITS = {"train": "train", "valid": "valid", "test": "test"}
SIGNS = ["$^$", "$\\frac$ \t_{", "漢 🎻 \u2028", "<b>'\"%s{}"]


def tracks_of(kind: type[TrackLayout], root: Path, sources: list[str]) -> list[Track]:
    layout = kind(root=str(root), splits=SPLITS, sources=sources, sample_rate=8000, excerpt=1.0)
    return layout.tracks("train", Opening())


# manifests


def manifest(tmp_path: Path, *lines: str | bytes) -> Path:
    write(tmp_path / "a.wav", tone(440))
    path = tmp_path / "manifest.jsonl"
    path.write_bytes(b"\n".join(line if isinstance(line, bytes) else line.encode() for line in lines))
    return path


def line(**changes: Any) -> str:
    return json.dumps({"id": "a", "split": "train", "sources": {"x": "a.wav", "y": None}, **changes})


def refused_manifest(path: Path) -> str:
    with pytest.raises(DataError) as error:
        tracks_of(Manifest, path, ["x", "y"])
    assert str(path) in str(error.value)
    return str(error.value)


def test_a_manifest_may_begin_with_a_byte_order_mark_and_hold_any_character(tmp_path):
    path = manifest(tmp_path, codecs.BOM_UTF8 + line(id="é\u2028").encode(), json.dumps(json.loads(line(id="b"))))
    path.write_bytes(codecs.BOM_UTF8 + json.dumps(json.loads(line(id="é\u2028")), ensure_ascii=False).encode())
    tracks = tracks_of(Manifest, path, ["x", "y"])
    assert [track.name for track in tracks] == ["é\u2028"]


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("[" * 100_000, ":1: is nested too deeply"),
        (line(start=float("inf")), ':1: "start" is inf, and must be at least 0 and at most 1e+09 seconds'),
        (line(start=float("nan")), '"start" is nan'),
        (line(start=1e300), '"start" is 1e+300'),
        (line(duration=float("inf")), '"duration" is inf'),
        (line(duration=True), '"duration" is true'),
        (line(duration=[1]), '"duration" is [1]'),
        ('{"id": 1, "start": ' + "9" * 5000 + "}", ":1: "),
        (line(id="9" * 21, start=10**21), '"start" is 1' + "0" * 21),
        (line(sources={"x": "a\0.wav", "y": None}), ":1: has a path with a zero byte"),
        (line(sources={"x": "\ud800.wav", "y": None}), "has a path, \\ud800.wav, that is not valid Unicode"),
        (line(mixture="a\0b"), "has a path with a zero byte"),
        (line(sources={"x": "a" * 5000, "y": None}), "is missing"),
        (line(sources={"x": "..", "y": None}), "is missing"),
        (line(sources=[1]), 'has no "sources"'),
        (line(**{"k" * 10_000: 1}), "; the keys are duration, id, mixture, sources, split, start"),
        (b'{"id": "\xff"}', "is not text in UTF-8 (line 1); save it in UTF-8"),
        (line().encode("utf-16"), "is text in UTF-16; save it in UTF-8"),
        (b"\0" * 100, "holds a zero byte and is not text"),
        (os.urandom(1000) + b"\xff", "text"),
    ],
)
def test_a_faulty_manifest_is_refused_with_its_line(tmp_path, content, message):
    found = refused_manifest(manifest(tmp_path, content))
    assert message in found
    assert len(found) < 8000


@pytest.mark.parametrize("kind", ["fifo", "missing", "device"])
def test_a_manifest_that_is_not_a_regular_file_is_refused_without_waiting(tmp_path, kind):
    path = Path("/dev/zero") if kind == "device" else tmp_path / "manifest.jsonl"
    if kind == "fifo":
        os.mkfifo(path)
    assert ("is missing" if kind == "missing" else "is not a file") in refused_manifest(path)


def test_a_text_file_that_is_too_large_is_not_read(tmp_path):
    (tmp_path / "x").write_bytes(b"a" * 101)
    with pytest.raises(TextError, match="has 101 bytes; at most 100 are read"):
        read_text(tmp_path / "x", most=100)


# LibriMix

COLUMNS = "mixture_ID,mixture_path,source_1_path,source_2_path,length"
ROW = "é1,train/mix_clean/1.wav,train/s1/1.wav,train/s2/1.wav,16000"


def librimix(tmp_path: Path, content: bytes) -> Path:
    for folder in ("mix_clean", "s1", "s2"):
        write(tmp_path / "train" / folder / "1.wav", tone(440))
    (tmp_path / "metadata").mkdir()
    (tmp_path / "metadata" / "mixture_train_mix_clean.csv").write_bytes(content)
    return tmp_path


def listed(root: Path) -> list[str]:
    return [track.name for track in tracks_of(LibriMix, root, ["s1", "s2"])]


@pytest.mark.parametrize("end", ["\n", "\r\n", "\r"])
def test_a_table_may_begin_with_a_byte_order_mark_and_end_its_lines_as_any_system_does(tmp_path, end):
    assert listed(librimix(tmp_path, codecs.BOM_UTF8 + f"{COLUMNS}{end}{ROW}{end}".encode())) == ["é1"]


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (f"{COLUMNS}\n{ROW}".encode("latin-1"), "is not text in UTF-8 (line 2); save it in UTF-8"),
        (f"{COLUMNS}\n{ROW}".encode("utf-16"), "is text in UTF-16"),
        (f"{COLUMNS}\n{ROW}\0".encode(), "holds a zero byte"),
        (b"", "has no column mixture_ID"),
        (b"\n\n", "has no column mixture_ID"),
        (f"{COLUMNS[11:]}\n{ROW[3:]}".encode(), "has no column mixture_ID"),
        (f"{COLUMNS}\n{'x' * 200_000},a,b,c,1".encode(), "field larger than field limit"),
        (f"{'x' * 100_000}\n1".encode(), "has no column mixture_ID"),
        (f"{COLUMNS}\n{ROW}\n1,,x,y,3".encode(), ":3: has no mixture_path"),
        (f"{COLUMNS}\n1,2".encode(), ":2: has no source_1_path"),
        (bytes(range(1, 256)) * 10, "text in UTF-8"),
        (f'{COLUMNS}\n"{ROW}'.encode(), "has no mixture_path"),
    ],
)
def test_a_faulty_table_of_librimix_is_refused(tmp_path, content, message):
    with pytest.raises(DataError) as error:
        listed(librimix(tmp_path, content))
    assert message in str(error.value)
    assert "mixture_train_mix_clean.csv" in str(error.value)
    assert len(str(error.value)) < 2000


# Slakh


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (f"stems: {{S00: {{inst_class: {'9' * 5000}}}}}".encode(), "does not name the inst_class"),
        (b"stems: {1: {inst_class: Bass}}", "does not name the inst_class"),
        (b"stems: {S00: {inst_class: Bass", "does not name the inst_class"),
        (b"stems: " + b"[" * 5000, "does not name the inst_class"),
        (b"stems: {S00: {inst_class: \xff}}", "is not text in UTF-8"),
        ("stems: {S00: {inst_class: Bass}}".encode("utf-16"), "is text in UTF-16"),
        (b'stems: {"a\\0": {inst_class: Bass}}', "has a path with a zero byte"),
        (b"stems: {../x: {inst_class: Bass}}", "names a stem ../x, which is not a file name"),
        (b"!!python/object/apply:os.system [true]", "does not name the inst_class"),
        (b"2001-99-99", "does not name the inst_class"),
        (b"", "does not name the inst_class"),
        (b"a: &a [*a]", "does not name the inst_class"),
    ],
)
def test_faulty_metadata_of_slakh_is_refused(tmp_path, content, message):
    place = tmp_path / "train" / "Track1"
    write(place / "stems" / "S00.flac", tone(440))
    (place / "metadata.yaml").write_bytes(content)
    with pytest.raises(DataError) as error:
        tracks_of(Slakh, tmp_path, ["bass"])
    assert f"{place}/metadata.yaml: {message}" in str(error.value)


# shards

MEMBER = ["a.x.wav", 512, 100, 8000, 8000, 1, "PCM_16"]


def entry(**changes: Any) -> dict[str, Any]:
    return {"place": "t.tar", "bytes": 1000, "sha256": "0" * 64, "members": [MEMBER], "format": 1, **changes}


def member(**changes: Any) -> dict[str, Any]:
    names = ("name", "offset", "size", "frames", "sample_rate", "channels", "subtype")
    return entry(members=[list({**dict(zip(names, MEMBER, strict=True)), **changes}.values())])


@pytest.mark.parametrize(
    "forged",
    [
        *(member(sample_rate=rate) for rate in (0, -1, 999, 1_000_001, 2**31, 2**63, 1.5, "8000", None, True)),
        *(member(frames=frames) for frames in (-1, 2**63, 2**100, 1e300, [1])),
        *(member(channels=channels) for channels in (0, -1, 65, 2**31)),
        *(member(size=size) for size in (-1, 2**63, 10**30)),
        *(member(offset=offset) for offset in (-1, 2**64)),
        member(name=3),
        member(subtype=None),
        *(entry(bytes=size) for size in (2**64, -1, "x", None, 1e30)),
        *(entry(sha256=digest) for digest in (None, "../../x", 3, "0" * 63)),
        *(entry(place=place) for place in (None, 3, ["a"], "a\0b", "\ud800")),
        *(entry(members=members) for members in (None, 3, [3], [[]], [["a"]], {"a": 1}, [[1, 2, 3, 4, 5, 6, 7, 8]])),
        entry(format="1"),
        entry(more=3),
        [1],
        3,
    ],
    ids=lambda forged: json.dumps(forged)[:60],
)
def test_a_forged_index_is_refused(tmp_path, forged):
    (tmp_path / "index.jsonl").write_text(json.dumps(forged))
    with pytest.raises(DataError, match=r"index.jsonl is (not an index of shards|of another version)"):
        index_of(f"file:{tmp_path}")


@pytest.mark.parametrize("content", [b"\xff\xfe{}", b"[" * 100_000, b"\0", b'{"a": ' + b"9" * 5000 + b"}", b"{}"])
def test_a_file_that_is_not_an_index_is_refused(tmp_path, content):
    (tmp_path / "index.jsonl").write_bytes(content)
    with pytest.raises(DataError, match="is not an index of shards"):
        index_of(f"file:{tmp_path}")


def test_a_sound_index_is_read(tmp_path):
    (tmp_path / "index.jsonl").write_bytes(codecs.BOM_UTF8 + json.dumps(entry()).encode() + b"\r\n\n")
    found = index_of(f"file:{tmp_path}")
    assert isinstance(found, dict)
    assert found["t.tar"].members == [MEMBER]


def forged_tar(path: Path, size: bytes, name: bytes = b"a.x.wav") -> Path:
    """A tar file whose only header claims this size, given as the 12 bytes of the field."""
    header = bytearray(tarfile.TarInfo("a").tobuf())
    header[0 : len(name)] = name
    header[124:136] = size.ljust(12, b"\0")[:12]
    header[148:156] = b" " * 8
    header[148:156] = b"%06o\0 " % sum(header)
    path.write_bytes(bytes(header) + bytes(10_240))
    return path


@pytest.mark.parametrize(
    "size", [b"\x80" + b"\xff" * 11, b"\xff" * 12, b"77777777777", b"\x80\0\0\0\x7f" + b"\xff" * 7, b"-1", b"zzz"]
)
def test_a_tar_that_claims_an_impossible_size_is_refused(tmp_path, size):
    path = forged_tar(tmp_path / "train-0.tar", size)
    with pytest.raises(DataError, match="not readable as an uncompressed tar file"):
        list_contents(path)


def header_of(rate: int, channels: int = 1) -> bytes:
    import struct

    data = bytes(8000)
    form = struct.pack("<HHIIHH", 1, channels, rate, (2 * rate) & 0xFFFFFFFF, 2 * channels, 16)
    return b"RIFF" + struct.pack("<I", 36 + len(data)) + b"WAVEfmt " + struct.pack("<I", 16) + form + b"data" + \
        struct.pack("<I", len(data)) + data  # fmt: skip


@pytest.mark.parametrize("rate", [0, 2_147_483_647, 2**31, 2**32 - 1])
def test_a_member_that_claims_an_impossible_rate_is_refused_by_name(tmp_path, rate):
    pack(tmp_path / "train-0.tar", {**example(1), "songs/02.low.wav": header_of(rate, 2)})
    with pytest.raises(DataError, match=r"songs/02.low.wav: "):
        split_of(tmp_path)


def test_a_forged_list_of_members_of_a_shard_is_replaced(tmp_path):
    pack(tmp_path / "s" / "train-0.tar", example(1))
    cache = CacheConfig(folder=str(tmp_path / "cache"))
    before = split_of(tmp_path / "s", cache=cache).recording(0)
    memories = [path for path in (tmp_path / "cache").rglob("*") if path.is_file() and path.read_bytes()[:1] == b"{"]
    assert len(memories) == 1
    for forged in ("[" * 100_000, "3", json.dumps(member(sample_rate=0)), json.dumps(entry(members=3)), '"\\ud800"'):
        memories[0].write_text(forged)
        again = split_of(tmp_path / "s", cache=cache).recording(0)
        assert all(np.array_equal(a, b) for a, b in zip(again.sources, before.sources, strict=True))


def test_lists_of_members_are_checked_when_they_are_made():
    assert Contents(**entry()).members == [MEMBER]
    with pytest.raises(ValueError, match="0"):
        Contents(**member(sample_rate=0))
    assert shards_data("x").name == "shards"


# names


@pytest.mark.parametrize("name", ["a\0", "\ud800", "a\nb", "\x1b[2J", "a" * 300, "", "..", "a/b", "all"])
def test_a_name_that_cannot_name_a_file_is_refused_for_a_source(name):
    with pytest.raises(UsageError) as error:
        check_sources(["fine", name])
    assert str(error.value).isprintable()
    str(error.value).encode()


def test_names_are_checked_and_escaped():
    check_name("é/漢")
    check_name(os.fsdecode(b"\xff"))  # a file's name in another encoding
    for wrong in ("a\0", "\ud800"):
        with pytest.raises(TextError):
            check_name(wrong)
    assert printable(os.fsdecode(b"a\xff")) == "a\\udcff"
    assert printable("\ud800 é") == "\\ud800 é"


@pytest.mark.parametrize("name", [*SIGNS, os.fsdecode(b"\xff"), "\ud800", "\x1b["])
def test_any_name_is_drawn_as_text(tmp_path, name, recwarn):
    from separate.data.batch import Batch
    from separate.data.doctor.pictures import picture
    from separate.data.doctor.statistics import Group, Split
    from separate.evaluation import report, results
    from separate.evaluation.metrics import METRICS
    from separate.figures import separation_figure
    from separate.separator import Separation
    from separate.stft import STFT

    sources = torch.randn(1, 2, 1, 512)
    batch = Batch(sources.sum(1), sources, ["x"], STFT(64, 32))
    separation = Separation(batch, {"waveforms": sources})
    figure = separation_figure(batch, separation, [name, "b"], 8000)
    figure.savefig(tmp_path / "figure.png")
    texts = [axis.get_title() for axis in figure.axes]
    assert f"{printable(name)}: estimate" in texts
    picture({"train": Split("clips", 1, 1.0, {name: Group(1.0, 1, np.array([-20.0]), 0.5)})}, tmp_path / "info.png")
    rows = [
        results.Row(name, one, method, metric, 1.0)
        for one in (name, "b")
        for method in ("model", "mixture as estimate", "tPSA mask")
        for metric in METRICS
    ]
    found = results.Results([name, "b"], ["model", "mixture as estimate", "tPSA mask"], METRICS, {"data": name})
    found.rows, found.tracks = rows, [name]
    summary = results.write(found, tmp_path / "report")
    for file in ("scores.csv", "summary.json"):
        (tmp_path / "report" / file).read_text("utf-8")
    assert printable(name).replace('"', '""') in (tmp_path / "report" / "scores.csv").read_bytes().decode()
    signals = {one: torch.randn(1, 800) for one in (name, "b")}
    report.page(found, summary, [report.Listening(name, 8000, torch.randn(1, 800), signals, signals)]).encode()


ODD = os.fsdecode(b"sp\xe9aker $^$")


@pytest.fixture
def odd_pools(tmp_path: Path) -> Path:
    """Speakers and clips whose names are not UTF-8, or look like mathematics."""
    for split in ("tr", "cv", "tt"):
        for number, speaker in enumerate((ODD, "$\\frac$")):
            for clip in range(2):
                audio = tone(300 * (number + 1) + 30 * clip, seconds=0.5)
                write(tmp_path / "pools" / split / speaker / f"{ODD} {clip}.wav", audio)
    return tmp_path / "pools"


def run(*arguments: str, cwd: Path, shell: str = "", **environment: str) -> subprocess.CompletedProcess[bytes]:
    """Start a program as a shell does, in this environment."""
    program = Path(sys.executable).parent / arguments[0]
    command = ["sh", "-c", f'"$0" "$@" {shell}', str(program), *arguments[1:]]
    env = {**os.environ, "OMP_NUM_THREADS": "1", **environment}
    return subprocess.run(command, cwd=cwd, capture_output=True, timeout=400, env=env)


ASCII = {"LC_ALL": "C", "PYTHONUTF8": "0", "PYTHONCOERCECLOCALE": "0", "LANG": "C"}


@pytest.mark.slow
@pytest.mark.parametrize("environment", [{}, ASCII], ids=["utf-8", "ascii"])
def test_names_in_no_encoding_pass_through_training_scores_and_separation(tmp_path, odd_pools, environment):
    train = [
        "separate-train", "data=pools", "data.root=pools", "data.excerpt=0.5", "data.workers=0", "data.examples=2",
        "model.units=8", "model.layers=1", "trainer.epochs=1", "trainer.steps_per_epoch=2", "batch_size=2",
        "device=cpu", "run=run",
    ]  # fmt: skip
    for arguments in (
        train,
        ["separate-eval", "run=run"],
        ["separate-infer", "-c", "run", "-o", ODD, f"pools/tt/{ODD}/{ODD} 0.wav"],
        ["separate-data", "check", "data=pools", "data.root=pools"],
        ["separate-data", "info", "data=pools", "data.root=pools"],
        ["separate-train", "--cfg", "job", "model=demucs"],
        ["separate-train", "--help"],
    ):
        done = run(*arguments, cwd=tmp_path, **environment)
        found = 1 if "check" in arguments else 0  # the same speakers are in two splits
        assert done.returncode == found, done.stderr.decode(errors="replace")
        assert b"Traceback" not in done.stderr
        assert b"Error" not in done.stderr
    assert sorted(path.name for path in (tmp_path / ODD / f"{ODD} 0").iterdir()) == ["s1.wav", "s2.wav"]
    assert (tmp_path / "dataset.png").stat().st_size > 0


@pytest.mark.parametrize("closed", [">&-", "2>&-", "<&- >&- 2>&-"])
def test_a_closed_stream_is_not_a_fault_and_no_file_takes_its_place(tmp_path, closed):
    song = write(tmp_path / "song.wav", tone(440))
    done = run("separate-train", *TINY_TOY, "trainer.max_minutes=0.01", "run=run", cwd=tmp_path, shell=closed)
    assert done.returncode == 0, done.stderr
    assert b"Traceback" not in done.stderr
    done = run("separate-infer", "-c", "run", str(song), cwd=tmp_path, shell=closed)
    assert done.returncode == 0, done.stderr
    assert soundfile.info(tmp_path / "separated" / "song" / "voice.wav").frames == 16_000
    for text in ("epoch", "Traceback", "checkpoint: "):
        for file in tmp_path.rglob("*.ckpt"):
            assert not file.read_bytes().startswith(text.encode())


@pytest.mark.parametrize("program", ["separate-train", "separate-eval", "separate-infer", "separate-data"])
def test_help_works_with_a_closed_stream_too(tmp_path, program):
    done = run(program, "--help", cwd=tmp_path, shell=">&-")
    assert done.returncode == 0, done.stderr


def test_a_name_that_the_locale_cannot_write_is_refused_with_the_way_out(tmp_path):
    path = manifest(tmp_path, line(sources={"x": "é.wav", "y": None}), line(id="b", split="valid"))
    done = run(
        "separate-data", "check", "data=manifest", f"data.root={path}", "data.sources=[x,y]", "splits=[train]",
        cwd=tmp_path, **ASCII,
    )  # fmt: skip
    assert done.returncode == 1
    assert b"Traceback" not in done.stderr
    assert b"set LC_ALL=C.UTF-8 or PYTHONUTF8=1" in done.stdout + done.stderr
