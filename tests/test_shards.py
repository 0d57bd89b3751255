"""Tar shards: the layout with its peculiarities, drawing from a few shards at a time, and fetching from a URL."""

import functools
import http.server
import io
import json
import shutil
import tarfile
import threading
import time
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import soundfile
import torch

from separate import checkpoint
from separate.cli import data as data_program
from separate.cli import evaluate as evaluate_program
from separate.cli import train as train_program
from separate.compose import data_config
from separate.config import CacheConfig
from separate.data import open_split
from separate.data.loader import TrainingSteps, load
from separate.data.storage.download import ShardCopies
from separate.data.storage.quota import clear, evict, evict_shards
from separate.errors import DataError, UsageError
from separate.stft import STFT
from tests.conftest import TINY, target, tone, write
from tests.test_scripts import run

CPU, STFTS = torch.device("cpu"), STFT(256, 64)
SPLITS = {"train": "train-*.tar", "valid": "train-*.tar", "test": "train-*.tar"}


def encoded(audio: np.ndarray, kind: str = "WAV", subtype: str | None = None, rate: int = 8000) -> bytes:
    buffer = io.BytesIO()
    soundfile.write(buffer, audio, rate, subtype, format=kind)
    return buffer.getvalue()


def pack(place: Path, members: dict[str, bytes]) -> Path:
    place.parent.mkdir(parents=True, exist_ok=True)
    with tarfile.open(place, "w") as tar:
        for name, content in members.items():
            info = tarfile.TarInfo(name)
            info.size = len(content)
            tar.addfile(info, io.BytesIO(content))
    return place


def example(number: int, seconds: float = 1.0) -> dict[str, bytes]:
    """Two stems, one of them FLAC, and other files that a shard may hold."""
    rng = np.random.default_rng(number)
    low, high = 0.1 * rng.standard_normal((2, round(seconds * 8000), 2))
    key = f"songs/{number:02d}"
    return {
        f"{key}.low.wav": encoded(low),
        f"{key}.high.flac": encoded(high, "FLAC"),
        f"{key}.json": b"{}",
        f"songs/._{number:02d}.low.wav": b"of a file browser",
    }


@pytest.fixture
def shards(tmp_path):
    """Six shards of three or two examples."""
    for number in range(6):
        count = 3 if number < 5 else 2
        pack(
            tmp_path / "shards" / f"train-{number:06d}.tar",
            {name: content for one in range(count) for name, content in example(10 * number + one).items()},
        )
    return tmp_path / "shards"


def data(root, **changes):
    values = {
        "_target_": target("shards"),
        "root": str(root),
        "sources": ["low", "high"],
        "sample_rate": 8000,
        "channels": 2,
    }
    return data_config({**values, "excerpt": 0.5, "splits": SPLITS, **changes})


def split_of(root, split="train", cache=None, **changes):
    return open_split(data(root, **changes), split, 0, cache, STFTS)


def in_folder(path, **options):
    return CacheConfig(folder=str(path), **options)


def refused(*arguments, **options):
    with pytest.raises((DataError, UsageError)) as caught:
        split_of(*arguments, **options)
    return str(caught.value)


def batches(examples, steps=8, workers=0):
    drawn = TrainingSteps(examples, 4, seed=0)
    return [(one.tracks, one.to(CPU, STFTS).sources) for one in load(drawn, range(steps), workers, pin=False)]


def assert_same(one, other):
    for (tracks, sources), (others, their_sources) in zip(one, other, strict=True):
        assert tracks == others
        assert torch.equal(sources, their_sources)


class Server(http.server.ThreadingHTTPServer):
    """An HTTP server of a folder on loopback, and the list of its requests."""

    def __init__(self, folder: Path) -> None:
        self.asked: list[str] = []
        asked = self.asked

        class Handler(http.server.SimpleHTTPRequestHandler):
            def log_message(self, *_):
                asked.append(self.path)

        super().__init__(("127.0.0.1", 0), functools.partial(Handler, directory=str(folder)))
        self.url = f"http://127.0.0.1:{self.server_address[1]}"

    def shards_asked(self) -> list[str]:
        return [path for path in self.asked if path.endswith(".tar")]


@pytest.fixture
def server(shards):
    with Server(shards) as running:
        thread = threading.Thread(target=running.serve_forever)
        thread.start()
        yield running
        running.shutdown()
        thread.join()


def test_examples_are_what_was_packed(shards):
    examples = split_of(shards)
    assert len(examples) == 2 * 17 and examples.recordings == 17
    for index, number in ((0, 0), (3, 10), (16, 51)):
        found = examples.recording(index)
        assert found.track == f"train-{number // 10:06d}/songs/{number:02d}"
        parts = example(number)
        wanted = [
            soundfile.read(io.BytesIO(parts[f"songs/{number:02d}.{name}"]), dtype="float32")[0].T
            for name in ("low.wav", "high.flac")
        ]
        np.testing.assert_array_equal(found.samples[1:], wanted)
        np.testing.assert_array_equal(found.samples[0], wanted[0] + wanted[1])


@pytest.mark.parametrize(
    ("kind", "subtype"), [("WAV", "PCM_16"), ("WAV", "FLOAT"), ("FLAC", "PCM_24"), ("OGG", "VORBIS"), ("MP3", None)]
)
def test_spans_of_members_are_those_of_files(kind, subtype, tmp_path):
    audio = tone(440, 1.5, channels=2)
    content = encoded(audio, kind, subtype)
    name = f"a.low.{kind.lower()}"
    pack(tmp_path / "s" / "train-0.tar", {"first.txt": b"odd", name: content, f"a.high.{kind.lower()}": content})
    (tmp_path / "f" / "train" / "a").mkdir(parents=True)
    for stem in ("low", "high"):
        (tmp_path / "f" / "train" / "a" / f"{stem}.{kind.lower()}").write_bytes(content)
    values = {key: value for key, value in vars(data(tmp_path / "f")).items() if key != "window"}
    files = data_config({**values, "_target_": target("stems"), "splits": dict.fromkeys(SPLITS, "train")})
    for rate in (8000, 11025):
        packed = open_split(replace(data(tmp_path / "s"), sample_rate=rate), "test")
        plain = open_split(replace(files, sample_rate=rate), "test")
        for index in range(len(plain)):
            np.testing.assert_array_equal(packed.fixed(index).samples, plain.fixed(index).samples)


def test_a_key_may_hold_more_than_the_sources_and_a_mixture_of_its_own(tmp_path):
    audio = [tone(frequency, channels=2) for frequency in (200, 900, 3000)]
    names = ("low.wav", "high.wav", "mixture.wav", "hum.wav")
    members = {
        f"a.{name}": encoded(part, subtype="FLOAT") for name, part in zip(names, [*audio, audio[0]], strict=True)
    }
    pack(tmp_path / "train-0.tar", members)
    own = split_of(tmp_path, mixture="file").recording(0)
    np.testing.assert_allclose(own.samples[0], audio[2].T, atol=1e-7)
    summed = split_of(tmp_path).recording(0)
    np.testing.assert_allclose(summed.samples[0], (audio[0] + audio[1]).T, atol=1e-7)


def test_all_faults_of_shards_are_named_at_once(shards):
    whole = (shards / "train-000000.tar").read_bytes()
    (shards / "train-000001.tar").write_bytes(whole[: len(whole) // 2])
    (shards / "train-000002.tar").write_bytes(whole[:-10240].rstrip(b"\0"))
    with tarfile.open(shards / "train-000003.tar", "w:gz") as tar:
        tar.add(shards / "train-000000.tar", "inner")
    parts = example(7)
    pack(shards / "train-000004.tar", {"7.low.wav": parts["songs/07.low.wav"], "7.wav": parts["songs/07.low.wav"]})
    pack(
        shards / "train-000005.tar",
        {
            "8.low.wav": parts["songs/07.low.wav"][:1000],
            "8.high.wav": b"no audio",
            "9.low.wav": encoded(tone(300, 1.0)),
            "9.high.wav": encoded(tone(300, 0.9)),
        },
    )
    message = refused(shards)
    for words in (
        "train-000001.tar: not readable as an uncompressed tar file",
        "train-000002.tar: not readable as an uncompressed tar file",
        "train-000003.tar: not readable as an uncompressed tar file",
        "train-000004.tar: 7 has no high (it has 7.low.wav, 7.wav)",
        "train-000005.tar: 8.low.wav: truncated",
        "train-000005.tar: 8.high.wav: not readable as audio",
        "train-000005.tar: 9: lengths in samples differ: train-000005.tar/9.low.wav 8000 at 8000 Hz",
    ):
        assert words in message
    assert "train-000000.tar" not in message


def test_a_nan_is_found_by_shard_and_name(tmp_path):
    audio = tone(300, channels=2)
    audio[5000] = np.nan
    pack(
        tmp_path / "train-0.tar",
        {"a.low.wav": encoded(audio, subtype="FLOAT"), "a.high.wav": encoded(tone(300, channels=2))},
    )
    with pytest.raises(DataError, match="train-0.tar/a.low.wav: NaN or infinite sample at 5000"):
        split_of(tmp_path, "test").recording(0)


def test_missing_shards_are_named(shards, tmp_path):
    assert f"data.root={tmp_path / 'none'} is not a folder" in refused(tmp_path / "none")
    splits = {**SPLITS, "train": "train-{000000..000009}.tar"}
    assert "train-000006.tar is missing: the train split has no shard of that name" in refused(shards, splits=splits)
    splits = {**SPLITS, "train": "training-*.tar"}
    assert "(tar files there: train-000000.tar, train" in refused(shards, splits=splits)
    assert "a brace that is not closed" in refused(shards, splits={**SPLITS, "train": "train-{0..9.tar"})
    (shards / "index.jsonl").write_text("beside them")
    values = {key: value for key, value in vars(data(shards)).items() if key != "window"}
    with pytest.raises(DataError) as caught:
        open_split(data_config({**values, "_target_": target("stems")}), "train")
    looks = str(caught.value)
    assert f"{shards} looks like data=shards data.root={shards} 'data.sources=[high,low]'" in looks


def test_a_pass_holds_every_example_once_and_opens_few_shards_at_a_time(tmp_path):
    for number in range(20):
        members = {f"{one}.{stem}.wav": encoded(tone(300, 0.5)) for one in range(12) for stem in ("low", "high")}
        pack(tmp_path / f"train-{number:02d}.tar", members)
    examples = split_of(tmp_path, channels=1, window=3)
    orders = [examples.order(np.random.default_rng(seed)) for seed in range(2)]
    assert not np.array_equal(*orders)
    for order in orders:
        assert sorted(order.tolist()) == list(range(240))
        shard = order // 12
        places = [np.flatnonzero(shard == number) for number in range(20)]
        first, last = (np.array([edge(place) for place in places]) for edge in (np.min, np.max))
        open_at_once = [int(((first <= place) & (place <= last)).sum()) for place in range(240)]
        assert max(open_at_once) <= 4 and np.mean(open_at_once) > 2  # windows of 3; the first and the last in part
    mixed = split_of(tmp_path, channels=1, coherent=0.0)
    for index in range(0, 240, 7):
        names = mixed.draw(index, np.random.default_rng(index)).track.split("+")
        assert len({name.partition("/")[0] for name in names}) == 1


@pytest.mark.parametrize("workers", [0, 2])
def test_batches_from_a_url_are_those_from_the_folder(shards, server, tmp_path, workers):
    wanted = batches(split_of(shards, window=1))
    done = run("prepare_shards.py", str(shards))
    assert done.returncode == 0, done.stderr
    room = sum(path.stat().st_size for path in shards.glob("*.tar"))
    for limit in (None, 0.8 * room / 1e9):
        cache = in_folder(tmp_path / f"cache {limit}", limit=limit)
        examples = split_of(server.url, cache=cache, window=1)
        assert not server.shards_asked()  # the index lists their members
        assert_same(batches(examples, workers=workers), wanted)
        kept = sum(path.stat().st_size for path in (tmp_path / f"cache {limit}" / "shards").glob("*.tar"))
        assert 0 < kept <= (limit or 1) * 1e9
        assert len(server.shards_asked()) >= 6 and (limit or len(server.shards_asked()) == 6)
        server.asked.clear()


def test_without_an_index_shards_are_fetched_once_to_be_listed(shards, server, tmp_path):
    cache = in_folder(tmp_path / "cache")
    message = refused(server.url, cache=cache)
    assert (
        "index.jsonl could not be read (the program that reads it ended with status 22), and without an index"
        in message
    )
    splits = {**SPLITS, "train": "train-{000000..000005}.tar"}
    examples = split_of(server.url, cache=cache, splits=splits)
    assert sorted(server.shards_asked()) == [f"/train-{number:06d}.tar" for number in range(6)]
    assert_same(batches(examples), batches(split_of(shards)))
    split_of(server.url, cache=cache, splits=splits)
    assert len(server.shards_asked()) == 6
    splits = {**SPLITS, "train": "train-{000000..000006}.tar"}
    message = refused(server.url, cache=cache, splits=splits)
    assert f"{server.url}/train-000006.tar could not be downloaded (the program that reads it ended with" in message
    assert not list((tmp_path / "cache").rglob("*.part"))


def test_a_missing_curl_is_named(server, tmp_path, monkeypatch):
    monkeypatch.setenv("PATH", "")
    message = refused(server.url, cache=in_folder(tmp_path / "cache"))
    assert "index.jsonl could not be read (curl is not installed)" in message


def test_a_shard_that_changed_after_it_was_listed_is_not_read(shards, server, tmp_path):
    assert run("prepare_shards.py", str(shards)).returncode == 0
    examples = split_of(server.url, cache=in_folder(tmp_path / "cache"))
    pack(shards / "train-000000.tar", example(99))
    with pytest.raises(DataError, match="train-000000.tar has changed since it was listed"):
        examples.recording(0)
    server.shutdown()
    server.server_close()
    with pytest.raises(DataError, match="train-000001.tar could not be downloaded"):
        examples.recording(3)


def test_evicted_shards_are_fetched_again(shards, server, tmp_path):
    assert run("prepare_shards.py", str(shards)).returncode == 0
    cache = in_folder(tmp_path / "cache")
    examples = split_of(server.url, cache=cache)
    first = examples.recording(0).samples
    (copy,) = (tmp_path / "cache" / "shards").glob("*.tar")
    copy.unlink()
    np.testing.assert_array_equal(examples.recording(0).samples, first)
    assert len(server.shards_asked()) == 2
    copy.unlink()
    copy.with_name(f"{copy.name}.contents").unlink()
    with pytest.raises(DataError, match="the list of members of .* was deleted; start again"):
        examples.recording(0)


def test_shards_that_do_not_fit_together_are_refused(shards, server, tmp_path):
    assert run("prepare_shards.py", str(shards)).returncode == 0
    message = refused(server.url, cache=in_folder(tmp_path / "cache", limit=1e-4))
    assert "data.window=4 needs" in message and "has cache.limit=0.0001 GB" in message


@pytest.mark.parametrize("kind", ["audio", "spectrogram"])
@pytest.mark.parametrize("content", [False, True])
def test_caches_work_on_shards_wherever_they_are(kind, content, shards, server, tmp_path):
    assert run("prepare_shards.py", str(shards)).returncode == 0
    wanted = batches(split_of(shards), steps=3)
    for root in (shards, server.url):
        cache = in_folder(tmp_path / "cache", kind=kind, content=content)
        for _ in range(2):
            found = TrainingSteps(split_of(root, cache=cache), 4, seed=0)
            for step, (tracks, sources) in enumerate(wanted):
                batch = found[step].to(CPU, STFTS)
                assert batch.tracks == tracks
                if kind == "audio":
                    assert torch.equal(batch.sources, sources)
                else:
                    assert torch.allclose(batch.source_spectrograms, STFTS(sources), atol=1e-6)
    asked = len(server.shards_asked())
    for copy in (tmp_path / "cache" / "shards").glob("*.tar"):
        copy.unlink()
    split_of(server.url, cache=in_folder(tmp_path / "cache", kind=kind, content=content)).recording(0)
    assert len(server.shards_asked()) == asked  # the arrays are all that is read
    pack(shards / "train-000000.tar", example(99) | example(1) | example(2))
    changed = split_of(shards, cache=in_folder(tmp_path / "cache", kind=kind, content=content)).recording(2).samples
    np.testing.assert_array_equal(changed, split_of(shards).recording(2).samples)


def test_activity_is_known_of_shards(shards, server, tmp_path):
    assert run("prepare_shards.py", str(shards)).returncode == 0
    for root in (shards, server.url):
        examples = split_of(root, cache=in_folder(tmp_path / "cache"), min_activity=0.5)
        assert examples.draw(0, np.random.default_rng(0)).rejected == 0


def test_a_command_can_be_a_url_and_is_never_taken_from_a_checkpoint(shards, call, tmp_path):
    shutil.copytree(shards, tmp_path / "valid")
    root = f"pipe:cat {shards}"
    splits = "'data.splits={" + ",".join(f'{name}: "train-{{000000..000005}}.tar"' for name in SPLITS) + "}'"
    named = ["data=shards", f"'data.root={root}'", "data.sources=[low,high]", splits]
    named = [word.strip("'") for word in named]
    shape = ["data.sample_rate=8000", "data.excerpt=0.5", "stft=speech", f"cache.folder={tmp_path / 'cache'}"]
    fast = ["debug=fast", *TINY, "data.workers=0", "run=run"]
    code, _, err = call(train_program, *named, *shape, *fast, cwd=tmp_path)
    assert code == 0, err
    for program, arguments in (
        (evaluate_program, ["run=run"]),
        (evaluate_program, ["run=run", f"data.root={root}"]),
        (train_program, ["run=run", "resume=true", "trainer.epochs=2"]),
    ):
        code, _, err = call(program, *arguments, cwd=tmp_path)
        assert code == 2 and "a checkpoint may not run commands" in err
    code, _, err = call(train_program, *named, "run=run", "resume=true", "trainer.epochs=2", cwd=tmp_path)
    assert code == 0, err
    code, _, err = call(evaluate_program, *named, *shape[:2], "run=run", "device=cpu", cwd=tmp_path)
    assert code == 0, err


def test_the_doctor_and_the_survey_read_shards(shards, server, call, tmp_path):
    audio = tone(300, channels=2)
    pack(
        shards / "test-0.tar",
        {"a.low.wav": encoded(audio), "a.high.wav": encoded(0 * audio), "a.mixture.wav": encoded(audio)},
    )
    pack(
        shards / "valid-0.tar",
        {"b.low.wav": encoded(audio), "b.high.wav": encoded(tone(900, channels=2)), "b.mixture.wav": encoded(audio)},
    )
    assert run("prepare_shards.py", str(shards)).returncode == 0
    for root in (str(shards), server.url):
        arguments = ["data=shards", f"data.root={root}", "data.sources=[low,high]", "data.sample_rate=8000"]
        arguments += ["data.excerpt=0.5", f"cache.folder={tmp_path / 'cache'}"]
        code, out, _ = call(data_program, "check", *arguments, "--json", cwd=tmp_path)
        found = {(one["kind"], one["split"]): one["places"] for one in json.loads(out)}
        assert code == 1 and set(found) == {
            ("silent", "test"),
            ("sum", "valid"),
            ("same audio in two splits", "valid, test"),
        }
        assert found["silent", "test"][0].endswith("test-0.tar/a.high.wav: all of it")
        assert "high is not in it" in found["sum", "valid"][0]
        code, out, err = call(data_program, "info", *arguments, "--json", cwd=tmp_path)
        assert code == 0, err
        assert json.loads(out)["train"]["tracks"] == 17


def test_copies_are_described_verified_and_cleared(shards, server, call, tmp_path):
    assert run("prepare_shards.py", str(shards)).returncode == 0
    examples = split_of(server.url, cache=in_folder(tmp_path / "cache"))
    for index in range(examples.recordings):
        examples.recording(index)
    where = f"cache.folder={tmp_path / 'cache'}"
    assert "downloaded shards: 6, " in call(data_program, "cache", "info", where, cwd=tmp_path)[1]
    copy = next((tmp_path / "cache" / "shards").glob("*.tar"))
    content = bytearray(copy.read_bytes())
    content[2000] ^= 1
    copy.write_bytes(content)
    code, out, _ = call(data_program, "cache", "verify", where, cwd=tmp_path)
    assert code == 1 and "6 entries" in out and f"dropped {copy}" in out and not copy.exists()
    assert "5 entries dropped" in call(data_program, "cache", "clear", where, cwd=tmp_path)[1]
    assert not (tmp_path / "cache" / "shards").exists()


def test_several_processes_fetch_a_shard_once(shards, server, tmp_path):
    assert run("prepare_shards.py", str(shards)).returncode == 0
    cache = in_folder(tmp_path / "cache")
    examples = split_of(server.url, cache=cache)
    threads = [threading.Thread(target=examples.recording, args=(0,)) for _ in range(6)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(server.shards_asked()) == 1
    assert ShardCopies(tmp_path / "cache", None).exists(examples.files[0])


def test_shards_of_a_layout_hold_the_same_recordings(tmp_path):
    """Slakh2100's sums of stems and a manifest's parts of files are rendered, single files are copied."""
    folder = tmp_path / "slakh" / "train" / "Track 1.a"
    stems = {"S00": ("Bass", 100), "S01": ("Piano", 700), "S02": ("Piano", 900)}
    for stem, (_, frequency) in stems.items():
        write(folder / "stems" / f"{stem}.flac", tone(frequency))
    kinds = "".join(f"  {stem}: {{inst_class: {kind}, audio_rendered: true}}\n" for stem, (kind, _) in stems.items())
    (folder / "metadata.yaml").write_text(f"stems:\n{kinds}")
    shutil.copytree(tmp_path / "slakh" / "train", tmp_path / "slakh" / "validation")
    shutil.copytree(tmp_path / "slakh" / "train", tmp_path / "slakh" / "test")
    words = ["data=slakh", f"data.root={tmp_path / 'slakh'}", "data.sources=[bass,piano]", "data.sample_rate=8000"]
    done = run("prepare_shards.py", str(tmp_path / "out"), *words)
    assert done.returncode == 0, done.stderr
    assert "3 shards and index.jsonl" in done.stdout
    with tarfile.open(tmp_path / "out" / "train-000000.tar") as tar:
        assert tar.getnames() == ["Track 1_a.bass.flac", "Track 1_a.piano.wav"]
    splits = {"splits": {"train": "train-*.tar", "valid": "valid-*.tar", "test": "test-*.tar"}}
    found = split_of(tmp_path / "out", sources=["bass", "piano"], channels=1, **splits).recording(0)
    np.testing.assert_allclose(found.samples[2], (tone(700) + tone(900)).T[:1], atol=1e-4)

    manifest = tmp_path / "manifest.jsonl"
    write(tmp_path / "long.wav", np.concatenate([tone(200), tone(400)]))
    lines = [{"id": split, "split": split, "sources": {"a": "long.wav", "b": None}, "start": 1.0, "duration": 2.0}
             for split in SPLITS]  # fmt: skip
    manifest.write_text("\n".join(map(json.dumps, lines)))
    words = ["data=manifest", f"data.root={manifest}", "data.sources=[a,b]", "data.sample_rate=8000"]
    done = run("prepare_shards.py", str(tmp_path / "parts"), *words, "data.channels=1")
    assert done.returncode == 0, done.stderr
    found = split_of(tmp_path / "parts", sources=["a", "b"], channels=1, **splits).recording(0).samples
    np.testing.assert_allclose(found[1], np.concatenate([tone(200), tone(400)])[8000:24000].T, atol=1e-4)
    assert not found[2].any()


def test_packing_continues_where_it_was_stopped_and_names_faults(stems, tmp_path):
    shutil.copytree(stems / "test", stems / "valid")
    words = [str(tmp_path / "out"), "--megabytes", "0.3", "data=stems", f"data.root={stems}", "data.sources=[low,high]"]
    assert run("prepare_shards.py", *words).returncode == 0
    files = sorted((tmp_path / "out").iterdir())
    before = {path: path.read_bytes() for path in files}
    assert len(files) == 7  # four of train, one of valid, one of test, and the index
    files[3].unlink()
    times = {path: path.stat().st_mtime_ns for path in files if path.exists() and path.suffix == ".tar"}
    time.sleep(0.01)
    assert run("prepare_shards.py", *words).returncode == 0
    assert {path: path.read_bytes() for path in files} == before
    assert {path: path.stat().st_mtime_ns for path in times} == times
    for wrong, sentence in (("data=pools", "name a layout whose mixtures lie in files"), ("data=stemz", "stemz")):
        done = run("prepare_shards.py", str(tmp_path / "no"), wrong, f"data.root={stems}")
        assert done.returncode != 0 and sentence in done.stderr


def test_a_checkpoint_of_shards_names_no_copy(shards, call, tmp_path):
    arguments = [
        "data=shards",
        f"data.root={shards}",
        "data.sources=[low,high]",
        "data.sample_rate=8000",
        "stft=speech",
    ]
    splits = ["data.splits.valid=train-000000.tar", "data.splits.test=train-000001.tar", "data.excerpt=0.5"]
    code, _, err = call(train_program, *arguments, *splits, "debug=fast", *TINY, "run=run", cwd=tmp_path)
    assert code == 0, err
    assert checkpoint.read(tmp_path / "run" / "checkpoints" / "best.ckpt")["config"]["data"]["root"] == str(shards)
    code, out, err = call(evaluate_program, "run=run", "device=cpu", cwd=tmp_path)
    assert code == 0 and "scores:" in out, err


def test_a_shard_evicted_between_fetching_and_reading_is_fetched_again(shards, server, tmp_path):
    assert run("prepare_shards.py", str(shards)).returncode == 0
    examples = split_of(server.url, cache=in_folder(tmp_path / "cache"))
    wanted = examples.recording(0).samples
    fetch, drops = examples.reader.fetch, iter([True, False, True])

    def fetch_and_drop(path):
        fetch(path)
        if next(drops, False):
            next((tmp_path / "cache" / "shards").glob("*.tar")).unlink()

    examples.reader.fetch = fetch_and_drop
    np.testing.assert_array_equal(examples.recording(0).samples, wanted)
    assert next(drops, None) is None


def test_only_files_made_by_separate_are_evicted(shards, server, tmp_path):
    """The cache's folder may be one in which somebody keeps shards of their own."""
    assert run("prepare_shards.py", str(shards)).returncode == 0
    root = tmp_path / "mine"
    shutil.copytree(shards, root / "shards")
    write(root / "decoded" / "song" / "vocals.wav", tone(300))
    before = sorted(root.rglob("*"))
    for limit in (0.0, None):
        evict(root, limit)
        evict_shards(root, 10**15)
    clear(root)
    assert sorted(root.rglob("*")) == before


def test_a_false_index_writes_nothing_outside_the_cache(shards, server, tmp_path):
    assert run("prepare_shards.py", str(shards)).returncode == 0
    lines = [json.loads(line) for line in (shards / "index.jsonl").read_text().splitlines()]
    for change in ({"sha256": "../../../../x" + "0" * 51}, {"members": [["a.low.wav", "x", 3]]}, {"bytes_": 1}):
        (shards / "index.jsonl").write_text(json.dumps({**lines[0], **change}))
        message = refused(server.url, cache=in_folder(tmp_path / "cache"))
        assert f"{server.url}/index.jsonl is not an index of shards" in message
    (shards / "index.jsonl").write_text(json.dumps({**lines[0], "format": 0}))
    assert "is of another version of separate" in refused(server.url, cache=in_folder(tmp_path / "cache"))
    assert not list(tmp_path.rglob("*.contents"))


def test_duplicate_names_are_refused(shards, stems, tmp_path):
    name, content = "00.low.wav", encoded(tone(300, channels=2))
    with tarfile.open(shards / "train-000000.tar", "w") as tar:
        for _ in range(2):
            info = tarfile.TarInfo(name)
            info.size = len(content)
            tar.addfile(info, io.BytesIO(content))
    assert "train-000000.tar: 00 has low twice" in refused(shards)
    (shards / "train-000000.tgz").write_bytes(b"")
    splits = {**SPLITS, "train": "train-000000.t*"}
    assert "train-000000.tgz is not a .tar file" in refused(shards, splits=splits)
    for name in ("a.b", "a_b"):
        shutil.copytree(stems / "train" / "song 00", stems / "train" / name)
    shutil.copytree(stems / "test", stems / "valid")
    words = ["data=stems", f"data.root={stems}", "data.sources=[low,high]"]
    assert "train has two tracks named a_b" in run("prepare_shards.py", str(tmp_path / "out"), *words).stderr
    shutil.rmtree(stems / "train" / "a_b")
    assert run("prepare_shards.py", str(tmp_path / "out"), *words).returncode == 0
    done = run("prepare_shards.py", str(tmp_path / "out"), *words, "--megabytes", "0.3")
    assert done.returncode != 0 and "train-000000.tar does not hold the tracks of this data set" in done.stderr
