"""Small data sets of every layout, and small inputs for the scripts that prepare such data sets."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import imageio_ffmpeg
import numpy as np

from tests.conftest import write
from tests.test_layouts import stem_mp4
from tests.test_scripts import sweep_of
from tests.test_shards import encoded, pack

TRACKS = 2  # in each split
SECONDS = 1.5  # of a track


def signals(name: str, data: Mapping[str, Any], extra: tuple[str, ...] = ()) -> dict[str, np.ndarray]:
    """{source: (T, C) noise} of one track, different for each name; extra: sources beside `data.sources`."""
    rng = np.random.default_rng(list(name.encode()))
    names = dict.fromkeys((*data["sources"], *extra))
    shape = (round(SECONDS * data["sample_rate"]), data["channels"])
    return {source: 0.05 * rng.standard_normal(shape) for source in names}


def tracks_of(data: Mapping[str, Any]) -> list[tuple[str, str]]:
    """[(split's own name, name of the track)]."""
    return [(split, f"{split}-{number}") for split in data["splits"].values() for number in range(TRACKS)]


def write_stems(root: Path, data: Mapping[str, Any]) -> None:
    for split, name in tracks_of(data):
        for source, audio in signals(name, data).items():
            write(root / split / name / f"{source}.wav", audio, data["sample_rate"])


def write_musdb18(root: Path, data: Mapping[str, Any]) -> None:
    for split in ("train", "test"):
        for number in range(TRACKS):
            stem_mp4(ffmpeg_on_path(root.parent), root / split / f"{split}-{number}.stem.mp4")


def ffmpeg_on_path(folder: Path) -> str:
    """ffmpeg of this machine, or that of imageio-ffmpeg under its usual name in FOLDER/bin, on PATH."""
    if found := shutil.which("ffmpeg"):
        return found
    (folder / "bin").mkdir()
    (folder / "bin" / "ffmpeg").symlink_to(imageio_ffmpeg.get_ffmpeg_exe())
    os.environ["PATH"] = f"{folder / 'bin'}{os.pathsep}{os.environ['PATH']}"
    return str(folder / "bin" / "ffmpeg")


def write_slakh(root: Path, data: Mapping[str, Any]) -> None:
    for split, name in tracks_of(data):
        lines = ["stems:"]
        for number, (source, audio) in enumerate(signals(name, data).items()):
            kind = "Strings" if source == "other" else source.capitalize()
            lines += [f"  S{number:02d}:", f"    inst_class: {kind}", "    audio_rendered: true"]
            write(root / split / name / "stems" / f"S{number:02d}.flac", audio, data["sample_rate"])
        (root / split / name / "metadata.yaml").write_text("\n".join(lines) + "\n")


def write_mixtures(root: Path, data: Mapping[str, Any], mixtures: Mapping[str, tuple[str, ...]]) -> None:
    """SPLIT/{MIXTURE,SOURCE}/TRACK.wav; mixtures: {name: the sources beside the speakers}."""
    for split, name in tracks_of(data):
        found = signals(name, data, sum(mixtures.values(), ()))
        speakers = [source for source in found if source != "noise"]
        summed = {mix: sum(found[s] for s in {*speakers, *others}) for mix, others in mixtures.items()}
        for kind, audio in {**found, **summed}.items():
            write(root / split / kind / f"{name}.wav", audio, data["sample_rate"], subtype="FLOAT")


def write_wsj0mix(root: Path, data: Mapping[str, Any]) -> None:
    write_mixtures(root, data, {"mix": ()})


def write_wham(root: Path, data: Mapping[str, Any]) -> None:
    write_mixtures(root, data, {"mix_clean": (), "mix_both": ("noise",)})


def write_librimix(root: Path, data: Mapping[str, Any]) -> None:
    write_wham(root, data)
    speakers = [source for source in data["sources"] if source != "noise"]
    for split in data["splits"].values():
        for mixture, kinds in (("mix_clean", speakers), ("mix_both", [*speakers, "noise"])):
            header = ["mixture_ID", "mixture_path", *(f"source_{k[1:]}_path" for k in speakers)]
            lines = [[*header, *["noise_path"][: mixture == "mix_both"], "length"]]
            for name in (name for own, name in tracks_of(data) if own == split):
                paths = [str(root / split / kind / f"{name}.wav") for kind in (mixture, *kinds)]
                lines.append([name, *paths, str(round(SECONDS * data["sample_rate"]))])
            table = root / "metadata" / f"mixture_{split}_{mixture}.csv"
            table.parent.mkdir(exist_ok=True)
            table.write_text("".join(",".join(line) + "\n" for line in lines))


def write_pools(root: Path, data: Mapping[str, Any]) -> None:
    names = [f"{name}-speaker" for name in data["sources"]] if data["interchangeable"] else data["sources"]
    for split, name in tracks_of(data):
        for pool, audio in zip(names, signals(name, data).values(), strict=True):
            write(root / split / pool / f"{name}.wav", audio, data["sample_rate"])


def write_manifest(root: Path, data: Mapping[str, Any]) -> None:
    """`root` is the manifest; its files lie in a folder beside it."""
    lines = []
    for split, name in tracks_of(data):
        sources = {}
        for source, audio in signals(name, data).items():
            path = write(root.parent / f"{root.name}-files" / name / f"{source}.wav", audio, data["sample_rate"])
            sources[source] = str(path)
        lines.append(json.dumps({"id": name, "split": split, "sources": sources}) + "\n")
    root.write_text("".join(lines))


def write_shards(root: Path, data: Mapping[str, Any]) -> None:
    for pattern in data["splits"].values():
        place = root / pattern.replace("*", "000000")
        members = {}
        for name in (f"{place.stem}-{number}" for number in range(TRACKS)):
            for source, audio in signals(name, data).items():
                members[f"{name}.{source}.wav"] = encoded(audio, rate=data["sample_rate"])
        pack(place, members)


def write_takes(root: Path, data: Mapping[str, Any]) -> None:
    """The layout that separate/data/layouts/README.md adds."""
    for _, name in tracks_of(data):
        for source, audio in signals(name, data).items():
            write(root / f"{name}.{source}.wav", audio, data["sample_rate"])


WRITERS: dict[str, Callable[[Path, Mapping[str, Any]], None]] = {
    "stems": write_stems,
    "musdb18": write_musdb18,
    "slakh": write_slakh,
    "wsj0mix": write_wsj0mix,
    "wham": write_wham,
    "librimix": write_librimix,
    "pools": write_pools,
    "manifest": write_manifest,
    "shards": write_shards,
    "takes": write_takes,
}


def write_data(layout: str, root: Path, data: Mapping[str, Any]) -> None:
    """A data set of a layout; data: its section of the configuration."""
    root.parent.mkdir(parents=True, exist_ok=True)
    WRITERS[layout](root, data)


# ------------------------------------------------------------------------------------------- inputs of the scripts --


def noise(path: Path, seconds: float = SECONDS, rate: int = 8000) -> None:
    rng = np.random.default_rng(list(path.name.encode()))
    write(path, 0.05 * rng.standard_normal((round(seconds * rate), 1)), rate)


def fsdd(recordings: Path, out: Path) -> None:
    for speaker in ("george", "lucas", "theo"):
        for take in (0, 1, 10, 11, 15, 16):
            noise(recordings / f"3_{speaker}_{take}.wav", 0.5)


def wsj0(root: Path, *lists_and_out: Path) -> None:
    for path in lists_and_out[:-1]:
        files = [f"{path.stem}/{name}.wav" for name in ("a", "b")]
        for name in files:
            noise(root / name)
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(f"{files[0]} 1.2 {files[1]} -1.2\n")


def librispeech(root: Path, *tables_and_out: Path) -> None:
    for path in tables_and_out[:-1]:
        files = [f"{path.stem}/{name}.flac" for name in ("a", "b")]
        for name in files:
            noise(root / name)
        path.parent.mkdir(parents=True, exist_ok=True)
        columns = "mixture_ID,source_1_path,source_1_gain,source_2_path,source_2_gain\n"
        path.write_text(f"{columns}{path.stem},{files[0]},0.5,{files[1]},0.4\n")


def sweep(folder: Path, *_: Path) -> None:
    sweep_of(folder, {("tpsa", 0): 8.0, ("tpsa", 1): 10.0, ("msa", 0): 3.0})


INPUTS: dict[str, Callable[..., None]] = {
    "prepare_fsdd.py": fsdd,
    "prepare_wsj0mix.py": wsj0,
    "prepare_librimix.py": librispeech,
    "sweep_table.py": sweep,
}
