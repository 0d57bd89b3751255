"""Forged checkpoints: refused at once, in a sentence, before memory or time is spent on them."""

from __future__ import annotations

import copy
import os
import pickle
import subprocess
import sys
import time
import zipfile
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path
from typing import Any

import pytest
import torch

import separate
import separate.cli.evaluate
import separate.cli.infer
import separate.cli.train
from separate import checkpoint
from separate.compose import data_config
from separate.config import shipped
from separate.data import open_split
from separate.errors import UsageError
from separate.parts import build_separator
from tests.conftest import tone, write
from tests.test_config import composed
from tests.tiny import MODELS, config_of

Change = Callable[[dict[str, Any]], Any]


@pytest.fixture(scope="module")
def sound() -> dict[str, Any]:
    """The contents of a valid checkpoint."""
    config = asdict(composed("model.units=16", "model.layers=1", "device=cpu"))
    return {
        "config": config,
        "model": build_separator(config).state_dict(),
        "training": {},
        "examples": {split: len(open_split(data_config(config["data"]), split)) for split in ("train", "valid")},
        "versions": {},
    }


@pytest.fixture
def forged(sound, tmp_path) -> Callable[[Change], Path]:
    """A checkpoint file whose contents a function has changed."""

    def make(change: Change) -> Path:
        contents = copy.deepcopy(sound)
        change(contents)
        checkpoint.save(tmp_path / "forged.ckpt", contents)
        return tmp_path / "forged.ckpt"

    return make


def put(where: str, value: Any) -> Change:
    """Set a dotted key."""

    def change(contents: dict[str, Any]) -> None:
        *sections, name = where.split(".")
        for section in sections:
            contents = contents[section]
        contents[name] = value

    return change


def test_an_unchanged_checkpoint_is_loaded(forged):
    assert separate.load(forged(lambda contents: None)).sources == ["voice", "chords", "drums"]


TANGLED: list[Any] = []
for _ in range(40):
    TANGLED = [TANGLED, TANGLED]  # 2^40 values in a file of a few hundred bytes
DEEP: list[Any] = []
for _ in range(200):
    DEEP = [DEEP]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (put("config.model.units", 20_000), "more than the checkpoint holds"),
        (put("config.model.units", 15), "weight_ih_l0 is (64, 129) and must be (60, 129)"),
        (put("config.model.layers", 2), "more than the checkpoint holds"),
        (put("config.model.layers", 10**9), "more than the checkpoint holds"),
        (put("config.model.units", 10**18), "model: "),
        (put("config.model.units", 10**21), "must be a finite number of at most 64 bits"),
        (put("config.model.units", float("nan")), "model.units=nan must be an integer"),
        (put("config.model.mels", 10**9), "mels=1000000000 must lie between 1 and the number of bins"),
        (put("config.stft.n_fft", 2**40), "stft.n_fft=1099511627776 must be at least 2 and at most 1048576 samples"),
        (put("config.stft.n_fft", "256"), "stft.n_fft=256 must be an integer"),
        (put("config.stft", [1]), "stft=[1] must be a section of keys"),
        (put("config.data.sample_rate", 2**31), "data.sample_rate=2147483648 must be at least 1 and at most"),
        (put("config.data.channels", 10**6), "data.channels=1000000 must be at least 1 and at most 1024"),
        (put("config.data.sources", [f"s{n}" for n in range(1_000_000)]), "is not a checkpoint"),
        (put("config.data.sources", [f"s{n}" for n in range(20_000)]), "holds more than 10000 values"),
        (put("config.data.sources", [f"s{n}" for n in range(2000)]), "names 2000 sources"),
        (put("config.data.sources", "voice"), "data.sources=voice must be a list of names"),
        (put("config.data.sources", ["a", "b\ud800", "c"]), "data.sources holds a zero byte or invalid Unicode"),
        (put("config.data.sources", ["a", "x" * 300, "c"]), "cannot be the name of a source"),
        (put("config.outputs", 10**9), "outputs=1000000000 must be at least 2 and at most 1000"),
        (put("config.consistency", "${oc.env:HOME}"), "consistency=${oc.env:HOME} is an interpolation"),
        (put("config.data.root", "${oc.env:HOME}"), "data.root=${oc.env:HOME} is an interpolation"),
        (put("config.model.activation", "${oc.env:HOME}"), "model.activation=${oc.env:HOME} is an interpolation"),
        (put("config.licence", TANGLED), "holds more than 10000 values"),
        (put("config.licence", DEEP), "20 levels"),
        (put("config.data", None), "data=null must be a section"),
        (put("config.model", None), "model=null must be a section"),
        (put("config", [1]), "its configuration is not a section of keys"),
        (put("config.seed", None), "seed=null must be an integer"),
        (put("config.consistency", "foo"), "consistency=foo is unknown; choose from equal, none, power"),
        (put("config.input_level", "loud"), "input_level=loud is unknown; choose from auto, none, rms"),
        (put("config.rescale", "yes"), "rescale=yes is unknown; choose from auto, false, true"),
        (put("config.rescale", "False"), "rescale=False is unknown; did you mean false?"),
        (put("config.rescale", 1), "rescale=1 is unknown"),
        (put("config.cache.kind", "all"), "cache.kind=all is unknown; choose from audio, none, spectrogram"),
        (put("model", None), "its weights are not tensors"),
        (put("model", {"a": 3}), "its weights are not tensors"),
        (put("config.model._target_", ["a"]), "must be the dotted name of a class"),
    ],
)
def test_a_forged_checkpoint_is_refused_at_once(forged, change, message):
    path = forged(change)
    began = time.monotonic()
    with pytest.raises(UsageError) as error:
        separate.load(path)
    assert message in str(error.value)
    assert "\n" not in str(error.value)
    assert time.monotonic() - began < 10


def larger(contents: dict[str, Any]) -> None:
    """Weights of 6 GB that are one number, repeated by a stride of 0."""
    contents["config"]["model"]["units"] = 20_000
    separator = [("weight_ih_l0", (80_000, 129)), ("weight_hh_l0", (80_000, 20_000))]
    for name, shape in separator:
        for suffix in ("", "_reverse"):
            contents["model"][f"network.body.recurrent.layers.{name}{suffix}"] = torch.zeros(1).expand(shape)


def test_weights_that_claim_more_than_the_file_holds_are_refused(forged):
    with pytest.raises(UsageError, match="its weights claim to be larger than the file"):
        separate.load(forged(larger))


@pytest.mark.parametrize("change", [put("config.model.units", 20_000), larger], ids=["units", "strides"])
def test_a_large_network_in_a_small_file_takes_no_memory(forged, change):
    path = forged(change)
    script = (
        "import resource, separate, torch, separate.instantiate, separate.checkpoint, separate.separator\n"
        "before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss\n"
        "try: separate.load('" + str(path) + "')\n"
        "except separate.errors.UsageError as error: print('refused')\n"
        "print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before)\n"
    )
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, timeout=200)
    refused, grown = done.stdout.split()
    assert refused == "refused", done.stderr
    assert int(grown) * (1 if sys.platform == "darwin" else 1024) < 300e6


@pytest.mark.parametrize(
    ("model", "options", "message"),
    [
        ("unet", {"patch": 10**9}, "seconds for one second of input"),
        ("unet", {"dilation": 10**9}, "dilation=1000000000 must be at most 1024"),
        ("demucs", {"depth": 10**9}, "depth=1000000000 must be at most 32"),
        ("demucs", {"resample": 10**6}, "resample=1000000 must be at most 32"),
        ("dprnn", {"chunk": 10**9}, "chunk=1000000000 must be at most 65536"),
        ("dprnn", {"blocks": 10**9}, "more than the checkpoint holds"),
        ("deep_clustering", {"starts": 10**9}, "starts=1000000000 must be at most 1000"),
        ("conv_tasnet", {"layers": 30}, "layers=30 must be at most 16"),
        ("conv_tasnet", {"repeats": 10**9}, "more than the checkpoint holds"),
        ("wavenet", {"layers": 40}, "layers=40 must be at most 16"),
        ("wavenet", {"stacks": 10**9}, "more than the checkpoint holds"),
        ("wave_unet", {"levels": 10**9}, "levels=1000000000 must be at most 32"),
        ("wave_unet", {"levels": 32, "context": True}, ""),
        ("hdemucs", {"depth": 10**9}, ""),
        ("tasnet", {"layers": 10**9}, "more than the checkpoint holds"),
        ("open_unmix", {"layers": 10**9}, "more than the checkpoint holds"),
    ],
)
def test_options_that_cost_without_weights_are_bounded(model, options, message):
    weights = build_separator(config_of(model)).state_dict()
    began = time.monotonic()
    with pytest.raises(UsageError) as error:
        build_separator(config_of(model, options=options), stored=weights)
    assert message in str(error.value)
    assert time.monotonic() - began < 10


@pytest.mark.parametrize("model", sorted(MODELS))
def test_looking_at_the_size_of_a_network_leaves_its_weights_and_the_random_state(model):
    config = config_of(model)
    assert set(MODELS) == set(shipped("model"))
    torch.manual_seed(3)
    separator = build_separator(config)
    after = torch.get_rng_state()
    torch.manual_seed(3)
    again = build_separator(config, stored=separator.state_dict())
    assert torch.equal(after, torch.get_rng_state())
    for name, tensor in separator.state_dict().items():
        assert torch.equal(tensor, again.state_dict()[name])
        assert tensor.device.type == "cpu"


@pytest.mark.parametrize("kind", ["fifo", "folder", "device", "broken link"])
def test_a_path_that_is_not_a_regular_file_is_refused_without_waiting(call, tmp_path, kind):
    place = tmp_path / "run"
    if kind == "fifo":
        os.mkfifo(place)
    elif kind == "folder":
        (place / "checkpoints" / "best.ckpt").mkdir(parents=True)
    elif kind == "device":
        place = Path("/dev/zero")
    else:
        place.symlink_to(tmp_path / "nowhere")
    song = write(tmp_path / "song.wav", tone(440))
    code, _, err = call(separate.cli.infer, "-c", str(place), str(song), cwd=tmp_path)
    assert code == 2
    assert "is not a file" in err or "does not exist" in err or "has no checkpoints" in err
    with pytest.raises(UsageError, match="is not a file"):
        checkpoint.read(place)


def test_a_compressed_checkpoint_that_unpacks_to_more_than_its_size_is_refused(tmp_path, forged):
    path = forged(lambda contents: contents["config"].update(licence="x" * 2_000_000))
    packed = tmp_path / "packed.ckpt"
    with zipfile.ZipFile(path) as old, zipfile.ZipFile(packed, "w", zipfile.ZIP_DEFLATED) as new:
        for name in old.namelist():
            new.writestr(name, old.read(name))
    assert packed.stat().st_size < 1_000_000
    with pytest.raises(UsageError, match="is not a checkpoint"):
        checkpoint.read(packed)


@pytest.mark.parametrize("format", [True, "2", None, 2.5, -1, [2]])
def test_a_format_that_is_not_a_number_is_refused(tmp_path, sound, format):
    torch.save({**sound, "format": format}, tmp_path / "x.ckpt")
    with pytest.raises(UsageError, match="is not a checkpoint"):
        checkpoint.read(tmp_path / "x.ckpt")


def test_code_in_a_checkpoint_is_not_run(tmp_path):
    class Evil:
        def __reduce__(self) -> tuple[Any, ...]:
            return os.mkdir, (str(tmp_path / "ran"),)

    torch.save({"format": 2, "config": Evil()}, tmp_path / "x.ckpt", pickle_module=pickle)
    with pytest.raises(UsageError, match="is not a checkpoint"):
        checkpoint.read(tmp_path / "x.ckpt")
    assert not (tmp_path / "ran").exists()


def resumed(tmp_path: Path, contents: dict[str, Any]) -> None:
    checkpoint.save(tmp_path / "run" / "checkpoints" / "last.ckpt", contents)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (put("config.trainer.clip", float("nan")), "trainer.clip=nan must be above 0"),
        (put("config.trainer.unknown", 3), "there is no key trainer.unknown"),
        (put("config.cache.limit", -1.0), "cache.limit=-1.0 must be above 0"),
        (put("config.batch_size", 10**12), "batch_size=1000000000000 must be at least 1"),
        (put("config.model.units", 20_000), "more than the checkpoint holds"),
        (put("training", None), "holds no training state"),
        (put("training", {"optimizer": 3}), "holds no training state that fits its configuration"),
        (put("examples", {}), "holds no training state; start another run"),
        (put("examples", {"train": 3}), "holds no training state; start another run"),
        (put("examples", {"train": None, "valid": "8"}), "holds no training state; start another run"),
        (put("examples", [1]), "holds no training state; start another run"),
        (put("examples.train", 3), "and gave 3 and "),
        (put("config.trainer.precision", "foo"), "trainer.precision=foo is unknown; choose from auto, bf16"),
        (put("config.trainer.threads", "fast"), "trainer.threads=fast must be an integer or auto"),
        (put("config.augment.reverb_reference", "wet"), "augment.reverb_reference=wet is unknown"),
        (put("config.input_level", "loud"), "input_level=loud is unknown; choose from auto, none, rms"),
        (put("config.scheduler", "plateau"), "scheduler"),
        (put("config.optimizer", None), "optimizer"),
    ],
)
def test_resuming_from_a_forged_checkpoint_is_refused(call, sound, tmp_path, change, message):
    contents = copy.deepcopy(sound)
    change(contents)
    resumed(tmp_path, contents)
    code, _, err = call(separate.cli.train, "run=run", "resume=true", cwd=tmp_path)
    assert code == 2, err
    assert message in err


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (put("config.cache", [1]), "cache=[1] must be a section"),
        (put("config.cache", {"limit": "all"}), "cache.limit=all must be a number"),
        (put("config.data.tracks", [1]), "data.tracks=[1] must be names with integers"),
        (put("config.data.layout", [1]), "data.layout=[1] is unknown; choose from librimix, manifest"),
        (put("config.data._target_", [1]), "data._target_=[1] must be text"),
        (put("config.data._target_", "subprocess.Popen"), "subprocess.Popen comes from a package that is not trusted"),
        (
            put("config.data._target_", "separate.data.layouts.musdb18.subprocess"),
            "is not a class or function defined there",
        ),
        (put("config.data._target_", "separate.data.layouts.musdb18.Path"), "is not a class or function defined there"),
        (put("config.data._target_", "separate.data.layouts.base.Layout"), "is not a layout"),
        (put("config.data.sample_rate", 16_000.5), "data.sample_rate=16000.5 must be an integer"),
    ],
)
def test_an_evaluation_of_a_forged_checkpoint_is_refused(call, forged, tmp_path, change, message):
    code, _, err = call(separate.cli.evaluate, f"run={forged(change)}", cwd=tmp_path)
    assert code == 2, err
    assert message in err
